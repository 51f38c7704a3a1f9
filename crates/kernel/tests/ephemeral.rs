//! Private ephemeral ranges, rules E1 to E7, with real sockets and processes.

use std::fs;

use portkeep::control;
use portkeep_core::{
    Align, Errno, Transport, Transports,
    persistent::Audience,
    wire::{self, AcquireRequest, AgentMark},
};
use portkeep_kernel::{CreateError, RingEventKind, Wanted};
use portkeep_testkit::{
    Below, REQUIRE, World, audit,
    process::{Child, become_user, in_child, in_groups},
    skip,
    sockets::{
        acquire, bind, bind_to, choose_at_connect, connect, errno, port, reserve, socket, tcp, tcp6, token, udp, udp6,
    },
};
use socket2::{Domain, Protocol, Socket, Type};

/// Linux's number of MPTCP, which the C library's headers of older distributions lack.
const IPPROTO_MPTCP: i32 = 262;
const USER: u32 = 65534;
const OTHER: u32 = 65533;

fn request(start: u16, count: u16, flags: u32, scope: u16) -> AcquireRequest {
    AcquireRequest { start, count, flags: flags | wire::EPHEMERAL, scope, ..Default::default() }
}

/// A range of the process scope of this process.
#[track_caller]
fn range(owner: &Socket, start: u16, count: u16, flags: u32) -> wire::Grant {
    acquire(owner, &request(start, count, flags, wire::SCOPE_PROCESS)).expect("the range is granted")
}

/// The port that a bind to port 0 returns.
#[track_caller]
fn chosen(socket: &Socket) -> u16 {
    bind(socket, 0).expect("a port");
    port(socket)
}

fn mptcp() -> Option<Socket> {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(IPPROTO_MPTCP))).ok()
}

#[test]
fn e1_binds_to_port_0_draw_from_the_range_whatever_the_socket() {
    let Some(world) = World::enter("e1") else { return };
    let owner = tcp();
    let made = range(&owner, 61000, 100, wire::BOTH);
    let inside = |port: u16, what: &str| assert!((61000..61100).contains(&port), "{what}: {port}");
    for (domain, addresses) in [
        (Domain::IPV4, &["0.0.0.0:0", "127.0.0.1:0", "127.8.9.1:0"][..]),
        (Domain::IPV6, &["[::]:0", "[::1]:0", "[::ffff:127.0.0.1]:0"][..]),
    ] {
        for transport in Transport::ALL {
            for address in addresses {
                let s = socket(domain, transport);
                bind_to(&s, address).unwrap();
                inside(port(&s), address);
                assert_eq!(audit::uses(&world.maps(), world.netns(), transport, port(&s)), 1, "{address}");
            }
            if domain == Domain::IPV6 {
                let s = socket(domain, transport);
                s.set_only_v6(true).unwrap();
                inside(chosen(&s), "v6 only");
            }
            let s = socket(domain, transport);
            s.set_reuse_port(true).unwrap();
            inside(chosen(&s), "SO_REUSEPORT");
            // The rest of a group binds the number itself.
            let second = socket(domain, transport);
            second.set_reuse_port(true).unwrap();
            bind(&second, port(&s)).unwrap();
        }
    }
    if let Some(server) = mptcp() {
        inside(chosen(&server), "MPTCP");
        server.listen(1).unwrap();
        assert_eq!(audit::uses(&world.maps(), world.netns(), Transport::Tcp, port(&server)), 1);
    }
    // An associated socket draws from its own reservation.
    let other = reserve(&owner, 62000, 2);
    let associated = tcp();
    control::associate(&associated, token(&other)).unwrap();
    assert_eq!(chosen(&associated), 62000);
    world.assert_consistent();
    // After the end the kernel chooses again, and bound sockets keep their ports.
    let kept = tcp();
    let kept_port = chosen(&kept);
    control::release(&owner, token(&made)).unwrap();
    let s = tcp();
    assert!(!(61000..61100).contains(&chosen(&s)));
    assert_eq!(port(&kept), kept_port);
    drop((kept, s, associated, owner));
    world.assert_empty();
}

