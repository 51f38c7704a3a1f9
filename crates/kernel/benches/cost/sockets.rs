//! Sockets to measure with.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::OnceLock,
};

use portkeep::control;
use portkeep_core::wire::{AcquireRequest, Grant, OWNED};
use portkeep_testkit::TestCgroup;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

pub(crate) fn tcp() -> Socket {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket")
}

/// For IPv6 and IPv4.
pub(crate) fn dual_stack() -> Socket {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    socket.set_only_v6(false).expect("both families");
    socket
}

/// The wildcard address of both families with this port (host byte order).
pub(crate) fn any6(port: u16) -> SockAddr {
    SocketAddr::from(([0u16; 8], port)).into()
}

/// The wildcard address with this port (host byte order).
pub(crate) fn any(port: u16) -> SockAddr {
    SocketAddr::from(([0, 0, 0, 0], port)).into()
}

/// Two ends of a connection over loopback.
pub(crate) fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let client = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
    let (server, _) = listener.accept().expect("its other end");
    (client, server)
}

pub(crate) fn transfer(from: &mut TcpStream, to: &mut TcpStream) {
    let mut buffer = [0u8; 65536];
    from.write_all(&buffer).expect("sending");
    to.read_exact(&mut buffer).expect("receiving");
}

/// Leave the benchmark's cgroup for a cgroup beside it, where our programs are not attached. It is not the root: a
/// socket costs more in any cgroup than in the root.
pub(crate) fn leave_cgroup() {
    static OUTSIDE: OnceLock<TestCgroup> = OnceLock::new();
    let outside = OUTSIDE.get_or_init(|| TestCgroup::new("outside").expect("a cgroup"));
    outside.enter(std::process::id()).expect("moving out");
}

/// `count` reservations of one port each, on as few sockets as possible.
pub(crate) fn acquire_singles(count: usize) -> Vec<(std::rc::Rc<Socket>, Grant)> {
    let mut held = Vec::with_capacity(count);
    while held.len() < count {
        let socket = std::rc::Rc::new(tcp());
        for _ in 0..OWNED.min(count - held.len()) {
            control::acquire(&*socket, &AcquireRequest { count: 1, ..Default::default() }).expect("a port");
            held.push((socket.clone(), control::granted(&*socket).expect("the grant")));
        }
    }
    held
}

/// How often this thread has waited so far.
pub(crate) fn voluntary_switches() -> u64 {
    let status = fs::read_to_string("/proc/thread-self/status").expect("proc");
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).expect("the count");
    line.trim().parse().expect("a number")
}
