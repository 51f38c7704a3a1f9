//! Outsiders that let the kernel choose their ports until it has none left. The declared ports are in its range.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use portkeep_core::Transport;
use portkeep_testkit::sockets::{choose_at_connect, choose_from, port, socket};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket};

use crate::{Declared, tally::Slot};

/// Where automatic choices come from: all declared ports but the privileged one are in it.
pub(crate) const RANGE: std::ops::RangeInclusive<u16> = 5400..=8500;
/// Where connections go to, outside the range.
pub(crate) const DESTINATION: u16 = 20000;

/// Allow as many sockets as possible: more than there are ports.
fn many_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// Take every connection, and end it.
pub(crate) fn listen(listener: TcpListener) {
    for connection in listener.incoming() {
        drop(connection);
    }
}

/// Listen for [`connect`].
pub(crate) fn listener() -> TcpListener {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, DESTINATION)).unwrap()
}

fn is_dry(error: &io::Error) -> bool {
    // A connection that finds no port, a bind that finds none, a datagram that finds none.
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse | io::ErrorKind::WouldBlock)
}

/// A socket that the kernel chose a port for, in one way or another.
fn tcp(round: usize, declared: &[Declared]) -> io::Result<Option<Socket>> {
    let (domain, local): (_, IpAddr) = match round % 2 {
        0 => (Domain::IPV4, Ipv4Addr::LOCALHOST.into()),
        _ => (Domain::IPV6, Ipv6Addr::LOCALHOST.into()),
    };
    let socket = socket(domain, Transport::Tcp);
    // It shall not leave its port in TIME_WAIT, nor wait for ever.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_write_timeout(Some(Duration::from_secs(1)))?;
    let to = |port| SocketAddr::from((local, port)).into();
    let wanted = declared[round / 16 % declared.len()].port;
    match round / 2 % 8 {
        // Connect to a declared port: while its server is stopped, the socket could connect to itself. This is rare, so
        // that the server is not overloaded.
        0 if round % 512 < 2 => {
            let itself = socket.connect(&to(wanted)).is_ok() && port(&socket) == wanted;
            return Ok(itself.then_some(socket));
        }
        // Choose from a range that is only a declared port, if the kernel has the option for that.
        1 if choose_from(&socket, wanted..=wanted).is_ok() => {
            return Ok(socket.connect(&to(DESTINATION)).is_ok().then_some(socket));
        }
        2 => {
            choose_at_connect(&socket)?;
            socket.bind(&to(0))?;
        }
        3 => {
            socket.set_reuse_address(true)?;
            socket.bind(&to(0))?;
        }
        // Listening without a bind chooses a port, too.
        4 => return socket.listen(1).map(|()| Some(socket)),
        _ => {}
    }
    match socket.connect(&to(DESTINATION)) {
        Err(error) if is_dry(&error) => Err(error),
        // Perhaps too many sockets connect. The port was chosen all the same.
        _ => Ok(Some(socket)),
    }
}

fn udp(round: usize) -> io::Result<Option<Socket>> {
    let (domain, local): (_, IpAddr) = match round % 2 {
        0 => (Domain::IPV4, Ipv4Addr::LOCALHOST.into()),
        _ => (Domain::IPV6, Ipv6Addr::LOCALHOST.into()),
    };
    let socket = socket(domain, Transport::Udp);
    let to = SocketAddr::from((local, DESTINATION));
    match round / 2 % 3 {
        0 => socket.connect(&to.into())?,
        1 => socket.bind(&SocketAddr::from((local, 0)).into())?,
        // No process receives it. The error is reported later.
        _ => drop(socket.send_to(b"?", &to.into())?),
    }
    Ok(Some(socket))
}

/// Without end: use ports until none is left, then release half of them.
pub(crate) fn exhaust(slot: &Slot<'_>, transport: Transport, declared: &[Declared]) {
    many_descriptors();
    let forbidden: Vec<u16> = declared
        .iter()
        .filter(|declared| declared.transports.contains(transport))
        .map(|declared| declared.port)
        .collect();
    let mut held = Vec::new();
    for round in 0.. {
        let made = match transport {
            Transport::Tcp => tcp(round, declared),
            Transport::Udp => udp(round),
        };
        match made {
            Ok(None) => {}
            Ok(Some(socket)) => {
                let port = port(&socket);
                if forbidden.contains(&port) {
                    slot.wrong(&format!("the kernel chose {port}/{transport} in round {round}"));
                }
                slot.count(|counts| counts.tries += 1);
                held.push(socket);
            }
            Err(error) if is_dry(&error) => {
                slot.count(|counts| counts.dry += 1);
                let mut kept = false;
                held.retain(|_| {
                    kept = !kept;
                    kept
                });
                // A process that holds only a few ports waits, so that the others can release some.
                if held.len() < 10 {
                    thread::sleep(Duration::from_millis(1));
                }
                slot.count(|counts| counts.sweeps += 1);
            }
            Err(error) => slot.wrong(&format!("round {round} over {transport}: {error}")),
        }
        slot.publish();
    }
}

/// Connect until no port is left. Returns all ports that were chosen.
pub(crate) fn all_chosen() -> impl Iterator<Item = u16> {
    many_descriptors();
    let mut held = Vec::new();
    loop {
        let socket = socket(Domain::IPV4, Transport::Tcp);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        match socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, DESTINATION)).into()) {
            Ok(()) => held.push(socket),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable, "{error}");
                return held.into_iter().map(|socket| port(&socket));
            }
        }
    }
}
