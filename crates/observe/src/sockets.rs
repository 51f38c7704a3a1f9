//! The sockets of a network namespace, as sock_diag lists them.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr as SocketAddress},
    sync::OnceLock,
    time::Duration,
};

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable, NlasIterator,
};
use netlink_sys::{Socket as Netlink, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use portkeep_core::{PortSet, Transport};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, ipproto, socket_with},
};

/// The types of requests, of `include/uapi/linux/inet_diag.h` and `sock_diag.h`. The first lists the TCP sockets of both
/// families in one walk through the kernel's tables, which are long on a machine with much memory.
const TCPDIAG_GETSOCK: u16 = 18;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Of `include/net/tcp_states.h`.
const TCP_ESTABLISHED: u8 = 1;
const TCP_SYN_SENT: u8 = 2;
const TCP_SYN_RECV: u8 = 3;
const TCP_LISTEN: u8 = 10;
/// `TCPF_BOUND_INACTIVE`: TCP sockets that are bound and nothing else.
///
/// Kernel commit 91051f003948 ("tcp: Dump bound-only sockets in inet_diag."),
/// Linux 6.8; older kernels ignore the bit.
const BOUND_INACTIVE: u32 = 1 << 13;
/// Every state before that one.
const ACTIVE: u32 = BOUND_INACTIVE - 1;
/// `INET_DIAG_CGROUP_ID` of `include/uapi/linux/inet_diag.h`, Linux 5.9.
const CGROUP_ID: u16 = 21;
/// `INET_DIAG_REQ_BYTECODE`.
const BYTECODE: u16 = 1;
/// The length of `struct inet_diag_msg`.
const MESSAGE: usize = 72;
/// `idiag_timer` of a connection in TIME_WAIT, whose state may also be FIN_WAIT2.
const TIMER_OF_TIME_WAIT: u8 = 3;

/// The state of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SocketState {
    /// TCP: it listens.
    Listening,
    /// Bound, and not connected. TCP: it does not listen.
    Bound,
    /// A connection, or a connected UDP socket.
    Connected,
    /// TCP: the connection is being made.
    Connecting,
    /// TCP: the connection is half-closed or closing.
    Closing,
    /// TCP: only the memory of a connection.
    TimeWait,
}

/// As listings and JSON have it.
impl fmt::Display for SocketState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listening => "listening",
            Self::Bound => "bound",
            Self::Connected => "connected",
            Self::Connecting => "connecting",
            Self::Closing => "closing",
            Self::TimeWait => "TIME-WAIT",
        })
    }
}

/// A socket that has a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Its transport.
    pub transport: Transport,
    /// Its own end.
    pub local: SocketAddress,
    /// The other end, if it is connected.
    pub peer: Option<SocketAddress>,
    /// Its state.
    pub state: SocketState,
    /// When the kernel ends it by itself: of TIME_WAIT, and of what no process has open.
    pub remaining: Option<Duration>,
    /// The user that made it; `None` of TIME_WAIT.
    pub uid: Option<u32>,
    /// Inode of its descriptors; `None` if no process has one open.
    pub inode: Option<u64>,
    /// Id of the cgroup in which it was made, on Linux 5.9 and later.
    pub cgroup: Option<u64>,
}

impl Socket {
    /// Its port, host byte order.
    pub const fn port(&self) -> u16 {
        self.local.port()
    }

    /// Whether it has its port bound or listens on it: then the port is in use, whatever its options. An accepted
    /// connection has the port of its listener without having bound it, and a client's looks the same.
    pub const fn holds(&self) -> bool {
        matches!(self.transport, Transport::Udp) || matches!(self.state, SocketState::Listening | SocketState::Bound)
    }
}

/// The sockets of the calling thread's network namespace.
#[derive(Debug, Default)]
pub struct Listing {
    /// One for each socket.
    pub sockets: Vec<Socket>,
    /// TCP sockets that are bound and do not listen are among them. Not so before Linux 6.8.
    pub complete: bool,
}

impl Listing {
    /// Those of a transport. Without sock_diag in the kernel: nothing, and incomplete.
    ///
    /// # Errors
    ///
    /// If the kernel does not answer, or this process may open no more files.
    pub fn of(transport: Transport) -> io::Result<Self> {
        Self::filtered(transport, &[])
    }

    /// Those on some ports (host byte order). The kernel leaves out the others.
    ///
    /// # Errors
    ///
    /// As [`of`](Self::of).
    pub fn on(transport: Transport, ports: &PortSet) -> io::Result<Self> {
        let mut listing = Self::filtered(transport, &filter(ports))?;
        listing.sockets.retain(|socket| ports.contains(socket.port()));
        Ok(listing)
    }