#[test]
fn e1_a_range_of_one_transport_is_for_that_one() {
    let Some(world) = World::enter("e1_transport") else { return };
    let (tcp_owner, udp_owner) = (tcp(), udp());
    range(&tcp_owner, 61000, 10, 0);
    assert_eq!(chosen(&tcp()), 61000);
    assert!(!(61000..61010).contains(&chosen(&udp())));
    // UDP may have a range of its own.
    range(&udp_owner, 61020, 10, 0);
    assert_eq!((chosen(&tcp()), chosen(&udp())), (61001, 61020));
    drop(tcp_owner);
    assert!(!(61000..61030).contains(&chosen(&tcp())));
    assert_eq!(chosen(&udp()), 61021);
    drop(udp_owner);
    world.assert_empty();
}

#[test]
fn e2_a_port_given_up_stays_in_the_scope_and_comes_round_last() {
    let Some(world) = World::enter("e2") else { return };
    let owner = tcp();
    acquire(&owner, &request(61000, 5, wire::BOTH, wire::SCOPE_USER)).unwrap();
    // Programs often pick a port in this way: they bind, note the number and close. Another process binds it later.
    let picked: Vec<u16> = (0..5).map(|_| chosen(&tcp())).collect();
    assert_eq!(picked, [61000, 61001, 61002, 61003, 61004]);
    in_child(|| {
        let server = tcp();
        bind(&server, 61000).unwrap();
        server.listen(1).unwrap();
        bind(&udp(), 61000).unwrap();
    });
    in_child(|| {
        become_user(USER);
        assert_eq!(errno(bind(&tcp(), 61000)), Errno::EADDRINUSE, "an outsider");
        assert!(!(61000..61005).contains(&chosen(&tcp())));
    });
    // A port that is in use is skipped.
    let server = tcp();
    bind(&server, 61001).unwrap();
    assert_eq!((0..5).map(|_| chosen(&tcp())).collect::<Vec<_>>(), [61000, 61002, 61003, 61004, 61000]);
    drop((server, owner));
    world.assert_empty();
}

#[test]
fn e2_connections_that_were_closed_do_not_block_a_port() {
    let Some(world) = World::enter("e2_time_wait") else { return };
    let owner = tcp();
    range(&owner, 61000, 1, 0);
    for _ in 0..3 {
        let server = tcp();
        assert_eq!(chosen(&server), 61000);
        server.listen(1).unwrap();
        // The server closes first: its side is left in TIME_WAIT.
        let client = tcp();
        connect(&client, "127.0.0.1:61000").unwrap();
        drop(server.accept().unwrap());
        drop((server, client));
    }
    drop(owner);
    world.assert_empty();
}

#[test]
fn e3_a_range_that_is_used_up_is_reported_once_a_second() {
    let Some(world) = World::enter("e3") else { return };
    let reader = udp();
    let secret = world.maps().config().unwrap().secret;
    control::agent_mark(&reader, &AgentMark { secret, role: wire::AGENT_READER, zero: 0 }).unwrap();
    let mut events = world.sandbox().loaded().events().unwrap();
    let owner = tcp();
    range(&owner, 61000, 3, 0);
    let held: Vec<Socket> = (0..3)
        .map(|_| {
            let s = tcp();
            chosen(&s);
            s
        })
        .collect();
    let began = std::time::Instant::now();
    for _ in 0..50 {
        let s = tcp();
        assert_eq!(errno(bind(&s, 0)), Errno::EADDRINUSE);
        assert_eq!(port(&s), 0, "never a port from elsewhere");
    }
    let seconds = began.elapsed().as_secs() as usize;
    let reported =
        std::iter::from_fn(|| events.next_event()).filter(|event| event.kind == RingEventKind::Exhausted).count();
    assert!((1..=seconds + 2).contains(&reported), "{reported} events in {seconds} s");
    if let Some(server) = mptcp() {
        assert_eq!(errno(bind(&server, 0)), Errno::EADDRINUSE);
    }
    drop(held);
    assert!((61000..61003).contains(&chosen(&tcp())));
    drop((owner, reader));
    world.assert_empty();
}

