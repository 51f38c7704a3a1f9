//! The library over kernel enforcement, each test in a network namespace of its own.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    task::Poll,
    thread,
    time::Duration,
};

use portkeep::{
    AcquireError, AssociateError, BindError, Enforcement, Errno, Info, PortkeepSocket, QueryError, ReleaseError,
    Require, Reservation, Scope, State, Token, Transport, Transports, control, list, lookup, release, version, who,
};
use portkeep_core::wire::{self, AgentMark};
use portkeep_testkit::{Sandbox, eventually, kernel_or_skip, new_namespace};
use socket2::{Domain, Protocol, Socket, Type};

const V4: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;

macro_rules! kernel_test {
    ($(#[$meta:meta])* fn $name:ident() $body:block) => {
        $(#[$meta])*
        #[test]
        fn $name() {
            if !kernel_or_skip(stringify!($name)) {
                return;
            }
            Sandbox::get();
            new_namespace();
            $body
        }
    };
}

fn tcp() -> Socket {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap()
}

fn udp() -> Socket {
    Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap()
}

fn at(port: u16) -> SocketAddr {
    (V4, port).into()
}

fn refused<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
    result.unwrap_err().kind() == io::ErrorKind::AddrInUse
}

kernel_test! {
fn four_ports_for_a_server() {
    let reservation = Reservation::tcp().ports(4).label("four").acquire().unwrap();
    assert_eq!(reservation.enforcement(), Enforcement::Kernel);
    assert_eq!(reservation.ports().count(), 4);
    assert_eq!(reservation.transports(), Transports::Tcp);
    assert_eq!(reservation.state().unwrap().state, State::Active);

    let listeners: Vec<TcpListener> = (0..4).map(|_| reservation.bind_tcp(V4).unwrap()).collect();
    let mut ports: Vec<u16> = listeners.iter().map(|l| l.local_addr().unwrap().port()).collect();
    ports.sort_unstable();
    assert_eq!(ports, reservation.ports().iter().collect::<Vec<_>>());
    assert!(matches!(reservation.bind_tcp(V4), Err(BindError::Exhausted)));
    assert!(matches!(reservation.bind_tcp_port(V4, ports[0]), Err(BindError::InUse { port }) if port == ports[0]));
    assert!(matches!(reservation.bind_tcp_port(V4, 80), Err(BindError::OutsideBlock { port: 80 })));
    assert!(matches!(
        reservation.bind_udp(V4),
        Err(BindError::OtherTransport { transport: Transport::Udp })
    ));
    assert_eq!(reservation.state().unwrap().bound, Some(4));

    let mut client = TcpStream::connect((LOCAL, ports[2])).unwrap();
    let (mut server, _) = listeners.iter().find(|l| l.local_addr().unwrap().port() == ports[2]).unwrap().accept().unwrap();
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
}
}

kernel_test! {
fn dropping_ends_it_and_bound_sockets_stay() {
    let reservation = Reservation::tcp().ports(2).acquire().unwrap();
    let token = reservation.token();
    let listener = reservation.bind_tcp(V4).unwrap();
    drop(reservation);
    assert_eq!(lookup(token).unwrap(), None);
    assert!(matches!(release(token), Err(ReleaseError::Unknown)));
    TcpStream::connect((LOCAL, listener.local_addr().unwrap().port())).unwrap();
}
}

kernel_test! {
fn one_token_for_both_transports() {
    let reservation = Reservation::tcp().ports(2).both().align(2).acquire().unwrap();
    let port = reservation.ports().start();
    assert_eq!(port % 2, 0);
    let _listener = reservation.bind_tcp_port(V4, port).unwrap();
    let socket = reservation.bind_udp_port(V4, port).unwrap();
    assert_eq!(socket.local_addr().unwrap().port(), port);
    assert_eq!(reservation.bind_udp(Ipv6Addr::UNSPECIFIED).unwrap().local_addr().unwrap().port(), port + 1);
    assert_eq!(list().unwrap().len(), 1);
    assert_eq!(who(Transport::Udp, port).unwrap(), who(Transport::Tcp, port).unwrap());
}
}

kernel_test! {
fn the_source_port_of_a_connection_comes_out_of_the_block() {
    let server = TcpListener::bind((LOCAL, 0)).unwrap();
    let peer = server.local_addr().unwrap();
    let reservation = Reservation::tcp().ports(2).both().acquire().unwrap();
    for _ in 0..8 {
        let client = reservation.connect_tcp(peer).unwrap();
        assert!(reservation.ports().contains(client.local_addr().unwrap().port()));
        assert_eq!(server.accept().unwrap().1, client.local_addr().unwrap());
    }
    let datagrams = reservation.connect_udp(peer).unwrap();
    assert!(reservation.ports().contains(datagrams.local_addr().unwrap().port()));
    drop(server);
    let error = reservation.connect_tcp(peer).unwrap_err();
    assert_eq!(error.errno(), Some(Errno(111)));
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::ConnectionRefused);
}
}

