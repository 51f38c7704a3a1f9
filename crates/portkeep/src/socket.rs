//! Makes plain sockets, and finds out what a socket is.

use std::{io, net::IpAddr, os::fd::AsFd};

use portkeep_core::Transport;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Which address family a new socket shall have.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// Any that the system has: the socket only carries control codes.
    Any,
    Of(Domain),
}

impl Kind {
    pub(crate) fn of(ip: IpAddr) -> Self {
        Self::Of(if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 })
    }
}

pub(crate) fn new_socket(transport: Transport, kind: Kind) -> io::Result<Socket> {
    let (kind_of, protocol) = match transport {
        Transport::Tcp => (Type::STREAM, Protocol::TCP),
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
    };
    let make = |domain| Socket::new(domain, kind_of, Some(protocol));
    match kind {
        Kind::Of(domain) => make(domain),
        Kind::Any => make(Domain::IPV4).or_else(|_| make(Domain::IPV6)),
    }
}

/// TCP, UDP or neither, by the rule of the BPF programs.
pub(crate) fn transport_of(socket: &Socket) -> io::Result<Option<Transport>> {
    let domain = socket.domain()?;
    if domain != Domain::IPV4 && domain != Domain::IPV6 {
        return Ok(None);
    }
    Ok(match (socket.r#type()?, socket.protocol()?) {
        (Type::STREAM, Some(Protocol::TCP)) => Some(Transport::Tcp),
        (Type::DGRAM, Some(Protocol::UDP)) => Some(Transport::Udp),
        _ => None,
    })
}

pub(crate) fn local_port(socket: impl AsFd) -> u16 {
    let address = SockRef::from(&socket).local_addr();
    address.ok().and_then(|address| address.as_socket()).map_or(0, |address| address.port())
}
