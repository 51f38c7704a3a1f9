//! The library without kernel enforcement. Requires no right. As root, each test has a namespace of its own.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use portkeep::{
    AcquireError, AlignError, AssociateError, BindError, Enforcement, MalformedRequest, PortRangeError, PortkeepSocket,
    QueryError, ReleaseError, Request, Require, Reservation, Scope, Token, Transport, Transports, lookup, release,
    version,
};
use socket2::{Domain, Protocol, Socket, Type};

const V4: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;
const V6: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

/// If it is allowed, a namespace of its own separates a test from the others and from the machine's ports.
fn isolate() {
    const CAP_SYS_ADMIN: u32 = 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
    if u64::from_str_radix(effective, 16).unwrap() & 1 << CAP_SYS_ADMIN != 0 {
        portkeep_testkit::new_namespace();
    }
}

fn tcp() -> Request {
    Reservation::tcp().require(Require::Held)
}

fn udp() -> Request {
    Reservation::udp().require(Require::Held)
}

fn in_use<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
    result.unwrap_err().kind() == io::ErrorKind::AddrInUse
}

fn socket(domain: Domain, transport: Transport) -> Socket {
    match transport {
        Transport::Tcp => Socket::new(domain, Type::STREAM, Some(Protocol::TCP)),
        Transport::Udp => Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)),
    }
    .unwrap()
}

/// False for ::1 if IPv6 is switched off.
fn is_local(ip: &IpAddr) -> bool {
    UdpSocket::bind((*ip, 0)).is_ok()
}

/// Nobody can bind the port, on any address and with any option.
fn is_held(transport: Transport, port: u16) -> bool {
    let addresses: [IpAddr; 4] = [V4.into(), LOCAL.into(), V6.into(), Ipv6Addr::LOCALHOST.into()];
    addresses.into_iter().filter(is_local).all(|ip| {
        let outsider = socket(if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 }, transport);
        outsider.set_reuse_address(true).unwrap();
        outsider.set_reuse_port(true).unwrap();
        in_use(outsider.bind(&SocketAddr::new(ip, port).into()))
    })
}

#[test]
fn held_ports_are_everybody_elses_taboo() {
    isolate();
    let reservation = tcp().ports(4).both().align(4).label("x").acquire().unwrap();
    assert_eq!(reservation.enforcement(), Enforcement::Held);
    assert_eq!(reservation.transports(), Transports::Both);
    assert_eq!(reservation.ports().start() % 4, 0);
    for port in reservation.ports() {
        assert!(is_held(Transport::Tcp, port) && is_held(Transport::Udp, port));
    }
    let info = reservation.state().unwrap();
    assert_eq!((info.bound, info.name.as_deref()), (Some(0), Some("x")));
    assert_eq!(
        (info.owner.as_ref().map(|owner| owner.pid), info.enforcement),
        (Some(std::process::id()), Some(Enforcement::Held))
    );
    assert_eq!(lookup(reservation.token()).unwrap(), Some(info));
    let ports = reservation.ports().clone();
    drop(reservation);
    for port in &ports {
        TcpListener::bind((V4, port)).unwrap();
    }
}

#[test]
fn listeners_in_every_form() {
    isolate();
    let reservation = tcp().ports(4).acquire().unwrap();
    let start = reservation.ports().start();
    let ips: [IpAddr; 4] = [V6.into(), V4.into(), LOCAL.into(), Ipv6Addr::LOCALHOST.into()];
    let mut listeners = Vec::new();
    for (ip, port) in ips.into_iter().filter(is_local).zip(start..) {
        let listener = reservation.bind_tcp(ip).unwrap();
        assert_eq!(listener.local_addr().unwrap(), SocketAddr::new(ip, port));
        let peer: SocketAddr = match ip {
            IpAddr::V6(ip) if ip.is_loopback() => (ip, port).into(),
            _ => (LOCAL, port).into(),
        };
        TcpStream::connect(peer).unwrap();
        listener.accept().unwrap();
        listeners.push(listener);
    }
    while listeners.len() < 4 {
        listeners.push(reservation.bind_tcp(LOCAL).unwrap());
    }
    assert!(matches!(reservation.bind_tcp(V4), Err(BindError::Exhausted)));
    assert!(matches!(reservation.bind_tcp_port(V4, start), Err(BindError::InUse { port }) if port == start));
    assert!(matches!(reservation.bind_tcp_port(V4, start - 1), Err(BindError::OutsideBlock { .. })));
    assert!(matches!(reservation.bind_udp(V4), Err(BindError::OtherTransport { .. })));
    assert_eq!(reservation.state().unwrap().bound, Some(4));
    // A port that was given up is drawn again.
    drop(listeners.remove(1));
    assert_eq!(reservation.bind_tcp(V4).unwrap().local_addr().unwrap().port(), start + 1);
}

