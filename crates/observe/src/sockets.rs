//! The sockets of a network namespace, as sock_diag lists them.

use std::{fmt, io, net::SocketAddr, sync::OnceLock, time::Duration};

use portkeep_core::{PortSet, Transport};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, ipproto, socket_with};

use crate::sock_diag::{Filter, Message, dump, is_missing};

/// Of `include/net/tcp_states.h`.
const TCP_ESTABLISHED: u8 = 1;
const TCP_SYN_SENT: u8 = 2;
const TCP_SYN_RECV: u8 = 3;
const TCP_LISTEN: u8 = 10;
/// `TCPF_BOUND_INACTIVE`: TCP sockets that are only bound.
///
/// Kernel commit 91051f003948 ("tcp: Dump bound-only sockets in inet_diag."),
/// Linux 6.8; older kernels ignore the bit.
const BOUND_INACTIVE: u32 = 1 << 13;
/// Every state before that one.
const ACTIVE: u32 = BOUND_INACTIVE - 1;
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
    pub local: SocketAddr,
    /// The other end, if it is connected.
    pub peer: Option<SocketAddr>,
    /// Its state.
    pub state: SocketState,
    /// When the kernel ends it: of TIME_WAIT. The timers of other states are those of the next packet.
    pub remaining: Option<Duration>,
    /// The user that made it; `None` if no process has it open.
    pub uid: Option<u32>,
    /// Inode of its descriptors; `None` if no process has one open.
    pub inode: Option<u64>,
    /// Id of the cgroup in which it was made, on Linux 5.9 and later.
    pub cgroup: Option<u64>,
}

impl Socket {
    fn read(transport: Transport, states: u32, message: &Message) -> Option<Self> {
        let (local, peer) = (message.local()?, message.peer()?);
        let (timer, inode) = (message.timer(), message.inode());
        let state = match transport {
            Transport::Udp if peer.port() != 0 => SocketState::Connected,
            Transport::Udp => SocketState::Bound,
            Transport::Tcp if states == BOUND_INACTIVE => SocketState::Bound,
            Transport::Tcp if timer == TIMER_OF_TIME_WAIT => SocketState::TimeWait,
            Transport::Tcp => match message.state() {
                TCP_LISTEN => SocketState::Listening,
                TCP_ESTABLISHED => SocketState::Connected,
                TCP_SYN_SENT | TCP_SYN_RECV => SocketState::Connecting,
                _ => SocketState::Closing,
            },
        };
        Some(Self {
            transport,
            local,
            peer: Some(peer).filter(|peer| peer.port() != 0),
            state,
            remaining: (timer == TIMER_OF_TIME_WAIT).then(|| Duration::from_millis(message.expires().into())),
            uid: (inode != 0).then(|| message.uid()),
            inode: Some(u64::from(inode)).filter(|inode| *inode != 0),
            cgroup: message.cgroup,
        })
    }

    /// Its port, host byte order.
    pub const fn port(&self) -> u16 {
        self.local.port()
    }

    /// Whether it has its port bound or listens on it: then the port is in use, with any options. An accepted
    /// connection has the port of its listener without a bind, and a client's looks the same.
    pub const fn holds(&self) -> bool {
        matches!(self.transport, Transport::Udp) || matches!(self.state, SocketState::Listening | SocketState::Bound)
    }
}

/// The sockets of one network namespace.
#[derive(Debug, Default)]
pub struct Listing {
    /// One for each socket.
    pub sockets: Vec<Socket>,
    /// Whether TCP sockets that are bound and do not listen are listed, too. Before Linux 6.8 they are not.
    pub complete: bool,
}

impl Listing {
    /// The sockets of a transport. If the kernel has no sock_diag: nothing, and incomplete.
    ///
    /// # Errors
    ///
    /// If the kernel does not answer, or this process may open no more files.
    pub fn of(transport: Transport) -> io::Result<Self> {
        Self::filtered(transport, &Filter::NONE)
    }

    /// The sockets on some ports (host byte order). The kernel omits the others.
    ///
    /// # Errors
    ///
    /// As [`of`](Self::of).
    pub fn on(transport: Transport, ports: &PortSet) -> io::Result<Self> {
        let mut listing = Self::filtered(transport, &Filter::of(ports))?;
        // The filter accepts all sockets if there are too many runs of ports.
        listing.sockets.retain(|socket| ports.contains(socket.port()));
        Ok(listing)
    }

    fn filtered(transport: Transport, filter: &Filter) -> io::Result<Self> {
        let mut listing = Self::default();
        let result = match transport {
            // Two dumps in this order: if a socket starts to listen in between, one of them contains it. A single dump
            // reads the listeners first.
            Transport::Tcp => {
                // If the kernel has no sock_diag, this reports it already; the error is handled below.
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

    fn add(&mut self, transport: Transport, states: u32, filter: &Filter) -> io::Result<()> {
        dump(transport, states, filter, |message| self.sockets.extend(Socket::read(transport, states, message)))
    }
}

/// Found by one trial before Linux 6.8, because distributions add features to older kernels.
fn bound_sockets_are_listed() -> io::Result<bool> {
    static LISTED: OnceLock<bool> = OnceLock::new();
    if release().is_some_and(|release| release >= (6, 8)) {
        return Ok(true);
    }
    if let Some(listed) = LISTED.get() {
        return Ok(*listed);
    }
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    bind(&socket, &SocketAddr::from(([0, 0, 0, 0], 0)))?;
    let port = SocketAddr::try_from(getsockname(&socket)?)?.port();
    let mut listed = false;
    dump(Transport::Tcp, BOUND_INACTIVE, &Filter::NONE, |message| {
        listed |= message.local().is_some_and(|local| local.port() == port);
    })?;
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
    use std::{
        io::Write,
        net::{TcpListener, TcpStream, UdpSocket},
    };

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
            let found = Listing::filtered(Transport::Tcp, &Filter::of(&asked)).unwrap().sockets;
            assert!(found.iter().all(|socket| asked.contains(socket.port())), "{asked}: {found:?}");
            let found: PortSet = found.iter().map(|socket| single(socket.port())).collect();
            assert_eq!(found, asked);
        }
        // More runs of ports than a filter can have.
        let every_second: PortSet = (1..40000).step_by(2).map(single).collect();
        let found = Listing::on(Transport::Tcp, &every_second).unwrap().sockets;
        for port in ports {
            assert_eq!(every_second.contains(port), found.iter().any(|socket| socket.port() == port), "{port}");
        }
    }

    #[test]
    fn a_closed_connection_with_unsent_data_has_no_known_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let port = client.local_addr().unwrap().port();
        // It reads nothing.
        let _peer = listener.accept().unwrap();
        client.set_nonblocking(true).unwrap();
        while (&client).write(&[0; 4096]).is_ok() {}
        drop(client);
        let left = &on(Transport::Tcp, port)[0];
        assert_eq!((left.state, left.inode, left.uid, left.remaining), (SocketState::Closing, None, None, None));
    }

    #[test]
    fn a_connection_in_time_wait_has_an_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let port = client.local_addr().unwrap().port();
        let (accepted, _) = listener.accept().unwrap();
        // The side that closes first gets the TIME_WAIT.
        drop(client);
        drop(accepted);
        let left = std::iter::repeat_with(|| on(Transport::Tcp, port))
            .find_map(|sockets| sockets.into_iter().find(|socket| socket.state == SocketState::TimeWait))
            .unwrap();
        assert_eq!((left.inode, left.uid), (None, None));
        assert!(left.remaining.unwrap() > Duration::ZERO && left.remaining.unwrap() <= Duration::from_secs(60));
    }
}
