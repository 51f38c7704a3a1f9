//! Persistent reservations: they exist until they are deleted, across reboots.
//!
//! A component that needs particular ports declares them once, usually by a file of its package
//! (`/usr/lib/portkeep/ports.d/NAME.toml`), or with [`create`] or `portkeep persist add`. From then on only the
//! audience can bind them, whether or not the component runs. The component requires no change: it binds its port as
//! before. It can also [`lookup`] the token, which is a new one after each boot, and associate sockets with it.
//!
//! ```no_run
//! use std::net::Ipv4Addr;
//! use portkeep::{PortRange, PortkeepSocket, Transport, persistent::{self, Audience, Lifetime, Proposal}};
//!
//! let declared = persistent::create(
//!     &Proposal::new("rtp".parse()?, PortRange::new(5000, 20)?, Transport::Udp.into()).audience(Audience::unit("sip.service")?),
//!     Lifetime::UntilDeleted,
//! )?;
//! let token = persistent::lookup(PortRange::new(5000, 20)?, Transport::Udp)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`create`] and [`delete`] ask the agent, and require an administrator: root, or a member of the group that the
//! configuration names. They work in the network namespace of the agent. [`lookup`] asks the BPF programs, and requires
//! no agent and no right. It works in the network namespace of the caller.
//!
//! Windows has this as `CreatePersistentTcpPortReservation`, `DeletePersistentTcpPortReservation` and
//! `LookupPersistentTcpPortReservation` and the same for UDP
//! (<https://learn.microsoft.com/windows/win32/api/iphlpapi/nf-iphlpapi-createpersistenttcpportreservation>).
//! Names, audiences, both transports at once and blocks that the system chooses are additions.

mod client;
mod counters;
mod error;
mod event;
pub mod protocol;

use portkeep_core::{PortRange, Token, Transport, wire};

pub use client::Connection;
pub use error::PersistentError;
pub use portkeep_core::persistent::{
    Account, Audience, AudienceError, Correction, Declaration, Name, NameError, Origin, Others,
};
pub use protocol::{Block, Change, Lifetime, Proposal, Which};

use crate::{Info, State, query};

/// Create a persistent reservation. When this returns it is in force, and on the disk unless it is [`Lifetime::UntilReboot`].
///
/// Requires an administrator and a running agent.
pub fn create(proposal: &Proposal, kept: Lifetime) -> Result<Info, PersistentError> {
    Connection::open()?.create(proposal, kept)
}

/// Delete a persistent reservation that a command created. Sockets bound from it keep running. One that a file declares
/// is not deleted here: remove or mask the file, and `portkeep reload`.
///
/// Requires an administrator and a running agent.
pub fn delete(which: &Which) -> Result<Info, PersistentError> {
    Connection::open()?.delete(which)
}

/// Change a persistent reservation that a command created: its name, ports, audience, terms or description. Outsiders
/// cannot bind its ports meanwhile: the change is made in place, or the new block is in force before the former ends. If the
/// change is refused, the reservation is as it was.
///
/// Requires an administrator and a running agent.
pub fn change(name: &Name, change: &Change) -> Result<Info, PersistentError> {
    Connection::open()?.change(name, change)
}

/// The token of the persistent reservation with exactly this block (host byte order) that has this transport. It
/// changes with every boot.
///
/// # Errors
///
/// [`PersistentError::NotFound`] if there is none. A part of a block is not enough.
pub fn lookup(ports: PortRange, transport: Transport) -> Result<Token, PersistentError> {
    let (socket, _) = query::asker()?;
    let select = wire::SelectRequest {
        by: wire::BY_PORT,
        port: ports.start(),
        transport: transport.bit(),
        ..Default::default()
    };
    let found = query::ask(&socket, &select)?;
    let exact = found
        .filter(|info| info.persistent && info.ports == ports && info.list.is_none() && info.state == State::Active);
    exact.and_then(|info| info.token).ok_or(PersistentError::NotFound)
}

/// All persistent reservations that the agent knows: those in force, and those that wait, with the reason.
///
/// Requires a running agent, and no right.
pub fn list() -> Result<Vec<Info>, PersistentError> {
    Connection::open()?.list()
}
