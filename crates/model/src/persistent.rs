//! Persistent reservations: no socket owns them, an administrator makes and ends them.

use super::{
    Access, Model, Namespace, Other, Owner, Pid, Process, Reservation, State,
    id::{NO_SOCKET, places_of},
};
use portkeep_core::{Align, Errno, PortRange, Token, Transports, wire::ALSO_MAX};

/// The request of an administrator.
#[derive(Clone, Debug)]
pub struct Persistent {
    /// First port, 0 = any block of the pool.
    pub start: u16,
    /// How many.
    pub count: u16,
    /// The alignment of the block that the system chooses, with `start` 0.
    pub align: Align,
    /// Of which transports.
    pub transports: Transports,
    /// Its audience. Administrators can use it too, by association.
    pub access: Access,
    /// Others that are admitted.
    pub also: Vec<Other>,
    /// With [`Access::User`]: the uid.
    pub uid: u32,
    /// By association only.
    pub strict: bool,
    /// Binds of its audience to port 0 draw from it (E6).
    pub ephemeral: bool,
}

impl Model {
    /// Claim the block. It is in force once it is [confirmed](Model::confirm). If one of its ports is bound before
    /// that, it will be refused.
    pub fn create_persistent(&mut self, namespace: Namespace, ask: &Persistent, token: Token) -> Result<(), Errno> {
        if ask.count == 0 || u32::from(ask.start) + u32::from(ask.count) > 65536 || ask.access == Access::Process {
            return Err(Errno::EINVAL);
        }
        if ask.also.len() > ALSO_MAX {
            return Err(Errno::EINVAL);
        }
        if ask.ephemeral && (ask.strict || ask.access == Access::Administrators || !ask.also.is_empty()) {
            return Err(Errno::EINVAL);
        }
        if ask.ephemeral && self.has_range(namespace, ask.transports, ask.access, (0, ask.uid), true) {
            return Err(Errno::EEXIST);
        }
        let block = match PortRange::new(ask.start, ask.count) {
            Ok(block) => {
                if places_of(namespace, ask.transports, block).any(|at| self.is_reserved(at)) {
                    return Err(Errno::EADDRINUSE);
                }
                block
            }
            Err(_) => self.find_block(namespace, ask.transports, ask.count, ask.align).ok_or(Errno::ENOSPC)?,
        };
        let reservation = Reservation {
            block,
            transports: ask.transports,
            namespace,
            owner: Owner { socket: NO_SOCKET, pid: 0, uid: ask.uid },
            access: ask.access,
            also: ask.also.clone(),
            persistent: true,
            strict: ask.strict,
            ephemeral: ask.ephemeral,
            label: String::new(),
            state: State::Pending,
            order: self.next_order(),
            next: 0,
        };
        self.enter(token, reservation);
        Ok(())
    }

    /// Root, or a member of the administrators' group.
    pub(super) fn is_administrator(&self, process: &Process) -> bool {
        process.uid == 0 || self.settings.admin_gid != 0 && process.gid == self.settings.admin_gid
    }

    pub(super) fn in_scope(&self, reservation: &Reservation, pid: Pid) -> bool {
        let process = self.process(pid);
        match reservation.access {
            Access::Process => reservation.owner.pid == pid,
            Access::User => reservation.owner.uid == process.uid,
            Access::Cgroup(id) => process.cgroups.contains(&id),
            Access::Administrators => self.is_administrator(process),
        }
    }

    /// Whether the process is in its scope, or is one of the others that it admits.
    pub(super) fn may_bind(&self, reservation: &Reservation, pid: Pid) -> bool {
        let process = self.process(pid);
        let is = |other: &Other| match other {
            Other::User(uid) => process.uid == *uid,
            Other::Group(gid) => process.gid == *gid,
            Other::Unit(cgroup) => process.cgroups.contains(cgroup),
        };
        self.in_scope(reservation, pid) || reservation.also.iter().any(is)
    }

    pub(super) fn may_associate(&self, reservation: &Reservation, pid: Pid) -> bool {
        self.may_bind(reservation, pid) || reservation.persistent && self.is_administrator(self.process(pid))
    }
}
