//! Kernel-enforced port reservations for Linux.
//!
//! A [`Reservation`] is a block of consecutive TCP or UDP ports that nobody outside it can bind, on any local address
//! and with any socket option, from the moment it is acquired until it ends. It is the port reservation of Windows
//! (`SIO_ACQUIRE_PORT_RESERVATION`), brought to Linux: acquire first, bind when you are ready, and let nobody in between.
//!
//! ```
//! use std::net::Ipv4Addr;
//!
//! use portkeep::Reservation;
//!
//! // Four ports in a row, chosen by the system.
//! let reservation = Reservation::tcp().ports(4).label("media server").acquire()?;
//! println!("{} ({})", reservation.ports(), reservation.enforcement());
//!
//! // A port of the block ...
//! let listener = reservation.bind_tcp(Ipv4Addr::LOCALHOST)?;
//! assert!(reservation.ports().contains(listener.local_addr()?.port()));
//! // ... and that very one.
//! let last = reservation.bind_tcp_port(Ipv4Addr::LOCALHOST, reservation.ports().last())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Overview
//!
//! - [`Reservation::tcp`] and [`Reservation::udp`] begin a [`Request`]: how many ports, where, for whom.
//! - [`Reservation`] is the guard. Dropping it ends the reservation, as does the end of the process, however it comes.
//!   Sockets that are already bound keep running.
//! - [`PortkeepSocket`] gives every socket [`associate`](PortkeepSocket::associate): its next `bind` to port 0, or its
//!   `connect`, takes the port out of the reservation. That works for sockets of any crate, because it only takes
//!   [`AsFd`](std::os::fd::AsFd).
//! - A [`Token`] names a reservation. Give it to other threads or, with a wider [`Scope`], to other processes.
//! - [`persistent`] has the reservations that outlive processes and reboots.
//! - [`who`], [`lookup`] and [`list`] report the owner of a port; [`version`] describes kernel enforcement.
//! - [`control`] has the bare control codes, and [`Pending`] a request that need not be waited for.
//!
//! # Enforcement
//!
//! Normally the kernel: an administrator has brought Portkeep up (`portkeep up`), and this library only makes
//! `setsockopt` calls, for which no right and no daemon is needed. Where there is no kernel enforcement, a request falls back to
//! *holding* the ports with sockets of this process. That is weaker, [`Enforcement::Held`] says how, and
//! [`Reservation::enforcement`] says which one you have. To have it no other way, say
//! [`require(Require::Kernel)`](Request::require).
//!
//! # Conventions
//!
//! Every port is in host byte order. There is one error type per action; each variant says what to do about it, `errno()`
//! gives the number, and all turn into [`std::io::Error`] with `?`, keeping the kind. If a block asked for is
//! taken, [`AcquireError::InUse`] knows by whom:
//!
//! ```text
//! 61004/tcp belongs to pid 812 (nginx), reserved 3m ago
//! ```
//!
//! # With an async runtime
//!
//! Nothing here blocks but [`Request::acquire`] for a block outside the pool (some milliseconds, and never longer than
//! [`Request::timeout`]; or poll a [`Pending`]) or with [`Request::wait`] and [`Reservation::connect_tcp`]. Listeners and sockets become tokio's by
//! `set_nonblocking(true)` and `from_std`; a `tokio::net::TcpSocket` can be associated before it binds or connects, as it
//! is [`AsFd`](std::os::fd::AsFd) like any other.
//!
//! # Sources
//!
//! The rules are those of Microsoft's pages on `SIO_ACQUIRE_PORT_RESERVATION`, `SIO_ASSOCIATE_PORT_RESERVATION` and
//! `SIO_RELEASE_PORT_RESERVATION`
//! (<https://learn.microsoft.com/windows/win32/winsock/sio-acquire-port-reservation> and its sisters).
#![deny(missing_docs)]

mod associate;
mod bind;
pub mod control;
mod enforcement;
mod error;
mod freed;
mod held;
mod info;
mod pending;
pub mod persistent;
mod process;
mod query;
mod refusal;
mod request;
mod reservation;
mod socket;
mod start;
mod sys;

pub use associate::PortkeepSocket;
pub use enforcement::{Enforcement, Require, Version};
pub use error::{AcquireError, AssociateError, BindError, ConnectError, MalformedRequest, QueryError, ReleaseError};
pub use info::{BlockInfo, Info, State};
pub use pending::Pending;
pub use portkeep_core::{
    Align, AlignError, Errno, ParsePortsError, PortList, PortRange, PortRangeError, Ports, Scope, Time, Token,
    Transport, Transports,
};
pub use process::{BoundSocket, Process};
pub use query::{enforcement, list, lookup, version, who};
pub use request::{Request, WantedPorts};
pub use reservation::{Parts, Reservation, release};
pub use sys::wall_clock;
