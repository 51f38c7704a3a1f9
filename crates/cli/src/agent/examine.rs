//! May a claimed block be granted?
//!
//! When the agent hears of it no newcomer can bind its ports any more. Still to
//! be found out, in the caller's network namespace: whether the caller may have
//! it, and whether somebody is there already. First the block is entered into
//! `ip_local_reserved_ports`, then the sockets are looked at; the other way round an
//! automatic source port could slip in between.

use std::{fmt, io};

use portkeep_core::{Errno, PortRange, Transport, Transports};
use portkeep_kernel::Reservation;

use super::{keeper::Keeper, namespaces::Namespace, policy::Policy, sysctl};
use crate::vacancy::Prober;

/// Why a block is not granted.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Somebody is there.
    InUse(Transport, u16),
    /// Ports below this one are for root, and for whom the configuration names.
    Privileged(u32),
    /// The namespace could not be found or looked at.
    Unknown(io::Error),
}

impl Refusal {
    pub(super) fn errno(&self) -> Errno {
        match self {
            Self::InUse(..) => Errno::EADDRINUSE,
            Self::Privileged(_) => Errno::EACCES,
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
            Self::Privileged(start) => write!(f, "ports below {start} are for root and those the configuration names"),
            Self::Unknown(error) => write!(f, "cannot look into the network namespace: {error}"),
        }
    }
}

/// Enter the block and look. What was entered is taken back by the caller.
pub(super) fn examine(
    reservation: &Reservation,
    (ports, transports): (PortRange, Transports),
    namespace: &Namespace,
    keeper: &Keeper,
    prober: &Prober,
    policy: &Policy,
) -> Result<(), Refusal> {
    namespace.within(|| {
        let privileged = sysctl::unprivileged_port_start()?;
        if u32::from(ports.start()) < privileged && !policy.may_have_privileged(reservation.uid) {
            return Ok(Err(Refusal::Privileged(privileged)));
        }
        keeper.add_here(namespace.cookie, ports)?;
        for transport in transports.iter() {
            if let Some(port) = prober.in_use(transport, ports)?.first() {
                return Ok(Err(Refusal::InUse(transport, *port)));
            }
        }
        Ok(Ok(()))
    })?
}
