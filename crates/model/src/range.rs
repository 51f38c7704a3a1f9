//! Private ephemeral ranges: which one a process draws from.

use super::{Access, Model, Namespace, Pid, Reservation, State};
use portkeep_core::{Token, Transport, Transports};

impl Model {
    /// The range that a bind to port 0 draws from: the most specific one (E4). `None`: the kernel chooses.
    pub fn range_of(&self, pid: Pid, namespace: Namespace, transport: Transport) -> Option<Token> {
        let process = self.process(pid);
        let rank = |reservation: &Reservation| match reservation.access {
            Access::Process => (0, 0, false),
            // The nearest cgroup is the last on the way from the root; a runtime one comes before a persistent one.
            Access::Cgroup(id) => {
                let level = process.cgroups.iter().position(|own| *own == id).unwrap_or(0);
                (1, process.cgroups.len() - level, reservation.persistent)
            }
            Access::User => (2, 0, false),
            Access::Administrators => (3, 0, false),
        };
        self.reservations()
            .iter()
            .filter(|(_, r)| r.ephemeral && r.state == State::Active && r.namespace == namespace)
            .filter(|(_, r)| r.transports.contains(transport) && self.in_scope(r, pid))
            .min_by_key(|(_, r)| rank(r))
            .map(|(token, _)| *token)
    }

    /// Whether there is a range for the same processes, in force or pending.
    pub(super) fn has_range(
        &self,
        namespace: Namespace,
        transports: Transports,
        access: Access,
        (pid, uid): (Pid, u32),
        persistent: bool,
    ) -> bool {
        self.reservations().values().filter(|r| r.ephemeral && r.claims() && r.namespace == namespace).any(|r| {
            let same = match (r.access, access) {
                (Access::Process, Access::Process) => r.owner.pid == pid,
                (Access::User, Access::User) => r.owner.uid == uid,
                (Access::Cgroup(one), Access::Cgroup(other)) => one == other && r.persistent == persistent,
                (Access::Process | Access::User | Access::Cgroup(_) | Access::Administrators, _) => false,
            };
            same && r.transports.overlaps(transports)
        })
    }
}