kernel_test! {
fn any_socket_can_be_associated() {
    let reservation = Reservation::udp().ports(2).acquire().unwrap();
    let socket = udp();
    assert_eq!(socket.reservation().unwrap(), None);
    reservation.associate(&socket).unwrap();
    assert_eq!(socket.reservation().unwrap().unwrap().token, Some(reservation.token()));
    socket.bind(&at(0).into()).unwrap();
    assert!(matches!(reservation.associate(&socket), Err(AssociateError::AlreadyBound)));

    assert!(matches!(tcp().associate(reservation.token()), Err(AssociateError::Mismatch)));
    assert!(matches!(udp().associate(Token::new(77).unwrap()), Err(AssociateError::Unknown)));
    let (unix, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(matches!(unix.associate(reservation.token()), Err(AssociateError::NotTcpOrUdp)));
    assert!(matches!(unix.owned(), Err(QueryError::NotTcpOrUdp)));

    let other = udp();
    assert!(reservation.ports().contains(reservation.bind(&other, at(0)).unwrap()));
    assert!(matches!(udp().bind_from(reservation.token(), at(0)), Err(BindError::Exhausted)));
    assert!(matches!(
        udp().bind_from(reservation.token(), at(9)),
        Err(BindError::OutsideBlock { port: 9 })
    ));
    let late = udp();
    reservation.associate(&late).unwrap();
    drop(reservation);
    assert_eq!(late.bind(&at(0).into()).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
}
}

kernel_test! {
fn the_owner_socket_owns_and_can_be_passed_on() {
    let owner: OwnedFd = tcp().into();
    let first = Reservation::tcp().start_on(owner.try_clone().unwrap()).unwrap().wait().unwrap();
    let second = Reservation::tcp().ports(3).both().start_on(owner.try_clone().unwrap()).unwrap().wait().unwrap();
    let owned: Vec<_> = owner.owned().unwrap().into_iter().map(|info: Info| info.token.unwrap()).collect();
    assert_eq!(owned, [first.token(), second.token()]);
    assert!(matches!(Reservation::udp().start_on(owner.try_clone().unwrap()), Err(AcquireError::WrongSocket)));

    let parts = second.into_parts();
    let token = parts.tokens[0];
    let second = Reservation::from_parts(parts);
    assert_eq!(second.token(), token);
    let ports = second.ports().clone();
    let parts = second.into_parts();
    assert!(lookup(token).unwrap().is_some());
    let second = Reservation::adopt(parts.owner, token).unwrap();
    assert_eq!((second.ports(), second.transports()), (&ports, Transports::Both));
    second.release().unwrap();
    assert_eq!(owner.owned().unwrap().len(), 1);
    drop((first, owner));
    assert_eq!(list().unwrap(), []);
}
}

kernel_test! {
fn a_leaked_reservation_is_released_by_token() {
    let tcp_token = Reservation::tcp().acquire().unwrap().leak();
    let udp_token = Reservation::udp().acquire().unwrap().leak();
    assert_eq!(list().unwrap().len(), 2);
    release(udp_token).unwrap();
    release(tcp_token).unwrap();
    assert!(matches!(release(tcp_token), Err(ReleaseError::Unknown)));
}
}

kernel_test! {
fn a_token_of_another_namespace_is_recognised() {
    let token = Reservation::tcp().acquire().unwrap().leak();
    thread::spawn(move || {
        new_namespace();
        assert!(matches!(release(token), Err(ReleaseError::OtherNamespace)));
        assert_eq!(lookup(token).unwrap(), None);
        assert_eq!(list().unwrap(), []);
    })
    .join()
    .unwrap();
    release(token).unwrap();
}
}

kernel_test! {
fn a_conflict_is_named() {
    // No other test may play an agent now: this agent would be asked about the port that a socket leaves, and would end
    // before it answers.
    let _none = Agent::turn();
    let pool = version().unwrap().pool.unwrap();
    let first = Reservation::tcp().ports(4).at(pool.start() + 100).label("mine").acquire().unwrap();
    for (start, count, port) in [(98, 4, 100), (102, 1, 102), (103, 9, 103), (90, 30, 100)] {
        let error = Reservation::udp().both().at(pool.start() + start).ports(count).acquire().unwrap_err();
        let text = error.to_string();
        let wanted = format!("{}/tcp belongs to pid ", pool.start() + port);
        assert!(text.starts_with(&wanted) && text.contains("as `mine`, reserved "), "{text}");
        let AcquireError::InUse { by: Some(by), .. } = error else { panic!("{error:?}") };
        assert_eq!(by.token, Some(first.token()));
        assert_eq!(by.owner.map(|owner| owner.pid), Some(std::process::id()));
    }
    // The port is not reserved, but a socket that outlived its reservation has it.
    let listener = first.bind_tcp_port(V4, pool.start() + 101).unwrap();
    drop(first);
    let error = Reservation::tcp().at(pool.start() + 101).acquire().unwrap_err();
    assert!(matches!(error, AcquireError::InUse { by: None, .. }), "{error:?}");
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::AddrInUse);
    drop(listener);
    drop(Reservation::tcp().at(pool.start() + 101).acquire().unwrap());
}
}

kernel_test! {
fn a_refusal_has_its_reason() {
    let error = Reservation::tcp().ports(5000).acquire().unwrap_err();
    assert!(matches!(error, AcquireError::NoRoom { count: 5000 }), "{error:?}");
    let error = Reservation::tcp().scope(Scope::Cgroup(12)).acquire().unwrap_err();
    assert!(matches!(error, AcquireError::ForeignCgroup), "{error:?}");
    let owner: OwnedFd = tcp().into();
    let all: Vec<_> = (0..wire::OWNED)
        .map(|_| Reservation::tcp().start_on(owner.try_clone().unwrap()).unwrap().wait().unwrap())
        .collect();
    let error = Reservation::tcp().start_on(owner).unwrap_err();
    assert!(matches!(error, AcquireError::OverQuota), "{error:?}");
    assert_eq!(list().unwrap().len(), all.len());
}
}

kernel_test! {
fn strict_demands_association() {
    let reservation = Reservation::tcp().strict().acquire().unwrap();
    let port = reservation.ports().start();
    assert!(refused(TcpListener::bind((V4, port))));
    assert!(reservation.state().unwrap().strict);
    drop(reservation.bind_tcp_port(V4, port).unwrap());
}
}

kernel_test! {
fn listings_show_owners_and_enforcement() {
    let reservation = Reservation::udp().ports(3).scope(Scope::User).label("télé").acquire().unwrap();
    let _socket = reservation.bind_udp(V4).unwrap();
    let info = who(Transport::Udp, reservation.ports().last()).unwrap().unwrap();
    assert_eq!(lookup(reservation.token()).unwrap().unwrap(), info);
    assert_eq!((info.name.as_deref(), info.bound), (Some("télé"), Some(1)));
    let owner = info.owner.as_ref().unwrap();
    assert_eq!((owner.pid, owner.uid), (std::process::id(), Some(0)));
    assert_eq!((info.scope, info.strict, info.state), (Some(Scope::User), false, State::Active));
    assert!(info.age().is_some());
    // The same object is read back.
    let json = serde_json::to_string(&info).unwrap();
    assert_eq!(serde_json::from_str::<Info>(&json).unwrap(), info);
    assert!(info.to_string().contains("/udp, pid "));
    assert_eq!(who(Transport::Tcp, reservation.ports().start()).unwrap(), None);
    assert_eq!(list().unwrap(), [info]);
}
}

kernel_test! {
fn held_mode_is_possible_beside_kernel_enforcement() {
    let reservation = Reservation::tcp().ports(2).require(Require::Held).acquire().unwrap();
    assert_eq!(reservation.enforcement(), Enforcement::Held);
    assert!(!version().unwrap().pool.unwrap().overlaps(reservation.ports().first()));
    assert!(refused(TcpListener::bind((V4, reservation.ports().start()))));
}
}

kernel_test! {
/// Others acquire and release all the time; the reservations that stay must be in every listing.
fn listings_are_complete_while_others_come_and_go() {
    // They are at the end of the pool, so a listing finds those that come and go first.
    let last = version().unwrap().pool.unwrap().last();
    let lasting: Vec<_> = (0..10).map(|n| Reservation::tcp().at(last - n).acquire().unwrap()).collect();
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    drop(Reservation::tcp().ports(3).acquire().unwrap());
                }
            });
        }
        for _ in 0..300 {
            let found = list().unwrap();
            let all = lasting.iter().all(|reservation| found.iter().any(|info| info.token == Some(reservation.token())));
            if !all {
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
                panic!("{} of at least {}", found.len(), lasting.len());
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
}

/// Does the agent's work in a test. One test at a time: an agent serves the whole machine.
struct Agent {
    beacon: Option<UdpSocket>,
    _turn: MutexGuard<'static, ()>,
}

impl Agent {
    fn turn() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        Self { beacon: None, _turn: TURN.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    fn start(&mut self) {
        let beacon = UdpSocket::bind((LOCAL, 0)).unwrap();
        let secret = Sandbox::get().loaded().maps().unwrap().config().unwrap().secret;
        let mark = AgentMark { secret, role: wire::AGENT_BEACON, zero: 0 };
        control::agent_mark(&beacon, &mark).unwrap();
        self.beacon = Some(beacon);
    }

    /// Acts like an agent that has seen no socket: it confirms the request, and refuses it if that fails.
    fn try_to_confirm(&self, token: Token) {
        let mut loaded = Sandbox::get().loaded();
        let id = loaded.maps().unwrap().id_of(token).unwrap();
        let admin = loaded.admin().unwrap();
        if let Err(error) = admin.confirm(id, token) {
            assert_eq!(error.errno(), Some(Errno::EADDRINUSE));
            // It may have been refused in the same step.
            let _ = admin.refuse(id, token, Errno::EADDRINUSE);
        }
    }

    fn decide(&self, token: Token, error: Option<Errno>) {
        let mut loaded = Sandbox::get().loaded();
        let id = loaded.maps().unwrap().id_of(token).unwrap();
        let admin = loaded.admin().unwrap();
        match error {
            None => admin.confirm(id, token).unwrap(),
            Some(error) => admin.refuse(id, token, error).unwrap(),
        }
    }
}

kernel_test! {
fn blocks_outside_the_pool_wait_for_the_agent() {
    let mut agent = Agent::turn();
    let request = Reservation::tcp().at(7000).ports(3);
    assert!(matches!(request.acquire(), Err(AcquireError::AgentAbsent)));

    agent.start();
    let mut pending = request.start().unwrap();
    assert!(pending.poll().is_pending());
    assert_eq!(pending.ports().to_string(), "7000-7002");
    assert_eq!(lookup(pending.token()).unwrap().unwrap().state, State::Pending);
    agent.decide(pending.token(), None);
    let Poll::Ready(Ok(reservation)) = pending.poll() else { panic!("confirmed") };
    drop(reservation.bind_tcp(V4).unwrap());
    drop(reservation);

    // A pending request does not prevent a bind.
    let mut pending = request.start().unwrap();
    let other = TcpListener::bind((V4, 7001)).unwrap();
    agent.try_to_confirm(pending.token());
    let Poll::Ready(Err(error)) = pending.poll() else { panic!("refused") };
    assert!(matches!(error, AcquireError::InUse { .. }), "{error:?}");
    drop((pending, other));

    // Cancelled: nothing is left.
    request.start().unwrap().cancel();
    assert_eq!(list().unwrap(), []);

    // Refused, and acquired anew.
    let mut pending = request.start().unwrap();
    agent.decide(pending.token(), Some(Errno::EADDRINUSE));
    let Poll::Ready(Err(error)) = pending.poll() else { panic!("refused") };
    assert!(matches!(error, AcquireError::InUse { by: None, transports: Transports::Tcp, .. }), "{error:?}");
    drop(pending);

    // Ended by an administrator while it waits.
    let mut pending = request.start().unwrap();
    {
        let mut loaded = Sandbox::get().loaded();
        let id = loaded.maps().unwrap().id_of(pending.token()).unwrap();
        loaded.admin().unwrap().end(id, pending.token()).unwrap();
    }
    assert!(matches!(pending.poll(), Poll::Ready(Err(AcquireError::Cancelled))));

    // This thread waits, and another one confirms.
    let waiting = thread::scope(|scope| {
        let waiting = request.start().unwrap();
        let token = waiting.token();
        let agent = &agent;
        scope.spawn(move || {
            thread::sleep(Duration::from_millis(5));
            agent.decide(token, None);
        });
        waiting.wait().unwrap()
    });
    drop(waiting);

    // The agent ends before it has checked the ports (R13).
    let pending = request.start().unwrap();
    agent.beacon = None;
    assert!(matches!(pending.wait(), Err(AcquireError::AgentAbsent)));
    assert_eq!(list().unwrap(), []);
}
}

kernel_test! {
/// A quick agent decides before the requester asks for the first time, and a refusal is reported only once.
fn an_immediate_refusal_is_reported_as_one() {
    let mut agent = Agent::turn();
    agent.start();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let outcomes: Vec<_> = thread::scope(|scope| {
        scope.spawn(|| {
            let mut loaded = Sandbox::get().loaded();
            let (maps, admin) = (loaded.maps().unwrap(), loaded.admin().unwrap());
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for (id, reservation) in maps.reservations().map(Result::unwrap) {
                    if reservation.state() == wire::PENDING {
                        // It may have ended already.
                        let _ = admin.refuse(id, reservation.token().unwrap(), Errno::EADDRINUSE);
                    }
                }
            }
        });
        let outcomes = (0..3000).map(|_| Reservation::tcp().at(7000).acquire()).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        outcomes
    });
    let others: Vec<_> =
        outcomes.iter().filter(|outcome| !matches!(outcome, Err(AcquireError::InUse { .. }))).collect();
    assert!(others.is_empty(), "{} of {}, such as {:?}", others.len(), outcomes.len(), others[0]);
}
}

kernel_test! {
fn two_pending_requests_of_one_socket_are_kept_apart() {
    let mut agent = Agent::turn();
    agent.start();
    let owner: OwnedFd = udp().into();
    let begin = |port| Reservation::udp().at(port).start_on(owner.as_fd().try_clone_to_owned().unwrap()).unwrap();
    let (mut first, mut second) = (begin(7100), begin(7200));
    assert!(first.poll().is_pending() && second.poll().is_pending());
    agent.decide(first.token(), Some(Errno::EADDRINUSE));
    agent.decide(second.token(), None);
    assert!(matches!(first.poll(), Poll::Ready(Err(AcquireError::InUse { .. }))));
    let Poll::Ready(Ok(second)) = second.poll() else { panic!("confirmed") };
    assert_eq!(second.ports().start(), 7200);
}
}

kernel_test! {
fn r13_a_wait_for_the_agent_ends_by_a_limit_or_when_it_is_stopped() {
    let mut agent = Agent::turn();
    agent.start();
    let request = Reservation::tcp().at(7000).timeout(Duration::from_millis(20));
    let error = request.acquire().unwrap_err();
    assert!(matches!(error, AcquireError::AgentSilent { .. }), "{error:?}");
    assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::TimedOut);
    let error = request.start().unwrap().wait_for(Duration::MAX, || true).unwrap_err();
    assert!(matches!(error, AcquireError::Interrupted), "{error:?}");
    assert_eq!(error.errno(), Some(Errno::EINTR));
    assert_eq!(list().unwrap(), []);
}
}

