//! Decides whether a request for particular ports is granted.
//!
//! A pending request keeps nobody from a port. Three things have to be checked in the caller's network namespace:
//! whether the caller may have the block, whether enough ephemeral ports remain, and whether a socket has a port of the
//! block. First the block is entered into `ip_local_reserved_ports`, then the sockets are checked. In the other order
//! an automatic source port could be chosen in between. A bind after the check marks the request, and then it cannot be
//! confirmed.

use std::{fmt, fs, io};

use portkeep_core::{Errno, PortRange, PortSet, Transport, Transports, ephemeral::Exhausted};
use portkeep_kernel::Reservation;

use super::{
    namespaces::Namespace,
    peer::{has_rights_of_root, same_namespace},
    policy::Policy,
    reserved_ports::ReservedPorts,
    sysctl,
};
use crate::vacancy::Prober;

/// Why a block is not granted.
#[derive(Debug)]
pub(super) enum Refusal {
    /// A socket has a port of it.
    InUse(Transport, u16),
    /// A socket was bound there while the request was pending.
    Contested,
    /// Only root and the accounts in the configuration may have ports below this one.
    Privileged(u32),
    /// Too few ephemeral ports would be left (N5).
    Exhausts(Exhausted),
    /// The namespace could not be found or checked.
    Unknown(io::Error),
}

impl Refusal {
    pub(super) fn errno(&self) -> Errno {
        match self {
            Self::InUse(..) | Self::Contested => Errno::EADDRINUSE,
            Self::Privileged(_) => Errno::EACCES,
            Self::Exhausts(_) => Errno::ENOSPC,
            Self::Unknown(_) => Errno::ENETDOWN,
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Unknown(error)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse(transport, port) => write!(f, "port {port}/{transport} is in use"),
            Self::Contested => f.write_str("another process bound a port of it meanwhile"),
            Self::Exhausts(why) => write!(f, "{why}"),
            Self::Privileged(start) => write!(f, "ports below {start} are for root and those the configuration names"),
            Self::Unknown(error) => write!(f, "cannot look into the network namespace: {error}"),
        }
    }
}

/// The tools to examine a request.
pub(super) struct Examiner<'a> {
    pub(super) reserved_ports: &'a ReservedPorts,
    pub(super) prober: &'a Prober,
    pub(super) policy: &'a Policy,
    /// The blocks of a namespace, see `settle::wanted`.
    pub(super) in_force: &'a (dyn Fn(u64) -> io::Result<PortSet> + Sync),
    /// Whether pids here are the same as those of the BPF programs.
    pub(super) first_pids: bool,
}

impl Examiner<'_> {
    /// Enter the block and check it. The caller removes the entry again. `hints` are the thread and the process that
    /// made the request.
    pub(super) fn examine(
        &self,
        reservation: &Reservation,
        (ports, transports): (PortRange, Transports),
        namespace: &Namespace,
        hints: &[u32],
    ) -> Result<(), Refusal> {
        namespace.within(|| {
            let privileged = sysctl::unprivileged_port_start()?;
            if u32::from(ports.start()) < privileged && !self.may_have_privileged(reservation.uid, namespace, hints) {
                return Ok(Err(Refusal::Privileged(privileged)));
            }
            if let Err(why) =
                self.reserved_ports.add_here(namespace.cookie, ports, || (self.in_force)(namespace.cookie))?
            {
                return Ok(Err(Refusal::Exhausts(why)));
            }
            let in_use = self.prober.in_use(transports, ports)?;
            Ok(in_use.map_or(Ok(()), |(transport, port)| Err(Refusal::InUse(transport, port))))
        })?
    }

    /// Root of the agent's own namespaces may have these ports everywhere. Another process with the rights of root may
    /// have them in the network namespace that it is in, and not in those of sockets that others passed to it.
    fn may_have_privileged(&self, uid: u32, namespace: &Namespace, hints: &[u32]) -> bool {
        if uid != 0 {
            return self.policy.may_have_privileged(uid);
        }
        let is_root = |id: u32| {
            has_rights_of_root(id)
                && (namespace.contains(id) || same_namespace(&format!("/proc/{id}/ns/net"), "/proc/self/ns/net"))
        };
        // If the event was lost, only the process is known, and any of its threads may have made the request.
        let threads = hints.iter().flat_map(|id| threads(*id));
        // If the process cannot be found by its number, the decision of the BPF programs is enough.
        !self.first_pids || hints.iter().copied().chain(threads).any(is_root)
    }
}

/// The threads of a process; none if it has ended.
fn threads(process: u32) -> impl Iterator<Item = u32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten();
    tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok())
}