#[test]
fn datagrams_from_before_are_not_delivered() {
    isolate();
    for ip in [IpAddr::from(V4), V6.into(), LOCAL.into()] {
        let reservation = udp().acquire().unwrap();
        let peer = SocketAddr::from((LOCAL, reservation.ports().start()));
        let client = UdpSocket::bind((LOCAL, 0)).unwrap();
        client.send_to(b"too early", peer).unwrap();
        let server = reservation.bind_udp(ip).unwrap();
        assert!(is_bound_alone(&server));
        client.send_to(b"now", peer).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = [0; 16];
        let (length, _) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"now");
    }
}

/// SO_REUSEADDR is off again after the moment in which the holder and its successor had the port.
fn is_bound_alone(server: &UdpSocket) -> bool {
    let outsider = socket(Domain::IPV4, Transport::Udp);
    outsider.set_reuse_address(true).unwrap();
    in_use(outsider.bind(&SocketAddr::from((LOCAL, server.local_addr().unwrap().port())).into()))
}

#[test]
fn sockets_of_the_programs_own() {
    isolate();
    let reservation = tcp().ports(2).both().acquire().unwrap();
    let token = reservation.token();
    let start = reservation.ports().start();
    let own = socket(Domain::IPV4, Transport::Tcp);
    assert!(matches!(own.associate(token), Err(AssociateError::Held)));
    assert_eq!(own.bind_from(token, (V4, start + 1).into()).unwrap(), start + 1);
    assert!(matches!(own.bind_from(token, (V4, 0).into()), Err(BindError::Associate(AssociateError::AlreadyBound))));
    assert!(!own.reuse_address().unwrap());
    own.listen(1).unwrap();
    TcpStream::connect((LOCAL, start + 1)).unwrap();
    assert_eq!(reservation.bind(&socket(Domain::IPV6, Transport::Udp), (V6, 0).into()).unwrap(), start);
    let not_here = SocketAddr::from(([192, 0, 2, 1], start));
    let error = reservation.bind(&socket(Domain::IPV4, Transport::Tcp), not_here).unwrap_err();
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::AddrNotAvailable);
    // The port is still held after the failure.
    assert!(is_held(Transport::Tcp, start));
    let (unix, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(matches!(unix.bind_from(token, (V4, 0).into()), Err(BindError::Associate(AssociateError::NotTcpOrUdp))));
}

#[test]
fn connections_have_their_source_ports_apart() {
    isolate();
    let server = TcpListener::bind((LOCAL, 0)).unwrap();
    let peer = server.local_addr().unwrap();
    let reservation = tcp().ports(2).both().acquire().unwrap();
    let clients = [reservation.connect_tcp(peer).unwrap(), reservation.connect_tcp(peer).unwrap()];
    let ports: HashSet<u16> = clients.iter().map(|client| client.local_addr().unwrap().port()).collect();
    assert_eq!(ports, reservation.ports().iter().collect());
    assert_eq!(reservation.connect_tcp(peer).unwrap_err().errno(), Some(portkeep::Errno::EADDRINUSE),);
    assert!(reservation.ports().contains(reservation.connect_udp(peer).unwrap().local_addr().unwrap().port()));
}

#[test]
fn tokens_work_inside_the_process() {
    isolate();
    let token = udp().ports(2).acquire().unwrap().leak();
    let port = lookup(token).unwrap().unwrap().ports.start();
    let there = thread::spawn(move || is_held(Transport::Udp, port));
    // A new thread is in the namespace of the one that started it.
    assert!(there.join().unwrap());
    release(token).unwrap();
    // The BPF programs do not know the token, or there are none.
    assert!(matches!(release(token), Err(ReleaseError::Unknown | ReleaseError::KernelAbsent)));
    UdpSocket::bind((V4, port)).unwrap();
}

#[test]
fn a_specific_block_is_all_or_nothing() {
    isolate();
    let free = tcp().ports(4).acquire().unwrap();
    let ports = free.ports().clone();
    drop(free);
    let outsider = TcpListener::bind((V4, ports.last())).unwrap();
    let error = tcp().ports(ports.clone()).acquire().unwrap_err();
    assert!(matches!(error, AcquireError::InUse { .. }), "{error:?}");
    for port in ports.start()..ports.last() {
        TcpListener::bind((V4, port)).unwrap();
    }
    drop(outsider);
    assert_eq!(tcp().ports(ports.clone()).acquire().unwrap().ports(), &ports);
}

