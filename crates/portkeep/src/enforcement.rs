//! The enforcement that keeps outsiders off the ports.

use std::{fmt, time::Duration};

use portkeep_core::{PortRange, Time, wire};
use serde::{Deserialize, Serialize};

use crate::sys;

/// The enforcement of a reservation. Every [`crate::Reservation`] says which one it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Enforcement {
    /// The kernel refuses every outsider's bind, even root's.
    Kernel,
    /// No BPF programs serve this process, so this process holds the ports with sockets of its own.
    ///
    /// A port that has not been handed out yet is bound, so no other process can bind it, not even root's. The limits:
    ///
    /// - After a port is handed out, only the socket that is bound to it protects it. When that socket closes, any
    ///   process can bind the port. If none has, the next draw holds it again.
    /// - The scope is always the process, and only this library's functions can give out the ports. An ordinary `bind(2)`
    ///   to one fails with `EADDRINUSE`, in this process too. [`open_held`](crate::Reservation::open_held) lets other
    ///   processes bind them: all others, not chosen ones.
    /// - Only a bind shows whether a port is in use. Every port requires a descriptor for each transport.
    /// - The reservation ends with the process or the guard, not with the owner socket.
    Held,
}

impl Enforcement {
    /// `kernel` or `held`, for listings and programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Held => "held",
        }
    }
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel: no outsider can bind the ports",
            Self::Held => {
                "held: this process keeps the ports bound; once handed out, a port is only as safe as its socket, \
                 and no other process can use the reservation"
            }
        })
    }
}

/// Which [`Enforcement`] a request accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Require {
    /// Kernel enforcement if it is up, else held mode. [`crate::Reservation::enforcement`] reports which of them it is.
    #[default]
    Any,
    /// Only kernel enforcement. Without it, the request fails with [`crate::AcquireError::KernelAbsent`].
    Kernel,
    /// Held mode, even if kernel enforcement is up (for tests).
    Held,
}

/// The kernel enforcement that serves this process.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Version {
    /// The version of the control codes; this library speaks [`wire::ABI`](portkeep_core::wire::ABI).
    pub abi: u32,
    /// Whether an agent runs: without one, blocks outside the pool cannot be confirmed.
    pub agent: bool,
    /// The pool, if there is one.
    pub pool: Option<PortRange>,
    /// Reservations on the whole machine.
    pub reservations: u32,
    /// Ports in them.
    pub ports: u64,
    /// When kernel enforcement was brought up.
    pub since: Time,
}

impl Version {
    pub(crate) fn from_wire(version: &wire::Version) -> Self {
        Self {
            abi: version.abi,
            agent: version.agent != 0,
            pool: PortRange::inclusive(version.pool_first, version.pool_last).ok(),
            reservations: version.reservations,
            ports: version.ports,
            since: sys::wall_clock(Duration::from_nanos(version.since)),
        }
    }
}
