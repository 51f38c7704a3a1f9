//! How the model names processes, descriptors, sockets and ports.

use portkeep_core::{PortRange, Transport, Transports};

/// Id of a network namespace: its cookie.
pub type Namespace = u64;

/// One port of one transport in one network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The namespace.
    pub namespace: Namespace,
    /// The transport.
    pub transport: Transport,
    /// The port, host byte order.
    pub port: u16,
}

/// Number of a process (a thread group).
pub type Pid = u32;

/// Number of a descriptor in one process.
pub type Descriptor = u32;

/// Number of a socket; never used twice.
pub type SocketId = u64;

/// The owner socket of a reservation that no socket owns.
pub(super) const NO_SOCKET: SocketId = SocketId::MAX;

/// Every port of a block, of each transport.
pub(super) fn places_of(namespace: Namespace, transports: Transports, block: PortRange) -> impl Iterator<Item = Place> {
    block.into_iter().flat_map(move |port| transports.iter().map(move |transport| Place { namespace, transport, port }))
}