/// The port that a process of this user gets in this cgroup.
fn chosen_in(cgroup: &Below, uid: u32) -> u16 {
    cgroup.ask(|| {
        if uid != 0 {
            become_user(uid);
        }
        chosen(&tcp()).into()
    }) as u16
}

#[test]
fn e4_the_most_specific_range_wins_and_the_next_one_comes_back() {
    let Some(world) = World::enter("e4") else { return };
    let admin = world.sandbox().loaded().admin().unwrap();
    let mut maps = world.maps();
    let (outer, inner) = (Below::new(&world, "outer.service"), Below::new(&world, "outer.service/inner"));
    let mut persistent = |start: u16, audience: Audience<u32>| {
        let wanted = Wanted {
            start,
            count: 10,
            align: Align::ANY,
            transports: Transports::Both,
            audience,
            strict: false,
            ephemeral: true,
            label: String::new(),
        };
        let (id, token, _) = maps.claim_persistent(&admin, world.netns(), &wanted).unwrap();
        admin.confirm(id, token).unwrap();
        (id, token)
    };
    let in_range = |port: u16, first: u16| assert_eq!(port / 10 * 10, first, "{port}");
    let outside = |port: u16| assert!(!(10000..20000).contains(&port), "{port}");

    outside(chosen_in(&inner, 0));
    let group = persistent(10000, Audience::Group(0));
    in_range(chosen_in(&inner, 0), 10000);
    in_range(chosen(&tcp()), 10000);
    let user = persistent(10100, Audience::User(0));
    in_range(chosen_in(&inner, 0), 10100);
    let unit = persistent(10200, Audience::Unit("outer.service".into()));
    in_range(chosen_in(&inner, 0), 10200);
    in_range(chosen_in(&outer, 0), 10200);
    in_range(chosen(&tcp()), 10100);
    let path = persistent(10300, Audience::Cgroup(outer.name()));
    in_range(chosen_in(&inner, 0), 10300);
    in_range(chosen_in(&outer, 0), 10300);
    world.assert_consistent();
    // A runtime range of a lower cgroup comes first; it ends with its owner's socket.
    let procs = inner.path().join("cgroup.procs");
    let inner_id = inner.id();
    let mut child = Child::fork(|talk| {
        fs::write(&procs, "0").unwrap();
        let owner = tcp();
        let request = AcquireRequest { cgroup: inner_id, ..request(61000, 10, 0, wire::SCOPE_CGROUP) };
        acquire(&owner, &request).unwrap();
        talk.say(chosen(&tcp()).into());
        // A range of its own process comes before that.
        let mine = tcp();
        range(&mine, 61010, 10, 0);
        talk.say(chosen(&tcp()).into());
        talk.hear();
        drop(owner);
    });
    in_range(child.talk.hear() as u16, 61000);
    in_range(child.talk.hear() as u16, 61010);
    in_range(chosen_in(&inner, 0), 61000);
    in_range(chosen_in(&outer, 0), 10300);
    child.talk.say(0);
    child.join();
    in_range(chosen_in(&inner, 0), 10300);

    for ((id, token), next) in [(path, 10200), (unit, 10100), (user, 10000)] {
        maps.end_persistent(&admin, id, token).unwrap();
        in_range(chosen_in(&inner, 0), next);
    }
    maps.end_persistent(&admin, group.0, group.1).unwrap();
    outside(chosen_in(&inner, 0));
    drop((inner, outer));
    world.assert_empty();
}

