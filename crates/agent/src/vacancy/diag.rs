//! The sockets of a network namespace as sock_diag lists them.

use std::{io, net::SocketAddr as SocketAddress, sync::OnceLock};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, TCP_ESTABLISHED, TCP_LISTEN},
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags, Timer},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use portkeep_core::{PortRange, Transport};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, ipproto, socket_with},
};

/// `TCPF_BOUND_INACTIVE`: TCP sockets that are bound and nothing else.
///
/// Kernel commit 91051f003948 ("tcp: Dump bound-only sockets in inet_diag."),
/// Linux 6.8; older kernels ignore the bit.
const BOUND_INACTIVE: u32 = 1 << 13;
/// Every state before that one.
const ACTIVE: u32 = BOUND_INACTIVE - 1;

/// The use that a socket makes of its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Use {
    /// Bound or listening: in use, whatever its options.
    Held,
    /// A connection, also one half-closed or still being made.
    Connection,
    /// Only the memory of a connection.
    TimeWait,
}

/// The ports in use, one entry for each socket.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) sockets: Vec<(u16, Use)>,
    /// Sockets that are bound and nothing else are among them.
    pub(super) complete: bool,
}

impl Listing {
    /// The sockets of the calling thread's network namespace. Without sock_diag in the kernel: nothing, and incomplete.
    pub(super) fn of(transport: Transport) -> io::Result<Self> {
        let mut listing = Self::default();
        let result = match transport {
            // Two steps in this order, so that a socket which starts to listen in between is found in one of them: a
            // single dump walks the listeners first.
            Transport::Tcp => {
                // A kernel without sock_diag says so here already; that is looked at below.
                bound_sockets_are_listed().and_then(|listed| {
                    listing.complete = listed;
                    listing.add(IPPROTO_TCP, BOUND_INACTIVE)?;
                    listing.add(IPPROTO_TCP, ACTIVE)
                })
            }
            Transport::Udp => {
                listing.complete = true;
                listing.add(IPPROTO_UDP, ACTIVE)
            }
        };
        match result {
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(Self::default()),
            other => other.map(|()| listing),
        }
    }

    /// All uses of one port.
    pub(super) fn uses(&self, port: u16) -> impl Iterator<Item = Use> {
        self.sockets.iter().filter(move |(other, _)| *other == port).map(|(_, kind)| *kind)
    }

    fn add(&mut self, protocol: u8, states: u32) -> io::Result<()> {
        dump_both(protocol, states, |header| {
            self.sockets.push((header.socket_id.source_port, use_of(header, protocol, states)));
        })
    }
}

fn use_of(header: &InetResponseHeader, protocol: u8, states: u32) -> Use {
    if states == BOUND_INACTIVE || protocol == IPPROTO_UDP || header.state == TCP_LISTEN {
        Use::Held
    } else if header.timer == Some(Timer::TimeWait) {
        Use::TimeWait
    } else {
        Use::Connection
    }
}

/// A socket that uses a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its own address and port.
    pub local: SocketAddress,
    /// The other end, if it is connected.
    pub peer: Option<SocketAddress>,
    /// Its state, as [`portkeep::BoundSocket::state`] has it.
    pub state: &'static str,
    /// Inode of its descriptors; `None` if no process has one open.
    pub inode: Option<u64>,
    /// The user that made it. Of a TIME-WAIT the kernel knows none and reports 0.
    pub uid: u32,
}

/// The sockets on the ports of a block, in the calling thread's network namespace; bound ones without a connection first.
pub fn holders(transport: Transport, ports: PortRange) -> io::Result<Vec<Holder>> {
    let mut found = Vec::new();
    let mut add = |protocol: u8, states: u32| {
        dump_both(protocol, states, |header| {
            let id = &header.socket_id;
            if ports.contains(id.source_port) {
                let peer = SocketAddress::new(id.destination_address, id.destination_port);
                let kind = use_of(header, protocol, states);
                let closing = header.state != TCP_ESTABLISHED;
                let state = match kind {
                    Use::Held if protocol == IPPROTO_UDP && peer.port() != 0 => "connected",
                    Use::Held if header.state == TCP_LISTEN => "listening",
                    Use::Held => "bound",
                    Use::TimeWait => "TIME-WAIT",
                    Use::Connection if closing => "closing",
                    Use::Connection => "connected",
                };
                found.push((
                    kind,
                    Holder {
                        local: SocketAddress::new(id.source_address, id.source_port),
                        peer: Some(peer).filter(|peer| peer.port() != 0),
                        state,
                        inode: Some(u64::from(header.inode)).filter(|inode| *inode != 0),
                        uid: header.uid,
                    },
                ));
            }
        })
    };
    match transport {
        Transport::Tcp => {
            if bound_sockets_are_listed()? {
                add(IPPROTO_TCP, BOUND_INACTIVE)?;
            }
            add(IPPROTO_TCP, ACTIVE)?;
        }
        Transport::Udp => add(IPPROTO_UDP, ACTIVE)?,
    }
    found.sort_by_key(|(kind, _)| *kind);
    Ok(found.into_iter().map(|(_, holder)| holder).collect())
}

fn dump_both(protocol: u8, states: u32, mut each: impl FnMut(&InetResponseHeader)) -> io::Result<()> {
    dump(AF_INET, protocol, states, &mut each)?;
    match dump(AF_INET6, protocol, states, &mut each) {
        // A kernel without IPv6 has no handler for it.
        Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
        other => other,
    }
}

/// Found by trying, once: a version number says little about a distribution's kernel.
fn bound_sockets_are_listed() -> io::Result<bool> {
    static LISTED: OnceLock<bool> = OnceLock::new();
    if let Some(listed) = LISTED.get() {
        return Ok(*listed);
    }
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    bind(&socket, &std::net::SocketAddr::from(([0, 0, 0, 0], 0)))?;
    let address = std::net::SocketAddr::try_from(getsockname(&socket)?)?;
    let mut listed = false;
    dump(AF_INET, IPPROTO_TCP, BOUND_INACTIVE, &mut |header| listed |= header.socket_id.source_port == address.port())?;
    Ok(*LISTED.get_or_init(|| listed))
}

fn dump(family: u8, protocol: u8, states: u32, each: &mut impl FnMut(&InetResponseHeader)) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;

    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::from_bits_retain(states),
        socket_id: SocketId::new_v4(),
    });
    let mut message = NetlinkMessage::new(header, request.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(answer)) => {
                    each(&answer.header);
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            // Messages are aligned to four bytes.
            let length = (message.header.length as usize).next_multiple_of(4).max(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}