kernel_test! {
fn a_pending_request_outlives_later_ones_of_its_socket() {
    let mut agent = Agent::turn();
    agent.start();
    let owner: OwnedFd = udp().into();
    let again = || owner.as_fd().try_clone_to_owned().unwrap();
    let begin = |port| Reservation::udp().at(port).start_on(again()).unwrap();
    let mut first = begin(7300);
    // Released.
    drop(Reservation::udp().start_on(again()).unwrap().wait().unwrap());
    assert!(first.poll().is_pending());
    // Cancelled.
    begin(7310).cancel();
    assert!(first.poll().is_pending());
    // Refused: only the refused request reports that.
    let mut last = begin(7320);
    agent.decide(last.token(), Some(Errno::EADDRINUSE));
    assert!(first.poll().is_pending());
    let Poll::Ready(outcome) = last.poll() else { panic!("decided") };
    assert!(matches!(outcome, Err(AcquireError::InUse { .. })), "{outcome:?}");
    agent.decide(first.token(), None);
    let Poll::Ready(Ok(first)) = first.poll() else { panic!("confirmed") };
    assert_eq!(first.ports().start(), 7300);
    drop(first);
    assert_eq!(list().unwrap(), []);
}
}

kernel_test! {
fn threads_that_share_an_owner_socket_get_a_reservation_each() {
    let owner: OwnedFd = udp().into();
    let many = || -> Vec<Reservation> {
        let one = || Reservation::udp().start_on(owner.as_fd().try_clone_to_owned().unwrap()).unwrap().wait().unwrap();
        (0..30).map(|_| one()).collect()
    };
    for _ in 0..50 {
        let all: Vec<Reservation> = thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(many)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let tokens: std::collections::HashSet<Token> = all.iter().map(Reservation::token).collect();
        assert_eq!(tokens.len(), 120);
        drop(all);
        assert_eq!(list().unwrap(), []);
    }
}
}