#[test]
fn e4_scopes_do_not_leak() {
    let Some(world) = World::enter("e4_scopes") else { return };
    let (mine, other) = (Below::new(&world, "mine"), Below::new(&world, "other"));
    let procs = mine.path().join("cgroup.procs");
    let mut child = Child::fork(|talk| {
        fs::write(&procs, "0").unwrap();
        let owner = tcp();
        acquire(&owner, &request(61000, 10, 0, wire::SCOPE_CGROUP)).unwrap();
        talk.say(0);
        talk.hear();
    });
    child.talk.hear();
    let inside = |port: u16| (61000..61010).contains(&port);
    assert!(inside(chosen_in(&mine, 0)));
    assert!(inside(chosen_in(&mine, USER)));
    assert!(!inside(chosen_in(&other, 0)));
    assert!(!inside(chosen(&tcp())));
    child.talk.say(0);
    child.join();
    assert!(!inside(chosen_in(&mine, 0)));
    // A range of a user.
    let mut child = Child::fork(|talk| {
        become_user(USER);
        let owner = tcp();
        acquire(&owner, &request(61000, 10, 0, wire::SCOPE_USER)).unwrap();
        talk.say(0);
        talk.hear();
    });
    child.talk.hear();
    assert!(inside(chosen_in(&other, USER)));
    assert!(!inside(chosen_in(&other, OTHER)));
    assert!(!inside(chosen_in(&other, 0)));
    child.kill();
    assert!(!inside(chosen_in(&other, USER)));
    drop((mine, other));
    world.assert_empty();
}

#[test]
fn e4_groups_by_real_effective_and_supplementary_gid() {
    let Some(world) = World::enter("e4_groups") else { return };
    let admin = world.sandbox().loaded().admin().unwrap();
    let mut maps = world.maps();
    let wanted = Wanted {
        start: 10000,
        count: 10,
        align: Align::ANY,
        transports: Transports::Tcp,
        audience: Audience::Group(4711),
        strict: false,
        ephemeral: true,
        label: String::new(),
    };
    let (id, token, _) = maps.claim_persistent(&admin, world.netns(), &wanted).unwrap();
    admin.confirm(id, token).unwrap();
    let with = |real, effective, groups: &[u32]| {
        in_groups(real, effective, groups, || (10000..10010).contains(&chosen(&tcp())))
    };
    assert!(with(4711, 5, &[]));
    assert!(with(5, 4711, &[]));
    assert!(with(5, 5, &[1, 2, 4711, 9000]));
    assert!(with(5, 5, &(4700..4712).collect::<Vec<_>>()));
    assert!(!with(5, 5, &[1, 4710, 4712]));
    assert!(!with(5, 5, &[]));
    maps.end_persistent(&admin, id, token).unwrap();
    world.assert_empty();
}

#[test]
fn e5_sockets_that_wait_for_connect_are_left_alone() {
    let Some(world) = World::enter("e5") else { return };
    if !world.sandbox().loaded().knows_places() {
        return skip("e5", "no BTF, so IP_BIND_ADDRESS_NO_PORT is not seen", REQUIRE);
    }
    let server = tcp6();
    bind(&server, 5000).unwrap();
    server.listen(128).unwrap();
    let owner = tcp();
    range(&owner, 61000, 2, wire::BOTH);
    for client in [tcp(), tcp6()] {
        choose_at_connect(&client).unwrap();
        bind_to(&client, if client.domain().unwrap() == Domain::IPV6 { "[::1]:0" } else { "127.0.0.1:0" }).unwrap();
        assert_eq!(port(&client), 0, "it has no port yet");
        let to = if client.domain().unwrap() == Domain::IPV6 { "[::1]:5000" } else { "127.0.0.1:5000" };
        connect(&client, to).unwrap();
        assert!(!(61000..61002).contains(&port(&client)));
    }
    for datagrams in [udp(), udp6()] {
        choose_at_connect(&datagrams).unwrap();
        bind(&datagrams, 0).unwrap();
        assert_eq!(port(&datagrams), 0);
    }
    // After a connect without a bind, the kernel chooses, too.
    let client = tcp();
    connect(&client, "127.0.0.1:5000").unwrap();
    assert!(!(61000..61002).contains(&port(&client)));
    // Without the option only the two ports are available.
    let held: Vec<Socket> = [tcp(), tcp()].into_iter().inspect(|s| assert_ne!(chosen(s), 0)).collect();
    assert_eq!(errno(bind(&tcp(), 0)), Errno::EADDRINUSE);
    drop((held, client, server, owner));
    world.assert_empty();
}