#[test]
fn opened_ports_can_be_bound_by_other_programs_that_mean_them() {
    isolate();
    let reservation = tcp().ports(2).both().acquire().unwrap();
    let port = reservation.ports().start();
    reservation.open_held(Transports::Tcp).unwrap();
    let bind = |transport, reuse| {
        let socket = socket(Domain::IPV4, transport);
        socket.set_reuse_address(reuse).unwrap();
        socket.bind(&SocketAddr::from((V4, port)).into()).map(|()| socket)
    };
    assert!(in_use(bind(Transport::Tcp, false)));
    let server = bind(Transport::Tcp, true).unwrap();
    server.listen(1).unwrap();
    assert!(matches!(tcp().at(port).acquire(), Err(AcquireError::InUse { .. })), "two hold it");
    drop(server);
    // The next server can bind it too. The other transport is still held.
    bind(Transport::Tcp, true).unwrap();
    assert!(is_held(Transport::Udp, port));
    reservation.open_held(Transports::Both).unwrap();
    bind(Transport::Udp, false).unwrap();
    // This process can still bind them.
    let listener = reservation.bind_tcp_port(V4, port).unwrap();
    assert!(in_use(bind(Transport::Tcp, true)));
    drop(listener);
    drop(reservation.bind_udp_port(V4, port).unwrap());
}

#[test]
fn held_mode_refuses_requests_that_require_the_kernel() {
    isolate();
    let error = tcp().scope(Scope::User).acquire().unwrap_err();
    assert!(matches!(error, AcquireError::HeldCannot { .. }));
    assert_eq!(error.errno(), Some(portkeep::Errno::EOPNOTSUPP));
}

#[test]
fn without_kernel_enforcement_held_mode_reports_so() {
    isolate();
    if version().is_ok() {
        portkeep_testkit::note("SKIPPED without_kernel_enforcement_held_mode_reports_so: it is up on this machine");
        return;
    }
    assert_eq!(portkeep::enforcement(), Enforcement::Held);
    let reservation = Reservation::tcp().acquire().unwrap();
    assert_eq!(reservation.enforcement(), Enforcement::Held);
    let error = Reservation::tcp().require(Require::Kernel).acquire().unwrap_err();
    assert!(matches!(error, AcquireError::KernelAbsent));
    let unknown = Token::new(77).unwrap();
    let own = socket(Domain::IPV4, Transport::Tcp);
    assert!(matches!(own.associate(unknown), Err(AssociateError::KernelAbsent)));
    assert!(matches!(own.reservation(), Err(QueryError::KernelAbsent)));
    assert!(matches!(release(unknown), Err(ReleaseError::KernelAbsent)));
    assert!(matches!(lookup(unknown), Err(QueryError::KernelAbsent)));
    // `None` would be wrong: only the holders know which ports they hold.
    assert!(matches!(portkeep::who(Transport::Tcp, reservation.ports().start()), Err(QueryError::KernelAbsent)));
    assert!(matches!(portkeep::list(), Err(QueryError::KernelAbsent)));
}

#[test]
fn malformed_requests_have_different_errors() {
    let reason = |request: Request| match request.acquire().unwrap_err() {
        AcquireError::Malformed(reason) => reason,
        error => panic!("{error:?}"),
    };
    assert!(matches!(reason(tcp().ports(0)), MalformedRequest::Block(PortRangeError::Empty)));
    assert!(matches!(reason(tcp().at(65535).ports(2)), MalformedRequest::Block(PortRangeError::PastEnd { .. })));
    assert!(matches!(reason(tcp().align(6)), MalformedRequest::Align(AlignError::NotPowerOfTwo(6))));
    assert!(matches!(
        reason(tcp().at(7001).align(2)),
        MalformedRequest::Align(AlignError::Unaligned { start: 7001, align: 2 })
    ));
    assert!(matches!(reason(tcp().label("x".repeat(25))), MalformedRequest::Label(_)));
}

#[test]
fn many_at_once_never_share_a_port() {
    isolate();
    let all: Vec<Reservation> = thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..10).map(|_| tcp().ports(3).acquire().unwrap()).collect::<Vec<_>>()))
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let ports: HashSet<u16> = all.iter().flat_map(|reservation| reservation.ports()).collect();
    assert_eq!(ports.len(), 120);
}

#[test]
fn l2_a_list_is_held_whole_or_not_at_all() {
    isolate();
    let free = tcp().ports(5).acquire().unwrap();
    let first = free.ports().start();
    drop(free);
    let list = format!("{first},{}", first + 2);
    let reservation = tcp().ports(list.as_str()).label("list").acquire().unwrap();
    assert_eq!(reservation.ports().to_string(), list);
    let state = reservation.state().unwrap();
    assert_eq!((state.ports.to_string(), state.name.as_deref(), state.blocks.len()), (list, Some("list"), 2));
    assert!(is_held(Transport::Tcp, first) && is_held(Transport::Tcp, first + 2));
    let drawn = [reservation.bind_tcp(V4).unwrap(), reservation.bind_tcp(V4).unwrap()];
    assert!(matches!(reservation.bind_tcp(V4), Err(BindError::Exhausted)));

    let more = format!("{},{}", first + 2, first + 4);
    assert!(matches!(tcp().ports(more.as_str()).acquire(), Err(AcquireError::InUse { .. })));
    TcpListener::bind((V4, first + 4)).unwrap();
    drop((reservation, drawn));
    TcpListener::bind((V4, first + 2)).unwrap();
}
