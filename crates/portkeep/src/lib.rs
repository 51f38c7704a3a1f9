//! Kernel-enforced port reservations for Linux.
//!
//! A [`Reservation`] is a block of consecutive TCP or UDP ports. From the moment it is acquired until it ends, no
//! outsider (a process outside its scope) can bind them, on any local address and with any socket option. It is the
//! port reservation of Windows (`SIO_ACQUIRE_PORT_RESERVATION`) for Linux: acquire first, and bind when you are ready.
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
//! - [`Reservation`] is the guard. Dropping it ends the reservation. So does the end of the process, even by a signal.
//!   Sockets that are already bound keep running.
//! - [`PortkeepSocket`] gives every socket [`associate`](PortkeepSocket::associate): its next `bind` to port 0, or its
//!   `connect`, takes the port out of the reservation. That works for sockets of any crate, because it only requires
//!   [`AsFd`](std::os::fd::AsFd).
//! - A [`Token`] names a reservation. Give it to other threads or, with a wider [`Scope`], to other processes.
//! - [`persistent`] has the reservations that outlive processes and reboots.
//! - [`who`], [`lookup`] and [`list`] report the owner of a port; [`version`] describes kernel enforcement.
//! - [`control`] has the bare control codes, and [`Pending`] a request that need not be waited for.
//!
//! # Enforcement
//!
//! Normally the kernel enforces a reservation. An administrator has brought Portkeep up (`portkeep up`), and this
//! library only makes `setsockopt` calls. They require no right and no daemon. If there is no kernel enforcement, a
//! request *holds* the ports with sockets of this process instead. That is weaker: [`Enforcement::Held`] says how.
//! [`Reservation::enforcement`] reports which of the two you have. To accept only kernel enforcement, use
//! [`require(Require::Kernel)`](Request::require).
//!
//! # Conventions
//!
//! Every port is in host byte order. There is one error type per action. Each variant says what to do about it, and
//! `errno()` gives the number. `?` turns each of them into an [`std::io::Error`] of the same kind. If another
//! reservation has a port of the requested block, [`AcquireError::InUse`] shows it:
//!
//! ```text
//! 61004/tcp belongs to pid 812 (nginx), reserved 3m ago
//! ```
//!
//! # With an async runtime
//!
//! [`Request::acquire`] blocks for a block outside the pool (some milliseconds, at most [`Request::timeout`]), and with
//! [`Request::wait`]. To avoid that, poll a [`Pending`]. [`Reservation::connect_tcp`] blocks until it is connected. The
//! other calls of a request and a reservation do not block.
//!
//! To use a listener or a socket with tokio, call `set_nonblocking(true)` and `from_std`. A `tokio::net::TcpSocket` can
//! be associated before it binds or connects, because it is [`AsFd`](std::os::fd::AsFd) too.
//!
//! # Sources
//!
//! The rules are those of Microsoft's pages on `SIO_ACQUIRE_PORT_RESERVATION`, `SIO_ASSOCIATE_PORT_RESERVATION` and
//! `SIO_RELEASE_PORT_RESERVATION`
//! (<https://learn.microsoft.com/windows/win32/winsock/sio-acquire-port-reservation> and the pages of the other two).
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