/// More connections than the range has ports, and more than one address has ephemeral ports.
#[test]
fn e5_ten_thousand_connections_leave_one_address() {
    let Some(world) = World::enter("e5_many") else { return };
    if !world.sandbox().loaded().knows_places() {
        return skip("e5_many", "no BTF, so IP_BIND_ADDRESS_NO_PORT is not seen", REQUIRE);
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    // Root may raise the limit, and must do so on machines where it is low.
    let maximum = limit.maximum.map(|maximum| maximum.max(12_000));
    let wanted = rustix::process::Rlimit { current: maximum, maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, wanted).unwrap();
    let server = tcp();
    bind(&server, 5000).unwrap();
    server.listen(1024).unwrap();
    let owner = tcp();
    range(&owner, 61000, 100, wire::BOTH);
    let connections: Vec<Socket> = (0..10_000)
        .map(|n| {
            let client = tcp();
            choose_at_connect(&client).unwrap();
            bind_to(&client, "127.0.0.1:0").unwrap();
            connect(&client, "127.0.0.1:5000").unwrap_or_else(|error| panic!("connection {n}: {error}"));
            // The client's end keeps its port. The server's end is closed, so half as many descriptors are enough.
            drop(server.accept().unwrap());
            client
        })
        .collect();
    assert!(connections.iter().all(|client| !(61000..61100).contains(&port(client))));
    drop((connections, server, owner));
    world.assert_empty();
}

#[test]
fn e6_a_persistent_range_changes_its_audience_and_ends() {
    let Some(world) = World::enter("e6") else { return };
    let admin = world.sandbox().loaded().admin().unwrap();
    let mut maps = world.maps();
    let user = |uid: u32, ephemeral: bool| Wanted {
        start: 600,
        count: 10,
        align: Align::ANY,
        transports: Transports::Both,
        audience: Audience::User(uid),
        strict: false,
        ephemeral,
        label: String::new(),
    };
    let (id, token, _) = maps.claim_persistent(&admin, world.netns(), &user(USER, true)).unwrap();
    let as_user = |uid: u32| {
        let mut child = Child::fork(|talk| {
            become_user(uid);
            talk.say(u64::from(chosen(&tcp())) << 16 | u64::from(chosen(&udp())));
        });
        let answer = child.talk.hear();
        child.join();
        ((answer >> 16) as u16, answer as u16)
    };
    let inside = |(tcp, udp): (u16, u16)| (600..610).contains(&tcp) && (600..610).contains(&udp);
    assert!(!inside(as_user(USER)), "not in force yet");
    admin.confirm(id, token).unwrap();
    // The ports are below 1024, and no capability is required.
    assert!(inside(as_user(USER)));
    assert!(!inside(as_user(OTHER)));
    world.assert_consistent();
    maps.change_persistent(&admin, (id, token), &user(OTHER, true)).unwrap();
    assert!(inside(as_user(OTHER)) && !inside(as_user(USER)));
    maps.change_persistent(&admin, (id, token), &user(OTHER, false)).unwrap();
    assert!(!inside(as_user(OTHER)));
    world.assert_consistent();
    maps.change_persistent(&admin, (id, token), &user(OTHER, true)).unwrap();
    assert!(inside(as_user(OTHER)));
    // A second range for the same audience is refused, and a refused change of it leaves the first one as it is.
    let second = Wanted { start: 700, ..user(OTHER, true) };
    let refused = maps.claim_persistent(&admin, world.netns(), &second);
    assert!(
        matches!(&refused, Err(CreateError::Admin(error)) if error.errno() == Some(Errno(libc::EEXIST))),
        "{refused:?}"
    );
    // A range for administrators is refused, and so is a strict one.
    for bad in [
        Wanted { audience: Audience::Administrators, ..second.clone() },
        Wanted { strict: true, ..Wanted { start: 700, ..user(USER, true) } },
    ] {
        let refused = maps.claim_persistent(&admin, world.netns(), &bad);
        assert!(matches!(&refused, Err(CreateError::Admin(error)) if error.errno() == Some(Errno::EINVAL)), "{bad:?}");
    }
    world.assert_consistent();
    maps.end_persistent(&admin, id, token).unwrap();
    assert!(!inside(as_user(OTHER)));
    world.assert_empty();
}

#[test]
fn e7_another_namespace_is_another_world() {
    let Some(world) = World::enter("e7") else { return };
    let owner = tcp();
    acquire(&owner, &request(61000, 10, 0, wire::SCOPE_USER)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            portkeep_testkit::new_namespace();
            assert!(!(61000..61010).contains(&chosen(&tcp())));
        });
    });
    assert_eq!(chosen(&tcp()), 61000);
    drop(owner);
    world.assert_empty();
}