    fn filtered(transport: Transport, filter: &[u8]) -> io::Result<Self> {
        let mut listing = Self::default();
        let result = match transport {
            // Two steps in this order, so that a socket which starts to listen in between is found in one of them: a
            // single dump walks the listeners first.
            Transport::Tcp => {
                // A kernel without sock_diag says so here already; that is looked at below.
                bound_sockets_are_listed().and_then(|listed| {
                    listing.complete = listed;
                    listing.add(transport, BOUND_INACTIVE, filter)?;
                    listing.add(transport, ACTIVE, filter)
                })
            }
            Transport::Udp => {
                listing.complete = true;
                listing.add(transport, ACTIVE, filter)
            }
        };
        match result {
            Err(error) if is_missing(&error) => Ok(Self::default()),
            other => other.map(|()| listing),
        }
    }

    fn add(&mut self, transport: Transport, states: u32, filter: &[u8]) -> io::Result<()> {
        Query { transport, states, filter }.dump(|socket| self.sockets.push(socket))
    }
}

/// The most runs of ports that a filter has. The length of a program is limited.
const RUNS: usize = 1000;

/// A program for `INET_DIAG_REQ_BYTECODE` that accepts the sockets on these ports; empty: it accepts all.
///
/// Each step is a `struct inet_diag_bc_op`: a code, the way on if it holds, and the way on if not, both in bytes. A comparison
/// is two steps, of which the second has the port. To arrive at the end accepts, and to go beyond it by one step refuses.
fn filter(ports: &PortSet) -> Vec<u8> {
    const JUMP: u8 = 1;
    const AT_LEAST: u8 = 2;
    const AT_MOST: u8 = 3;
    const RUN: usize = 20;
    let runs: Vec<(u16, u16)> = ports.spans().take(RUNS + 1).collect();
    let mut program = Vec::new();
    if runs.len() > RUNS {
        return program;
    }
    let mut step = |code: u8, yes: u8, no: u16| {
        program.extend([code, yes]);
        program.extend(no.to_ne_bytes());
    };
    for (index, (first, last)) in runs.iter().enumerate() {
        // On to the next run, and after the last one beyond the end.
        step(AT_LEAST, 8, 20);
        step(0, 0, *first);
        step(AT_MOST, 8, 12);
        step(0, 0, *last);
        let left = runs.len() - index - 1;
        if left > 0 {
            step(JUMP, 4, (left * RUN) as u16);
        }
    }
    program
}

/// The kernel has no sock_diag, or not for this family.
fn is_missing(error: &io::Error) -> bool {
    [Errno::NOENT, Errno::OPNOTSUPP].iter().any(|missing| error.raw_os_error() == Some(missing.raw_os_error()))
}

/// The sockets that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Query<'a> {
    transport: Transport,
    states: u32,
    /// The program that chooses; empty: all.
    filter: &'a [u8],
}

