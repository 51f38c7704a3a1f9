//! Sockets of every kind that a test needs, and the results of their calls.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use portkeep::control;
use portkeep_core::{Errno, Token, Transport, wire};
use socket2::{Domain, Protocol, Socket, Type};

/// A socket.
///
/// # Panics
///
/// If the kernel has none of this kind; this applies to the other functions here, too.
pub fn socket(domain: Domain, transport: Transport) -> Socket {
    let (kind, protocol) = match transport {
        Transport::Tcp => (Type::STREAM, Protocol::TCP),
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
    };
    Socket::new(domain, kind, Some(protocol)).expect("a socket")
}

/// TCP over IPv4.
pub fn tcp() -> Socket {
    socket(Domain::IPV4, Transport::Tcp)
}

/// UDP over IPv4.
pub fn udp() -> Socket {
    socket(Domain::IPV4, Transport::Udp)
}

/// TCP over IPv6, IPv4 included unless said otherwise.
pub fn tcp6() -> Socket {
    socket(Domain::IPV6, Transport::Tcp)
}

/// UDP over IPv6, IPv4 included unless said otherwise.
pub fn udp6() -> Socket {
    socket(Domain::IPV6, Transport::Udp)
}

/// Bind to the wildcard address of the socket's family.
pub fn bind(socket: &Socket, port: u16) -> io::Result<()> {
    let any = match socket.domain()? {
        Domain::IPV6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        _ => IpAddr::from(Ipv4Addr::UNSPECIFIED),
    };
    socket.bind(&SocketAddr::from((any, port)).into())
}

/// Bind to an address.
pub fn bind_to(socket: &Socket, address: &str) -> io::Result<()> {
    socket.bind(&address.parse::<SocketAddr>().expect("an address").into())
}

/// Connect to an address.
pub fn connect(socket: &Socket, address: &str) -> io::Result<()> {
    socket.connect(&address.parse::<SocketAddr>().expect("an address").into())
}

/// Set the ports (host byte order) that an automatic choice for this socket may come from (IP_LOCAL_PORT_RANGE, Linux
/// 6.3).
pub fn choose_from(socket: &Socket, ports: std::ops::RangeInclusive<u16>) -> io::Result<()> {
    const IP_LOCAL_PORT_RANGE: libc::c_int = 51;
    let range = u32::from(*ports.end()) << 16 | u32::from(*ports.start());
    set_ip_option(socket, IP_LOCAL_PORT_RANGE, range)
}

/// Make a bind to port 0 fix only the address; connect then chooses the port (IP_BIND_ADDRESS_NO_PORT).
pub fn choose_at_connect(socket: &Socket) -> io::Result<()> {
    set_ip_option(socket, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

fn set_ip_option(socket: &Socket, name: libc::c_int, value: u32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: setsockopt reads four bytes from `value`, which has as many.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, name, (&raw const value).cast(), size_of::<u32>() as u32)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The local port, 0 if there is none.
pub fn port(socket: &Socket) -> u16 {
    socket.local_addr().ok().and_then(|address| address.as_socket()).map_or(0, |address| address.port())
}

/// The error number of a call that must fail.
///
/// # Panics
///
/// If it succeeded.
#[track_caller]
pub fn errno<T: fmt::Debug>(result: io::Result<T>) -> Errno {
    Errno(result.expect_err("this must fail").raw_os_error().expect("an error number"))
}

/// ACQUIRE, and what it granted.
pub fn acquire(socket: &Socket, request: &wire::AcquireRequest) -> io::Result<wire::Grant> {
    control::acquire(socket, request)?;
    control::granted(socket)
}

/// ACQUIRE of `count` ports from `start` (0: the system chooses) for this process.
///
/// # Panics
///
/// If it is refused.
#[track_caller]
pub fn reserve(socket: &Socket, start: u16, count: u16) -> wire::Grant {
    acquire(socket, &wire::AcquireRequest { start, count, ..Default::default() }).expect("the block is granted")
}

/// The token of a grant.
#[track_caller]
pub fn token(grant: &wire::Grant) -> Token {
    Token::new(grant.token).expect("a token is never 0")
}