kernel_test! {
fn l2_a_list_is_all_or_nothing_and_one_reservation() {
    let asked = || Reservation::tcp().ports("61022,61010,61020-61021").label("a label of 24 bytes here");
    let reservation = asked().acquire().unwrap();
    assert_eq!(reservation.ports().to_string(), "61010,61020-61022");
    let blocks: Vec<String> = reservation.blocks().map(|(block, _)| block.to_string()).collect();
    assert_eq!(blocks, ["61010", "61020-61022"]);

    // In listings it is one, with a token for each block.
    let state = reservation.state().unwrap();
    assert_eq!(list().unwrap(), std::slice::from_ref(&state));
    let tokens: Vec<Token> = reservation.blocks().map(|(_, token)| token).collect();
    assert_eq!(state.blocks.iter().map(|block| block.token.unwrap()).collect::<Vec<_>>(), tokens);
    assert_eq!((state.token, state.ports.count()), (Some(tokens[0]), 4));
    assert_eq!(state.name.as_deref(), Some("a label of 24 by"));
    for port in reservation.ports() {
        assert_eq!(who(Transport::Tcp, port).unwrap().as_ref(), Some(&state), "{port}");
    }
    assert_eq!(lookup(tokens[1]).unwrap().as_ref(), Some(&state));
    assert_eq!(reservation.owned().unwrap(), [state]);
    assert_eq!(who(Transport::Tcp, 61011).unwrap(), None);

    // Each port comes out of its block, and a draw goes on with the next block.
    let named = reservation.bind_tcp_port(V4, 61021).unwrap();
    let drawn: Vec<TcpListener> = (0..3).map(|_| reservation.bind_tcp(V4).unwrap()).collect();
    let mut ports: Vec<u16> = drawn.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
    ports.sort_unstable();
    assert_eq!(ports, [61010, 61020, 61022]);
    assert!(matches!(reservation.bind_tcp(V4), Err(BindError::Exhausted)));
    assert!(matches!(reservation.bind(&tcp(), at(61011)), Err(BindError::OutsideBlock { port: 61011 })));
    assert_eq!(reservation.state().unwrap().bound, Some(4));
    drop(drawn);

    // If a second list cannot have one port, it gets none of the others.
    let error = Reservation::tcp().ports("61005,61022,61030").acquire().unwrap_err();
    assert!(matches!(error, AcquireError::InUse { ports, .. } if ports.start() == 61022), "{error:?}");
    assert_eq!(list().unwrap().len(), 1);
    let others = Reservation::tcp().ports("61005,61030").acquire().unwrap();
    assert_eq!(list().unwrap().len(), 2);
    others.release().unwrap();

    // It ends as a whole: by release, and with the last descriptor of its owner socket.
    let owner = reservation.into_parts().owner;
    assert_eq!(list().unwrap().len(), 1);
    let again = Reservation::adopt(owner, tokens[1]).unwrap();
    assert_eq!(again.ports().to_string(), "61010,61020-61022");
    drop(again);
    assert_eq!(list().unwrap(), []);
    drop(named);
    // A program that another test is starting has our sockets until its exec.
    let mut again = None;
    eventually(|| {
        again = asked().acquire().ok();
        again.is_some()
    });
    drop(again.unwrap().into_parts().owner);
    assert_eq!(list().unwrap(), []);
}
}

