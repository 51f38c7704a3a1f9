//! Sockets, and the kernel's ordinary rules for who may share a port.

use super::{Descriptor, Model, Namespace, Pid, Place, SocketId};
use portkeep_core::{Errno, Token, Transport};

/// A local address, as far as sharing a port depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// 0.0.0.0
    V4Any,
    /// 127.0.0.1
    V4Loopback,
    /// An IPv4 address of some other machine.
    V4Elsewhere,
    /// `[::]`, which takes IPv4 too.
    V6Any,
    /// `[::1]`
    V6Loopback,
    /// `[::ffff:127.0.0.1]`, on an IPv6 socket.
    V6Mapped,
    /// `[::1]`, set by a connect and not by a bind. The kernel still counts the socket among those that take IPv4, so
    /// its address overlaps with 0.0.0.0. No program can ask for this address.
    V6Connected,
}

impl Address {
    /// Whether it is of the IPv6 family.
    pub const fn is_v6(self) -> bool {
        matches!(self, Self::V6Any | Self::V6Loopback | Self::V6Mapped | Self::V6Connected)
    }

    /// Whether two sockets with these addresses would get the same packets on the same port.
    pub fn overlaps(self, other: Self) -> bool {
        use Address::{V4Any, V4Elsewhere, V4Loopback, V6Any, V6Connected, V6Loopback, V6Mapped};
        match (self, other) {
            (V6Any, _) | (_, V6Any) => true,
            (V6Connected, other) | (other, V6Connected) => matches!(other, V6Connected | V6Loopback | V4Any),
            (V6Loopback, other) | (other, V6Loopback) => other == V6Loopback,
            (V4Any, _) | (_, V4Any) => true,
            (V4Elsewhere, other) | (other, V4Elsewhere) => other == V4Elsewhere,
            (V4Loopback | V6Mapped, V4Loopback | V6Mapped) => true,
        }
    }
}

/// The options that a socket is created with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// SO_REUSEADDR
    pub reuse_address: bool,
    /// SO_REUSEPORT
    pub reuse_port: bool,
}

/// The agent's mark on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// While it is open the agent counts as running.
    Beacon,
    /// May try reserved ports.
    Probe,
}

/// Which reservation a query is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// The one with this token; no reservation has the token 0.
    Token(u64),
    /// The one a port belongs to.
    Port(Transport, u16),
    /// The first one that starts at or after a port.
    Next(Transport, u16),
    /// The n-th this socket owns. The order is not promised; here it is the order of acquisition.
    Index(u16),
    /// The one this socket is associated with.
    Associated,
}

/// A socket's local port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The port, host byte order.
    pub port: u16,
    /// The local address.
    pub address: Address,
    /// Whether a reservation admitted it. The reservation may have ended since.
    pub consumer: bool,
    /// Whether the socket counts as a user of the port.
    pub counted: bool,
}

/// A socket.
#[derive(Clone, Debug)]
pub struct Socket {
    /// TCP or UDP; `None` for every other kind (MPTCP, raw, Unix ...).
    pub transport: Option<Transport>,
    /// Whether it is of the IPv6 family.
    pub v6: bool,
    /// The namespace it was created in, which never changes.
    pub namespace: Namespace,
    /// Its options. A draw may turn SO_REUSEADDR on (A9).
    pub options: Options,
    /// Its port, if it has one.
    pub bound: Option<Bound>,
    /// Whether it listens.
    pub listens: bool,
    /// The reservation it is associated with, in force or not.
    pub associated: Option<Token>,
    /// The agent's mark.
    pub role: Option<Role>,
    pub(super) last_acquired: Option<Token>,
    pub(super) selected: Option<Select>,
    pub(super) hint: Option<Place>,
}

impl Socket {
    pub(super) fn at(&self, port: u16) -> Option<Place> {
        Some(Place { namespace: self.namespace, transport: self.transport?, port })
    }

    /// Where it is bound.
    pub fn place(&self) -> Option<Place> {
        self.at(self.bound?.port)
    }

    /// Whether it counts as a user of its port.
    pub fn is_counted(&self) -> bool {
        self.bound.is_some_and(|bound| bound.counted)
    }

    pub(super) fn uses(&self, at: Place) -> bool {
        self.is_counted() && self.place() == Some(at)
    }

    /// The kernel's ordinary rule: may this socket take a port that `other` has? Only with the consent of both, and
    /// for TCP with SO_REUSEADDR only as long as the other does not listen.
    fn shares_with(&self, other: &Self) -> bool {
        let by_address = self.options.reuse_address && other.options.reuse_address && !other.listens;
        let by_port = self.options.reuse_port && other.options.reuse_port;
        by_address || by_port
    }
}

impl Model {
    /// `socket`, with the options set at once.
    pub fn socket(
        &mut self,
        pid: Pid,
        namespace: Namespace,
        transport: Option<Transport>,
        v6: bool,
        options: Options,
    ) -> Descriptor {
        let id = self.next_socket;
        self.next_socket += 1;
        let socket = Socket {
            transport,
            v6,
            namespace,
            options,
            bound: None,
            listens: false,
            associated: None,
            role: None,
            last_acquired: None,
            selected: None,
            hint: None,
        };
        self.sockets.insert(id, socket);
        self.add_descriptor(pid, id)
    }

    /// The socket behind a descriptor.
    pub fn socket_at(&self, pid: Pid, descriptor: Descriptor) -> Result<&Socket, Errno> {
        Ok(&self.sockets[&self.look_up(pid, descriptor)?])
    }

    /// Other sockets on the same port whose addresses overlap.
    pub(super) fn rivals(&self, id: SocketId, at: Place, address: Address) -> impl Iterator<Item = &Socket> {
        self.sockets.iter().filter(move |(other, _)| **other != id).map(|(_, socket)| socket).filter(move |socket| {
            socket.place() == Some(at) && socket.bound.is_some_and(|bound| bound.address.overlaps(address))
        })
    }

    /// Whether the kernel's ordinary rules let the socket have this port.
    pub(super) fn may_share(&self, id: SocketId, at: Place, address: Address) -> bool {
        self.rivals(id, at, address).all(|other| self.sockets[&id].shares_with(other))
    }

    /// The last descriptor is closed (R6): the port is given up, and the reservations of the socket end.
    pub(super) fn destroy(&mut self, id: SocketId) {
        let socket = self.sockets.remove(&id).expect("a descriptor refers to a socket");
        if let Some(hint) = socket.hint {
            self.hints.remove(&hint);
        }
        if socket.is_counted() {
            let at = socket.place().expect("it is bound");
            self.gave_up(at);
        }
        let owned: Vec<Token> = self.owned(id).map(|(token, _)| *token).collect();
        for token in owned {
            self.remove(token);
        }
    }

    /// A counted socket no longer has the port.
    fn gave_up(&mut self, at: Place) {
        if self.users(at) == 0 {
            self.lingering.remove(&at);
        }
        if self.in_pool(at.port) {
            self.closed_lately.insert(at);
        }
    }

    /// Whether an agent runs, to confirm specific requests outside the pool.
    pub fn agent_runs(&self) -> bool {
        self.sockets.values().any(|socket| socket.role == Some(Role::Beacon))
    }
}