impl Query<'_> {
    fn dump(self, mut each: impl FnMut(Socket)) -> io::Result<()> {
        match self.transport {
            Transport::Tcp => self.ask(Diag::Tcp(self.states, self.filter.to_owned()), &mut each),
            Transport::Udp => {
                let request = |family| Diag::Udp(family, self.states, self.filter.to_owned());
                self.ask(request(AF_INET), &mut each)?;
                match self.ask(request(AF_INET6), &mut each) {
                    // A kernel without IPv6.
                    Err(error) if is_missing(&error) => Ok(()),
                    other => other,
                }
            }
        }
    }

    fn ask(self, request: Diag, each: &mut impl FnMut(Socket)) -> io::Result<()> {
        let mut netlink = Netlink::new(NETLINK_SOCK_DIAG)?;
        netlink.bind_auto()?;
        netlink.connect(&SocketAddr::new(0, 0))?;

        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut message = NetlinkMessage::new(header, request.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        netlink.send(&bytes, 0)?;

        loop {
            let (bytes, _) = netlink.recv_from_full()?;
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<Diag>::deserialize(rest).map_err(io::Error::other)?;
                match message.payload {
                    NetlinkPayload::InnerMessage(Diag::Socket(message)) => {
                        if let Some(socket) = self.read(&message) {
                            each(socket);
                        }
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

    fn read(self, message: &Message) -> Option<Socket> {
        let local = SocketAddress::new(message.address(8)?, message.port(4));
        let peer = SocketAddress::new(message.address(24)?, message.port(6));
        let (state, timer) = (message.bytes[1], message.bytes[2]);
        let [expires, _, _, uid, inode] = [52, 56, 60, 64, 68].map(|at| message.number(at));
        let state = match self.transport {
            Transport::Udp if peer.port() != 0 => SocketState::Connected,
            Transport::Udp => SocketState::Bound,
            Transport::Tcp if self.states == BOUND_INACTIVE => SocketState::Bound,
            Transport::Tcp if timer == TIMER_OF_TIME_WAIT => SocketState::TimeWait,
            Transport::Tcp => match state {
                TCP_LISTEN => SocketState::Listening,
                TCP_ESTABLISHED => SocketState::Connected,
                TCP_SYN_SENT | TCP_SYN_RECV => SocketState::Connecting,
                _ => SocketState::Closing,
            },
        };
        let ends_by_itself = state == SocketState::TimeWait || state == SocketState::Closing && inode == 0;
        Some(Socket {
            transport: self.transport,
            local,
            peer: Some(peer).filter(|peer| peer.port() != 0),
            state,
            remaining: (ends_by_itself && timer != 0).then(|| Duration::from_millis(expires.into())),
            uid: (state != SocketState::TimeWait).then_some(uid),
            inode: Some(u64::from(inode)).filter(|inode| *inode != 0),
            cgroup: message.cgroup,
        })
    }
}

/// A `struct inet_diag_msg` and the attribute of it that matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    bytes: [u8; MESSAGE],
    cgroup: Option<u64>,
}

impl Message {
    fn port(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn number(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"))
    }

    fn address(&self, at: usize) -> Option<IpAddr> {
        let sixteen: [u8; 16] = self.bytes[at..at + 16].try_into().expect("sixteen bytes");
        match self.bytes[0] {
            AF_INET => Some(Ipv4Addr::new(sixteen[0], sixteen[1], sixteen[2], sixteen[3]).into()),
            AF_INET6 => Some(Ipv6Addr::from(sixteen).into()),
            _ => None,
        }
    }
}

/// A request, and the sockets that answer it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Diag {
    /// A `struct inet_diag_req`: the sockets of both families. The states and the filter.
    Tcp(u32, Vec<u8>),
    /// A `struct inet_diag_req_v2`: those of one family.
    Udp(u8, u32, Vec<u8>),
    Socket(Message),
    Other,
}

impl From<Diag> for NetlinkPayload<Diag> {
    fn from(message: Diag) -> Self {
        Self::InnerMessage(message)
    }
}

impl NetlinkDeserializable for Diag {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        let Some((message, attributes)) = payload.split_first_chunk::<MESSAGE>() else { return Ok(Self::Other) };
        let mut cgroup = None;
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute?;
            if attribute.kind() == CGROUP_ID {
                cgroup = attribute.value().first_chunk::<8>().map(|bytes| u64::from_ne_bytes(*bytes));
            }
        }
        Ok(Self::Socket(Message { bytes: *message, cgroup }))
    }
}

impl NetlinkSerializable for Diag {
    fn message_type(&self) -> u16 {
        if matches!(self, Self::Tcp(..)) { TCPDIAG_GETSOCK } else { SOCK_DIAG_BY_FAMILY }
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::Tcp(_, filter) => 60 + length_of(filter),
            Self::Udp(.., filter) => 56 + length_of(filter),
            Self::Socket(_) | Self::Other => 0,
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.fill(0);
        let attribute = match self {
            Self::Tcp(states, filter) => {
                buffer[52..56].copy_from_slice(&states.to_ne_bytes());
                Some((60, filter))
            }
            Self::Udp(family, states, filter) => {
                (buffer[0], buffer[1]) = (*family, ipproto::UDP.as_raw().get() as u8);
                buffer[4..8].copy_from_slice(&states.to_ne_bytes());
                Some((56, filter))
            }
            Self::Socket(_) | Self::Other => None,
        };
        if let Some((at, filter)) = attribute.filter(|(_, filter)| !filter.is_empty()) {
            buffer[at..at + 2].copy_from_slice(&(length_of(filter) as u16).to_ne_bytes());
            buffer[at + 2..at + 4].copy_from_slice(&BYTECODE.to_ne_bytes());
            buffer[at + 4..].copy_from_slice(filter);
        }
    }
}

/// The length of the attribute with the filter.
fn length_of(filter: &[u8]) -> usize {
    if filter.is_empty() { 0 } else { 4 + filter.len() }
}

/// Found by trying, once, before Linux 6.8: distributions add features to older kernels.
fn bound_sockets_are_listed() -> io::Result<bool> {
    static LISTED: OnceLock<bool> = OnceLock::new();
    if release().is_some_and(|release| release >= (6, 8)) {
        return Ok(true);
    }
    if let Some(listed) = LISTED.get() {
        return Ok(*listed);
    }
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    bind(&socket, &std::net::SocketAddr::from(([0, 0, 0, 0], 0)))?;
    let port = std::net::SocketAddr::try_from(getsockname(&socket)?)?.port();
    let mut listed = false;
    let query = Query { transport: Transport::Tcp, states: BOUND_INACTIVE, filter: &[] };
    query.dump(|socket| listed |= socket.port() == port)?;
    Ok(*LISTED.get_or_init(|| listed))
}

/// The kernel's version, its first two numbers.
fn release() -> Option<(u32, u32)> {
    let uname = rustix::system::uname();
    let mut numbers = uname.release().to_str().ok()?.split(['.', '-']).map_while(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use portkeep_core::PortRange;

    use super::*;

    fn on(transport: Transport, port: u16) -> Vec<Socket> {
        Listing::on(transport, &PortRange::single(port).unwrap().into()).unwrap().sockets
    }

    #[test]
    fn sockets_have_their_ends_their_state_and_their_user() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let client = TcpStream::connect(there).unwrap();
        let of_client = &on(Transport::Tcp, client.local_addr().unwrap().port())[0];
        assert_eq!((of_client.local, of_client.peer), (client.local_addr().unwrap(), Some(there)));
        assert_eq!((of_client.state, of_client.holds()), (SocketState::Connected, false));
        let uid = rustix::process::getuid().as_raw();
        assert_eq!((of_client.uid, of_client.remaining), (Some(uid), None));
        let listens = on(Transport::Tcp, there.port());
        assert!(listens.iter().any(|socket| socket.state == SocketState::Listening && socket.holds()), "{listens:?}");

        let listeners = ["[::1]:0", "127.0.0.1:0"].map(|address| TcpListener::bind(address).unwrap());
        let every = Listing::of(Transport::Tcp).unwrap().sockets;
        for listener in listeners {
            let there = listener.local_addr().unwrap();
            assert!(every.iter().any(|socket| socket.local == there), "{there} is not in {every:?}");
        }

        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let found = on(Transport::Udp, udp.local_addr().unwrap().port());
        assert_eq!((found[0].local, found[0].state), (udp.local_addr().unwrap(), SocketState::Bound));
    }

    #[test]
    fn the_kernel_lists_the_ports_that_are_asked_for_and_no_others() {
        let listeners = ["[::1]:0", "127.0.0.1:0", "127.0.0.1:0"].map(|address| TcpListener::bind(address).unwrap());
        let ports = listeners.each_ref().map(|listener| listener.local_addr().unwrap().port());
        let single = |port| PortRange::single(port).unwrap();
        for asked in [&ports[..1], &ports[1..], &ports[..]] {
            let asked: PortSet = asked.iter().copied().map(single).collect();
            let found = Listing::filtered(Transport::Tcp, &filter(&asked)).unwrap().sockets;
            assert!(found.iter().all(|socket| asked.contains(socket.port())), "{asked}: {found:?}");
            let found: PortSet = found.iter().map(|socket| single(socket.port())).collect();
            assert_eq!(found, asked);
        }
        // More runs of ports than a filter has.
        let every_second: PortSet = (1..40000).step_by(2).map(single).collect();
        let found = Listing::on(Transport::Tcp, &every_second).unwrap().sockets;
        for port in ports {
            assert_eq!(every_second.contains(port), found.iter().any(|socket| socket.port() == port), "{port}");
        }
    }

    #[test]
    fn what_is_left_of_a_connection_has_an_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let port = client.local_addr().unwrap().port();
        let (accepted, _) = listener.accept().unwrap();
        // The side that closes first has the TIME_WAIT.
        drop(client);
        drop(accepted);
        let left = std::iter::repeat_with(|| on(Transport::Tcp, port))
            .find_map(|sockets| sockets.into_iter().find(|socket| socket.state == SocketState::TimeWait))
            .unwrap();
        assert_eq!((left.inode, left.uid), (None, None));
        assert!(left.remaining.unwrap() > Duration::ZERO && left.remaining.unwrap() <= Duration::from_secs(60));
    }
}