kernel_test! {
fn l2_two_lists_of_one_label_on_one_socket_are_two() {
    let owner: OwnedFd = tcp().into();
    let on = |ports: &str| {
        Reservation::tcp().ports(ports).label("same").start_on(owner.try_clone().unwrap()).unwrap().wait().unwrap()
    };
    let (one, other) = (on("61000,61002"), on("61004,61006"));
    let listed: Vec<String> = list().unwrap().iter().map(|info| info.ports.to_string()).collect();
    assert_eq!(listed, ["61000,61002", "61004,61006"]);
    one.release().unwrap();
    assert_eq!(list().unwrap(), [other.state().unwrap()]);
}
}

kernel_test! {
fn l3_a_list_of_one_block_is_the_block() {
    let label = "a label of 24 bytes here";
    let reservation = Reservation::tcp().ports("61000,61001").label(label).acquire().unwrap();
    let state = reservation.state().unwrap();
    assert_eq!((state.list, state.name.as_deref()), (None, Some(label)));
    assert_eq!(state.ports.as_block().map(|block| block.count()), Some(2));
    drop(reservation);
    let range = Reservation::tcp().ports("61000,61002").scope(Scope::User).ephemeral().acquire();
    assert!(matches!(range, Err(AcquireError::Malformed(_))), "{range:?}");
    let wrong = Reservation::udp().ports("61000/tcp").acquire();
    assert!(matches!(wrong, Err(AcquireError::Malformed(_))), "{wrong:?}");
}
}

