//! Private ephemeral ranges: which one a process draws from.

use super::{Model, Namespace, Pid, Reservation, State};
use portkeep_core::{Scope, Token, Transport, Transports};

impl Model {
    /// The range that a bind to port 0 draws from: the most specific one (E4). `None`: the kernel chooses.
    pub fn range_of(&self, pid: Pid, namespace: Namespace, transport: Transport) -> Option<Token> {
        let process = self.process(pid);
        let rank = |reservation: &Reservation| match reservation.scope {
            Scope::Process => (0, 0, false),
            // The nearest cgroup is the last on the way from the root; a runtime one comes before a persistent one.
            Scope::Cgroup(id) => {
                let level = process.cgroups.iter().position(|own| *own == id).unwrap_or(0);
                (1, process.cgroups.len() - level, reservation.persistent)
            }
            Scope::Unit => (2, 0, false),
            Scope::User => (3, 0, false),
            Scope::Group(_) | Scope::Administrators => (4, 0, false),
        };
        self.reservations()
            .iter()
            .filter(|(_, r)| r.ephemeral && r.state == State::Active && r.namespace == namespace)
            .filter(|(_, r)| r.transports.contains(transport) && self.in_scope(r, pid))
            .min_by_key(|(_, r)| rank(r))
            .map(|(token, _)| *token)
    }

    /// Whether there is a range for the same processes, in force or asked for.
    pub(super) fn has_range(
        &self,
        namespace: Namespace,
        transports: Transports,
        scope: Scope,
        (pid, uid): (Pid, u32),
        persistent: bool,
    ) -> bool {
        self.reservations().values().filter(|r| r.ephemeral && r.claims() && r.namespace == namespace).any(|r| {
            let same = match (r.scope, scope) {
                (Scope::Process, Scope::Process) => r.owner.pid == pid,
                (Scope::User, Scope::User) => r.owner.uid == uid,
                (Scope::Cgroup(one), Scope::Cgroup(other)) => one == other && r.persistent == persistent,
                (Scope::Group(one), Scope::Group(other)) => one == other,
                _ => false,
            };
            same && r.transports.bits() & transports.bits() != 0
        })
    }
}