#[test]
fn requests_that_make_no_sense_are_refused_and_leave_nothing() {
    let Some(world) = World::enter("e_bad") else { return };
    let owner = tcp();
    let before = audit::snapshot(&world.maps(), world.netns());
    let refused = |request: AcquireRequest| {
        let error = errno(control::acquire(&owner, &request));
        assert_eq!(audit::snapshot(&world.maps(), world.netns()), before);
        world.assert_consistent();
        error
    };
    assert_eq!(refused(request(0, 0, 0, wire::SCOPE_CGROUP)), Errno::EINVAL);
    assert_eq!(refused(request(0, 10, wire::STRICT, wire::SCOPE_CGROUP)), Errno::EINVAL);
    assert_eq!(refused(request(0, 5000, 0, wire::SCOPE_CGROUP)), Errno::ENOSPC);
    assert_eq!(refused(request(0, 10, 8, wire::SCOPE_CGROUP)), Errno::EINVAL);
    let first = range(&owner, 0, 10, wire::BOTH);
    // A second range for the same processes: no bind would ever draw from it.
    let twice = AcquireRequest { count: 10, flags: wire::EPHEMERAL, ..Default::default() };
    assert_eq!(errno(control::acquire(&owner, &twice)), Errno(libc::EEXIST));
    world.assert_consistent();
    control::release(&owner, token(&first)).unwrap();
    range(&owner, 0, 10, wire::BOTH);
    drop(owner);
    world.assert_empty();
}

#[test]
fn a_request_that_waits_is_no_range_yet() {
    let Some(world) = World::enter("e_pending") else { return };
    let beacon = udp();
    let secret = world.maps().config().unwrap().secret;
    control::agent_mark(&beacon, &AgentMark { secret, role: wire::AGENT_BEACON, zero: 0 }).unwrap();
    let owner = tcp();
    let asked = request(20000, 10, 0, wire::SCOPE_USER);
    assert_eq!(errno(control::acquire(&owner, &asked)), Errno::EINPROGRESS);
    let grant = control::granted(&owner).unwrap();
    assert!(!(20000..20010).contains(&chosen(&tcp())));
    let maps = world.maps();
    let admin = world.sandbox().loaded().admin().unwrap();
    let id = maps.id_of(token(&grant)).unwrap();
    admin.confirm(id, token(&grant)).unwrap();
    assert!((20000..20010).contains(&chosen(&tcp())));
    world.assert_consistent();
    admin.end(id, token(&grant)).unwrap();
    assert!(!(20000..20010).contains(&chosen(&tcp())));
    // A range that is refused.
    assert_eq!(errno(control::acquire(&owner, &asked)), Errno::EINPROGRESS);
    let grant = control::granted(&owner).unwrap();
    let id = maps.id_of(token(&grant)).unwrap();
    admin.refuse(id, token(&grant), Errno::EADDRINUSE).unwrap();
    world.assert_consistent();
    drop((owner, beacon));
    world.assert_empty();
}