kernel_test! {
fn a_request_that_waits_is_woken_by_the_end_of_a_reservation_and_not_before() {
    let first = Reservation::tcp().at(61000).acquire().unwrap();
    let (tried, tries) = mpsc::channel();
    thread::scope(|scope| {
        let request = Reservation::tcp().at(61000).wait(Duration::MAX);
        let waiting = scope.spawn(move || {
            request.acquire_unless(None, |why| {
                if why.is_some() {
                    tried.send(()).unwrap();
                }
                false
            })
        });
        tries.recv().unwrap();
        tries.recv().unwrap();
        // From now on it sleeps. The ends of other sockets do not cause a request.
        for _ in 0..100 {
            TcpListener::bind((LOCAL, 0)).unwrap();
        }
        assert!(tries.try_recv().is_err());
        drop(first);
        assert_eq!(waiting.join().unwrap().unwrap().ports().start(), 61000);
    });
    assert!(tries.try_recv().is_err());
    // By default, and if a request cannot succeed later, there is no wait.
    let held = Reservation::tcp().at(61001).acquire().unwrap();
    assert!(matches!(Reservation::tcp().at(61001).acquire(), Err(AcquireError::InUse { .. })));
    let limit = Duration::from_millis(20);
    assert!(matches!(Reservation::tcp().at(61001).wait(limit).acquire(), Err(AcquireError::InUse { .. })));
    drop(held);
    let too_many = Reservation::tcp().ports(5000).wait(Duration::MAX).acquire();
    assert!(matches!(too_many, Err(AcquireError::NoRoom { count: 5000 })), "{too_many:?}");
}
}
