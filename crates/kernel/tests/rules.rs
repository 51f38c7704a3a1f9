//! The rules R1 to R10 and A1 to A9, each with real sockets and processes.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use portkeep::control;
use portkeep_core::{
    Errno, PortRange, Token, Transport,
    wire::{self, AcquireRequest, AgentMark, SelectRequest},
};
use portkeep_kernel::{Settings, cgroup, netns};
use portkeep_testkit::{
    Sandbox, World,
    audit::{self, uses},
    new_namespace,
    process::{Child, become_user, in_child},
    sockets::{acquire, bind, bind_to, connect, errno, port, reserve, socket, tcp, tcp6, token, udp, udp6},
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Linux's number of MPTCP, which the C library's headers of older distributions lack.
const IPPROTO_MPTCP: i32 = 262;
const NOBODY: u32 = 65534;

/// Set the range of the namespace's automatic choices. Read and written for the calling thread's namespace.
fn set_ephemeral_range(first: u16, last: u16) {
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", format!("{first} {last}")).unwrap();
}

fn associated(domain: Domain, transport: Transport, token: Token) -> Socket {
    let socket = socket(domain, transport);
    control::associate(&socket, token).unwrap();
    socket
}

/// Draw a port for a new TCP socket.
fn drawn(token: Token) -> Socket {
    let socket = associated(Domain::IPV4, Transport::Tcp, token);
    bind(&socket, 0).unwrap();
    socket
}

fn option(socket: &Socket, level: i32, name: i32) {
    let on = 1i32;
    // SAFETY: the kernel reads four bytes from `on`.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), size_of::<i32>() as u32) };
    assert_eq!(result, 0, "option {name} of level {level}: {}", std::io::Error::last_os_error());
}

/// A beacon: the programs see an agent, but it confirms nothing.
fn beacon(world: &World) -> Socket {
    let beacon = udp();
    let secret = world.maps().config().unwrap().secret;
    control::agent_mark(&beacon, &AgentMark { secret, role: wire::AGENT_BEACON, zero: 0 }).unwrap();
    beacon
}

#[test]
fn r1_acquire_gives_the_whole_block_on_any_tcp_or_udp_socket() {
    let Some(world) = World::enter("r1") else { return };
    for (domain, transport) in [
        (Domain::IPV4, Transport::Tcp),
        (Domain::IPV4, Transport::Udp),
        (Domain::IPV6, Transport::Tcp),
        (Domain::IPV6, Transport::Udp),
    ] {
        let owner = socket(domain, transport);
        let any = reserve(&owner, 0, 7);
        assert_eq!((any.count, any.transports, any.state), (7, transport.bit(), wire::ACTIVE));
        let named = reserve(&owner, 62000, 20);
        assert_eq!((named.start, named.count), (62000, 20));

        // A block that overlaps by one port on either side is refused as a whole.
        let before = audit::snapshot(&world.maps(), world.netns());
        for (start, count) in [(61990, 11), (62019, 500), (62000, 20), (61000, 4000)] {
            let request = AcquireRequest { start, count, ..Default::default() };
            assert_eq!(errno(control::acquire(&owner, &request)), Errno::EADDRINUSE);
            assert_eq!(audit::snapshot(&world.maps(), world.netns()), before);
        }
        world.assert_consistent();
    }
    world.assert_empty();
    // Up to the last port, and a whole pool at once. A socket that is bound, listening or connected may be an owner as
    // well.
    let owner = tcp();
    bind(&owner, 0).unwrap();
    owner.listen(1).unwrap();
    assert_eq!(reserve(&owner, 65535, 1).start, 65535);
    assert_eq!(reserve(&owner, 61000, 4535).count, 4535);
    let full = AcquireRequest { count: 1, ..Default::default() };
    assert_eq!(errno(control::acquire(&owner, &full)), Errno::ENOSPC);
    world.assert_consistent();
    drop(owner);
    world.assert_empty();
}

/// Every way to ask for a port, by sockets outside the reservation.
fn outsiders_are_refused(transport: Transport, port: u16, errno_wanted: Errno) {
    let v4 = || socket(Domain::IPV4, transport);
    let v6 = || socket(Domain::IPV6, transport);
    let refused = |what: &str, socket: Socket, address: &str| {
        let result = bind_to(&socket, &address.replace('P', &port.to_string()));
        assert_eq!(errno(result), errno_wanted, "{what} {address}");
        assert_eq!(self::port(&socket), 0, "{what} {address}");
    };
    for address in ["0.0.0.0:P", "127.0.0.1:P", "127.1.2.3:P"] {
        refused("plain", v4(), address);
    }
    for address in ["[::]:P", "[::1]:P", "[::ffff:127.0.0.1]:P", "[::ffff:0.0.0.0]:P"] {
        refused("v6", v6(), address);
    }
    let only_v6 = v6();
    only_v6.set_only_v6(true).unwrap();
    refused("v6 only", only_v6, "[::]:P");
    let options: &[(&str, i32, i32)] = &[
        ("SO_REUSEADDR", libc::SOL_SOCKET, libc::SO_REUSEADDR),
        ("SO_REUSEPORT", libc::SOL_SOCKET, libc::SO_REUSEPORT),
        ("IP_FREEBIND", libc::SOL_IP, libc::IP_FREEBIND),
        ("IP_TRANSPARENT", libc::SOL_IP, libc::IP_TRANSPARENT),
        ("IP_BIND_ADDRESS_NO_PORT", libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT),
    ];
    for (name, level, number) in options {
        let s = v4();
        option(&s, *level, *number);
        refused(name, s, "0.0.0.0:P");
    }
    for (level, number) in [(libc::SOL_IP, libc::IP_FREEBIND), (libc::SOL_IP, libc::IP_TRANSPARENT)] {
        let s = v4();
        option(&s, level, number);
        refused("an address that is not ours", s, "192.0.2.1:P");
    }
    let all = v4();
    options.iter().for_each(|(_, level, number)| option(&all, *level, *number));
    refused("all options", all, "127.0.0.1:P");
    let device = v4();
    device.bind_device(Some(b"lo")).unwrap();
    refused("SO_BINDTODEVICE", device, "127.0.0.1:P");
    let both = v6();
    option(&both, libc::SOL_SOCKET, libc::SO_REUSEADDR);
    option(&both, libc::SOL_SOCKET, libc::SO_REUSEPORT);
    option(&both, libc::SOL_IPV6, libc::IPV6_TRANSPARENT);
    refused("v6 with options", both, "[::]:P");
    if transport == Transport::Tcp {
        for domain in [Domain::IPV4, Domain::IPV6] {
            // Kernels without MPTCP do not have this way.
            if let Ok(mptcp) = Socket::new(domain, Type::STREAM, Some(Protocol::from(IPPROTO_MPTCP))) {
                refused("MPTCP", mptcp, if domain == Domain::IPV4 { "0.0.0.0:P" } else { "[::]:P" });
            }
        }
    }
}

#[test]
fn r2_no_outsider_binds_a_port_of_the_block_in_any_way() {
    let Some(world) = World::enter("r2") else { return };
    for transport in Transport::ALL {
        let owner = socket(Domain::IPV6, transport);
        let grant = reserve(&owner, 0, 3);
        // The owner process may bind (A7), so the outsiders are other processes: root with all capabilities, and an
        // ordinary user.
        let attack = || {
            for port in grant.start..grant.start + 3 {
                outsiders_are_refused(transport, port, Errno::EADDRINUSE);
            }
            // Ports that are not reserved are free, in the pool and outside.
            for free in [20000, grant.start + 3] {
                bind(&socket(Domain::IPV4, transport), free).unwrap();
            }
        };
        in_child(attack);
        in_child(|| {
            become_user(NOBODY);
            let port = grant.start + 1;
            for (socket, address) in [
                (socket(Domain::IPV4, transport), format!("0.0.0.0:{port}")),
                (socket(Domain::IPV6, transport), format!("[::ffff:127.0.0.1]:{port}")),
            ] {
                assert_eq!(errno(bind_to(&socket, &address)), Errno::EADDRINUSE);
            }
        });
        drop(owner);
        world.assert_empty();
    }
}

#[test]
fn r2_the_refusal_can_be_that_of_windows() {
    let Some(_world) = World::with_outside("r2_deny_errno") else { return };
    let mut settings = Settings::default();
    settings.deny_errno = Errno::EACCES;
    let sandbox = Sandbox::beside("deny", &settings);
    let mut owner = Child::fork(|talk| {
        talk.hear();
        let owner = tcp();
        talk.say(reserve(&owner, 0, 1).start.into());
        talk.hear();
    });
    sandbox.cgroup().enter(owner.pid()).unwrap();
    owner.talk.say(0);
    let port = owner.talk.hear() as u16;
    let mut outsider = Child::fork(|talk| {
        talk.hear();
        outsiders_are_refused(Transport::Tcp, port, Errno::EACCES);
    });
    sandbox.cgroup().enter(outsider.pid()).unwrap();
    outsider.talk.say(0);
    outsider.join();
    owner.talk.say(0);
    owner.join();
}

#[test]
fn r3_automatic_choices_stay_outside() {
    let Some(world) = World::enter("r3") else { return };
    let owner = tcp();
    let grant = acquire(&owner, &AcquireRequest { count: 4, flags: wire::BOTH, ..Default::default() }).unwrap();
    // The usual setup: the pool lies outside the ephemeral range, so no automatic choice comes from it.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    for _ in 0..50 {
        for (domain, transport) in
            [(Domain::IPV4, Transport::Tcp), (Domain::IPV4, Transport::Udp), (Domain::IPV6, Transport::Udp)]
        {
            let chosen = socket(domain, transport);
            bind(&chosen, 0).unwrap();
            assert!(port(&chosen) < 61000);
        }
        let connected = tcp();
        connect(&connected, &address).unwrap();
        assert!(port(&connected) < 61000);
        let sender = udp();
        sender.send_to(b"x", &"127.0.0.1:9".parse::<SocketAddr>().unwrap().into()).unwrap();
        assert!(port(&sender) < 61000 && port(&sender) != 0);
    }
    // The ephemeral range is the block: a choice of one of its ports is undone once the port is known.
    set_ephemeral_range(grant.start, grant.start + 3);
    for transport in Transport::ALL {
        for domain in [Domain::IPV4, Domain::IPV6] {
            let outsider = socket(domain, transport);
            assert_eq!(errno(bind(&outsider, 0)), Errno::EADDRINUSE);
            assert_eq!(port(&outsider), 0);
            // A refusal leaves the socket usable: it may bind another port.
            bind(&outsider, 20001).unwrap();
        }
    }
    // The range overlaps the block partly: no choice gives a port of it. The rest of the pool is like any other port
    // (N1).
    set_ephemeral_range(60999, 61006);
    for _ in 0..200 {
        for outsider in [udp(), tcp()] {
            match bind(&outsider, 0) {
                Ok(()) => assert!(!(grant.start..grant.start + 4).contains(&port(&outsider))),
                Err(error) => assert_eq!(Errno(error.raw_os_error().unwrap()), Errno::EADDRINUSE),
            }
        }
    }
    // connect and sendto choose without passing a hook. They avoid the block because of ip_local_reserved_ports; the
    // associated socket draws all the same.
    fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", "61000-61006").unwrap();
    for _ in 0..20 {
        let sender = udp();
        sender.send_to(b"x", &"127.0.0.1:9".parse::<SocketAddr>().unwrap().into()).unwrap();
        assert_eq!(port(&sender), 60999);
        let connected = tcp();
        if connect(&connected, &address).is_ok() {
            assert_eq!(port(&connected), 60999);
        }
    }
    let inside = drawn(token(&grant));
    assert!(port(&inside) >= 61000);
    drop((inside, owner));
    world.assert_empty();
}

/// Bind to 0, connect, listen, send: for every range that the kernel chooses from.
#[test]
fn n1_automatic_choices_never_fail_and_may_fall_into_the_pool() {
    let Some(world) = World::enter("n1_automatic") else { return };
    let listener = TcpListener::bind("127.0.0.1:20000").unwrap();
    let sink = UdpSocket::bind("127.0.0.1:20000").unwrap();
    let to = SocketAddr::from(([127, 0, 0, 1], 20000));
    for (first, last) in [(1024, 65535), (62000, 64000)] {
        set_ephemeral_range(first, last);
        let chosen = |socket: &Socket| assert!((first..=last).contains(&port(socket)));
        for _ in 0..10_000 {
            for socket in [tcp(), udp6()] {
                bind(&socket, 0).unwrap();
                chosen(&socket);
            }
            let client = tcp();
            // No TIME_WAIT: otherwise the range would soon be full.
            client.set_linger(Some(Duration::ZERO)).unwrap();
            client.connect(&to.into()).unwrap();
            chosen(&client);
            drop((client, listener.accept().unwrap()));
            let server = tcp6();
            server.listen(1).unwrap();
            chosen(&server);
            let sender = udp();
            sender.send_to(b"x", &to.into()).unwrap();
            chosen(&sender);
        }
    }
    drop((listener, sink));
    world.assert_empty();
}

/// Two ports of ActiveMQ and Mumble, with and without an agent. The agent's `ip_local_reserved_ports` does not matter
/// here.
#[test]
fn n1_pool_ports_are_free_for_everybody() {
    let Some(world) = World::enter("n1_pool") else { return };
    for agent in [false, true] {
        let beacon = agent.then(|| beacon(&world));
        in_child(|| {
            become_user(NOBODY);
            for number in [61000, 61616, 64738, 65535] {
                for socket in [tcp(), udp(), tcp6(), udp6()] {
                    bind(&socket, number).unwrap();
                    assert_eq!(port(&socket), number);
                    let rival = portkeep_testkit::sockets::socket(socket.domain().unwrap(), Transport::Tcp);
                    if socket.r#type().unwrap() == Type::STREAM {
                        assert!(!socket.reuse_address().unwrap(), "options are the program's own (N4)");
                        socket.listen(1).unwrap();
                        assert_eq!(errno(bind(&rival, number)), Errno::EADDRINUSE);
                    }
                }
                // Workers that share a port.
                let workers: Vec<Socket> = (0..3)
                    .map(|_| {
                        let worker = tcp6();
                        worker.set_reuse_port(true).unwrap();
                        bind(&worker, number).unwrap();
                        worker.listen(1).unwrap();
                        assert_eq!(
                            errno(control::acquire(
                                tcp(),
                                &AcquireRequest { start: number, count: 1, ..Default::default() }
                            ))
                            .0,
                            if agent { libc::EINPROGRESS } else { libc::EADDRINUSE }
                        );
                        worker
                    })
                    .collect();
                drop(workers);
            }
        });
        drop(beacon);
        world.assert_empty();
    }
}

#[test]
fn n2_wildcards_pass_by_what_is_bound() {
    let Some(world) = World::enter("n2") else { return };
    let mut server = Child::fork(|talk| {
        become_user(NOBODY);
        let sockets: Vec<Socket> = (61001..61100)
            .step_by(3)
            .map(|number| {
                let socket = if number % 2 == 0 { tcp() } else { tcp6() };
                bind(&socket, number).unwrap();
                socket
            })
            .collect();
        talk.say(0);
        talk.hear();
        drop(sockets);
    });
    server.talk.hear();
    let owner = tcp();
    for _ in 0..20 {
        let grant = reserve(&owner, 0, 2);
        for number in grant.start..grant.start + 2 {
            bind(&tcp(), number).unwrap();
        }
        assert_eq!(grant.start % 3, 61002 % 3, "{grant:?}");
    }
    assert_eq!(reserve(&owner, 0, 3).start, 61098);
    world.assert_consistent();
    server.talk.say(0);
    server.join();
    drop(owner);
    world.assert_empty();
}

/// Ports that the kernel's automatic choice may give to any process are granted last, for every cursor and alignment.
#[test]
fn n3_wildcards_come_last_to_the_ports_of_automatic_choices() {
    let Some(world) = World::enter("n3_avoid") else { return };
    let admin = world.sandbox().loaded().admin().unwrap();
    let starts = |owner: &Socket, count: u16, align: u16, requests: usize| -> Vec<u16> {
        let ask = AcquireRequest { count, align, ..Default::default() };
        (0..requests).map(|_| acquire(owner, &ask).unwrap().start).collect()
    };
    // Up to the end of the pool, from its beginning, in the middle; inside one word and over several.
    for (first, last, requests) in [(61005, 65535, 5), (61000, 65530, 5), (61064, 65500, 99)] {
        let ports = PortRange::inclusive(first, last).unwrap();
        admin.avoid(world.netns(), Some(ports)).unwrap();
        let owner = udp();
        let mut taken = starts(&owner, 1, 1, requests);
        taken.sort_unstable();
        let allowed: Vec<u16> = (61000..=65535).filter(|port| !ports.contains(*port)).collect();
        assert_eq!(taken, allowed, "{ports}");
        let rest = starts(&owner, 1, 1, 1)[0];
        assert!(ports.contains(rest), "the rest is for requests that find nothing else: {rest}");
    }
    // A block that is only partly there comes last, too: only 61000 to 61002 are outside.
    admin.avoid(world.netns(), PortRange::inclusive(61003, 65529).ok()).unwrap();
    let owner = udp();
    assert_eq!(starts(&owner, 4, 1, 1), [65530]);
    assert_eq!(starts(&owner, 4, 4, 1), [61000], "nothing else is left");
    admin.avoid(world.netns(), None).unwrap();
    assert_eq!(starts(&owner, 4, 4, 1), [61004], "the cursor goes on as ever");
    drop(owner);
    world.assert_empty();
}

/// A request that waits for the agent keeps nobody from a port, not even the owner. A bind of one of its ports
/// succeeds.
#[test]
fn a_request_that_waits_gives_way_to_a_bind() {
    let Some(world) = World::enter("gives_way") else { return };
    let beacon = beacon(&world);
    let admin = world.sandbox().loaded().admin().unwrap();
    let owner = tcp();
    for agent_first in [false, true] {
        let request = AcquireRequest { start: 80, count: 500, ..Default::default() };
        assert_eq!(errno(control::acquire(&owner, &request)), Errno::EINPROGRESS);
        let pending = control::granted(&owner).unwrap();
        assert_eq!(pending.state, wire::PENDING);
        let id = world.maps().id_of(token(&pending)).unwrap();
        let mut server = Child::fork(|talk| {
            let socket = tcp6();
            socket.set_reuse_port(true).unwrap();
            bind(&socket, 443).unwrap();
            socket.listen(1).unwrap();
            talk.say(0);
            talk.hear();
            // Nothing is left of the request (N1).
            let worker = tcp6();
            worker.set_reuse_port(true).unwrap();
            bind(&worker, 443).unwrap();
        });
        server.talk.hear();
        assert!(world.maps().reservation(id).unwrap().unwrap().is_contested());
        assert_eq!(admin.confirm(id, token(&pending)).unwrap_err().errno(), Some(Errno::EADDRINUSE));
        if agent_first {
            admin.refuse(id, token(&pending), Errno::EADDRINUSE).unwrap();
        }
        let refused = control::granted(&owner).unwrap();
        assert_eq!((refused.state, Errno(refused.error.into())), (wire::REFUSED, Errno::EADDRINUSE));
        assert_eq!(errno(control::granted(&owner)), Errno::ENOENT);
        world.assert_consistent();
        server.talk.say(0);
        server.join();
    }
    drop((owner, beacon));
    world.assert_empty();
}

#[test]
fn r4_only_vacant_blocks_are_granted() {
    let Some(world) = World::enter("r4") else { return };
    let request = |start, count| AcquireRequest { start, count, ..Default::default() };
    // In the pool every port is vacant unless reserved, bound ...
    let other = tcp();
    bind(&other, 61110).unwrap();
    in_child(|| assert_eq!(errno(control::acquire(tcp(), &request(61108, 4))), Errno::EADDRINUSE));
    drop(other);

    let owner = tcp();
    let block = reserve(&owner, 61100, 8);
    assert_eq!(errno(control::acquire(&owner, &request(61107, 2))), Errno::EADDRINUSE);
    // ... or still bound after its reservation ended (R7) ...
    let bound = associated(Domain::IPV4, Transport::Tcp, token(&block));
    bind(&bound, 61103).unwrap();
    control::release(&owner, token(&block)).unwrap();
    assert_eq!(errno(control::acquire(&owner, &request(61100, 8))), Errno::EADDRINUSE);
    assert_eq!(errno(control::acquire(&owner, &request(61103, 1))), Errno::EADDRINUSE);
    control::acquire(&owner, &request(61104, 1)).unwrap();
    drop(bound);
    control::acquire(&owner, &request(61100, 4)).unwrap();
    // ... or in use by a socket that no program saw. Binds are decided by the kernel (N1).
    let admin = world.sandbox().loaded().admin().unwrap();
    admin.set_aside(world.netns(), Transport::Tcp, 61200).unwrap();
    assert_eq!(errno(control::acquire(&owner, &request(61199, 3))), Errno::EADDRINUSE);
    bind(&tcp(), 61200).unwrap();
    admin.set_aside(world.netns(), Transport::Tcp, 61200).unwrap();
    world.assert_consistent();
    admin.give_back(world.netns(), Transport::Tcp, 61200).unwrap();
    assert_eq!(admin.give_back(world.netns(), Transport::Tcp, 61200).unwrap_err().errno(), Some(Errno::ENOENT));
    control::acquire(&owner, &request(61199, 3)).unwrap();
    drop(owner);
    world.assert_empty();
}

#[test]
fn r4_elsewhere_the_agent_decides() {
    let Some(world) = World::enter("r4_agent") else { return };
    let owner = udp();
    let request = AcquireRequest { start: 5000, count: 20, ..Default::default() };
    assert_eq!(errno(control::acquire(&owner, &request)), Errno::ENETDOWN);
    let beacon = beacon(&world);
    assert_eq!(control::version(&owner).unwrap().agent, 1);

    // Claimed while the agent checks; no process may use it yet.
    assert_eq!(errno(control::acquire(&owner, &request)), Errno::EINPROGRESS);
    let grant = control::granted(&owner).unwrap();
    assert_eq!((grant.start, grant.count, grant.state), (5000, 20, wire::PENDING));
    assert_eq!(errno(control::associate(udp(), token(&grant))), Errno::ENOENT);
    // The agent's own probe can bind.
    let probe = udp();
    let secret = world.maps().config().unwrap().secret;
    control::agent_mark(&probe, &AgentMark { secret, role: wire::AGENT_PROBE, zero: 0 }).unwrap();
    bind(&probe, 5001).unwrap();
    drop(probe);
    world.assert_consistent();

    let admin = world.sandbox().loaded().admin().unwrap();
    let id = world.maps().id_of(token(&grant)).unwrap();
    admin.confirm(id, token(&grant)).unwrap();
    assert_eq!(admin.confirm(id, token(&grant)).unwrap_err().errno(), Some(Errno::ENOENT));
    assert_eq!(admin.refuse(id, token(&grant), Errno::EADDRINUSE).unwrap_err().errno(), Some(Errno::ENOENT));
    assert_eq!(control::granted(&owner).unwrap().state, wire::ACTIVE);
    bind(&udp(), 5001).unwrap();
    in_child(|| outsiders_are_refused(Transport::Udp, 5019, Errno::EADDRINUSE));

    // A refusal is reported once, and leaves nothing behind.
    for error in [Errno::EADDRINUSE, Errno::EACCES] {
        let request = AcquireRequest { start: 80, count: 1, ..Default::default() };
        assert_eq!(errno(control::acquire(&owner, &request)), Errno::EINPROGRESS);
        let pending = control::granted(&owner).unwrap();
        admin.refuse(world.maps().id_of(token(&pending)).unwrap(), token(&pending), error).unwrap();
        world.assert_consistent();
        bind(&udp(), 80).unwrap();
        let refused = control::granted(&owner).unwrap();
        assert_eq!((refused.state, refused.error), (wire::REFUSED, error.0 as u16));
        assert_eq!(errno(control::granted(&owner)), Errno::ENOENT);
        assert_eq!(errno(control::release(&owner, token(&pending))), Errno::ENOENT);
    }
    // Its owner never asks, and closes while it is pending.
    for close_first in [false, true] {
        let careless = udp();
        let request = AcquireRequest { start: 81, count: 1, ..Default::default() };
        assert_eq!(errno(control::acquire(&careless, &request)), Errno::EINPROGRESS);
        let pending = control::granted(&careless).unwrap();
        let id = world.maps().id_of(token(&pending)).unwrap();
        if close_first {
            drop(careless);
            assert_eq!(admin.confirm(id, token(&pending)).unwrap_err().errno(), Some(Errno::ENOENT));
        } else {
            admin.refuse(id, token(&pending), Errno::EADDRINUSE).unwrap();
        }
    }
    // An administrator ends reservations of any owner.
    admin.end(id, token(&grant)).unwrap();
    assert_eq!(admin.end(id, token(&grant)).unwrap_err().errno(), Some(Errno::ENOENT));
    assert_eq!(errno(control::release(&owner, token(&grant))), Errno::ENOENT);
    drop(beacon);
    assert_eq!(errno(control::acquire(&owner, &request)), Errno::ENETDOWN);
    drop(owner);
    world.assert_empty();
}

/// A connection from `client`, accepted by `listener`. The accepting side closes first, so it has TIME_WAIT.
fn leave_time_wait(listener: &Socket, address: &str) {
    let mut client = TcpStream::connect(address).unwrap();
    let (server, _) = listener.accept().unwrap();
    drop(server);
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    drop(client);
}

#[test]
fn r4_time_wait_is_not_in_use() {
    let Some(world) = World::enter("r4_time_wait") else { return };
    let owner = tcp();
    let grant = reserve(&owner, 61300, 1);
    let listener = drawn(token(&grant));
    listener.listen(1).unwrap();
    leave_time_wait(&listener, "127.0.0.1:61300");
    drop((listener, owner));
    let next = tcp();
    let grant = reserve(&next, 61300, 1);
    drawn(token(&grant)).listen(1).unwrap();
    drop(next);
    world.assert_empty();
}

#[test]
fn r5_many_reservations_on_a_socket_and_many_sockets_on_a_reservation() {
    let Some(world) = World::enter("r5") else { return };
    let owner = tcp();
    let grants: Vec<_> = (0..wire::OWNED).map(|_| reserve(&owner, 0, 2)).collect();
    let one_more = AcquireRequest { count: 2, ..Default::default() };
    assert_eq!(errno(control::acquire(&owner, &one_more)), Errno::EDQUOT);
    // A slot is free again after every kind of end.
    control::release(&owner, token(&grants[5])).unwrap();
    reserve(&owner, 0, 2);
    control::release(tcp(), token(&grants[77])).unwrap();
    reserve(&owner, 0, 2);
    assert_eq!(errno(control::acquire(&owner, &one_more)), Errno::EDQUOT);
    let mut listed = Vec::new();
    for index in 0..wire::OWNED as u16 {
        let select = SelectRequest { by: wire::BY_INDEX, port: index, ..Default::default() };
        listed.push(control::state(&owner, &select).unwrap().start);
    }
    listed.sort_unstable();
    listed.dedup();
    assert_eq!(listed.len(), wire::OWNED);

    let wide = tcp();
    let grant = reserve(&wide, 0, 3);
    let several: Vec<_> = (0..2).map(|_| drawn(token(&grant))).collect();
    control::associate(&wide, token(&grant)).unwrap();
    bind(&wide, 0).unwrap();
    wide.listen(1).unwrap();
    let mut ports: Vec<_> = several.iter().chain([&wide]).map(port).collect();
    ports.sort_unstable();
    assert_eq!(ports, [grant.start, grant.start + 1, grant.start + 2]);
    let state = control::state(&wide, &SelectRequest { by: wire::BY_ASSOCIATED, ..Default::default() }).unwrap();
    assert_eq!((state.token, state.bound), (grant.token, 3));
    world.assert_consistent();
    drop((several, wide, owner));
    world.assert_empty();
}

#[test]
fn r6_the_last_descriptor_ends_it_and_nothing_else_does() {
    let Some(world) = World::enter("r6") else { return };
    let in_force = |grant: &wire::Grant| {
        world.assert_consistent();
        let (port, maps) = (grant.start, world.maps());
        let in_force = maps.reservation(maps.id_of(token(grant)).unwrap()).unwrap().is_some();
        in_child(|| assert_eq!(bind(&tcp(), port).is_err(), in_force));
        in_force
    };
    // dup
    let owner = tcp();
    let grant = reserve(&owner, 0, 5);
    let copy = owner.try_clone().unwrap();
    drop(owner);
    assert!(in_force(&grant));
    drop(copy);
    assert!(!in_force(&grant));
    // fork
    let owner = tcp();
    let grant = reserve(&owner, 0, 5);
    let mut heir = Child::fork(|talk| {
        talk.say(1);
        talk.hear();
    });
    heir.talk.hear();
    drop(owner);
    assert!(in_force(&grant));
    heir.talk.say(0);
    heir.join();
    assert!(!in_force(&grant));
    // descriptor passing; the giver is killed
    let mut giver = Child::fork(|talk| {
        let owner = tcp();
        let grant = reserve(&owner, 0, 5);
        talk.say(grant.token);
        talk.say(grant.start.into());
        talk.pass(&owner);
        loop {
            talk.hear();
        }
    });
    let (number, start) = (giver.talk.hear(), giver.talk.hear() as u16);
    let taken = giver.talk.take();
    giver.kill();
    let grant = wire::Grant { token: number, start, ..Default::default() };
    assert!(in_force(&grant));
    assert_eq!(control::granted(&taken).unwrap().token, number);
    drop(taken);
    assert!(!in_force(&grant));
    // in a message that is never received
    let (left, right) = std::os::unix::net::UnixStream::pair().unwrap();
    in_child(|| {
        let owner = tcp();
        reserve(&owner, 0, 5);
        let descriptors = [owner.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors)));
        let message = [std::io::IoSlice::new(b"x")];
        rustix::net::sendmsg(&left, &message, &mut control, rustix::net::SendFlags::empty()).unwrap();
    });
    assert_eq!(world.maps().reservations().filter(|r| r.as_ref().unwrap().1.netns == world.netns()).count(), 1);
    drop((left, right));
    world.assert_empty();
    // SIGKILL, in the middle of everything
    let mut victim = Child::fork(|talk| {
        let owners: Vec<_> = (0..20).map(|_| udp()).collect();
        let bound: Vec<_> = owners
            .iter()
            .map(|owner| {
                let grant = reserve(owner, 0, 100);
                let bound = associated(Domain::IPV4, Transport::Udp, token(&grant));
                bind(&bound, 0).unwrap();
                bound
            })
            .collect();
        talk.say(bound.len() as u64);
        loop {
            talk.hear();
        }
    });
    assert_eq!(victim.talk.hear(), 20);
    world.assert_consistent();
    victim.kill();
    world.assert_empty();
}

#[test]
fn r7_release_is_for_the_owner_process() {
    let Some(world) = World::enter("r7") else { return };
    let owner = tcp();
    // Through another socket of the process, bound, unbound, or of the other family.
    for other in [tcp(), tcp6()] {
        let grant = reserve(&owner, 0, 2);
        control::release(&other, token(&grant)).unwrap();
        assert_eq!(errno(control::release(&owner, token(&grant))), Errno::ENOENT);
    }
    world.assert_empty();
    // From a thread.
    let grant = reserve(&owner, 0, 2);
    std::thread::scope(|scope| scope.spawn(|| control::release(&owner, token(&grant)).unwrap()).join()).unwrap();
    // Not from a child, not even through the owner socket itself, and not with a wider scope; the reservation stays.
    for scope in [wire::SCOPE_PROCESS, wire::SCOPE_USER, wire::SCOPE_CGROUP] {
        let grant = acquire(&owner, &AcquireRequest { count: 2, scope, ..Default::default() }).unwrap();
        let before = audit::snapshot(&world.maps(), world.netns());
        in_child(|| {
            assert_eq!(errno(control::release(&owner, token(&grant))), Errno::EPERM);
            assert_eq!(errno(control::release(tcp(), token(&grant))), Errno::EPERM);
        });
        assert_eq!(audit::snapshot(&world.maps(), world.netns()), before);
        control::release(&owner, token(&grant)).unwrap();
    }
    world.assert_empty();
}

#[test]
fn r7_bound_sockets_keep_running_and_their_ports_linger() {
    let Some(world) = World::enter("r7_linger") else { return };
    let owner = tcp();
    let grant = reserve(&owner, 61400, 4);
    let listener = associated(Domain::IPV6, Transport::Tcp, token(&grant));
    bind(&listener, 61401).unwrap();
    listener.listen(4).unwrap();
    let waiting = associated(Domain::IPV4, Transport::Tcp, token(&grant));
    // Shared by two; the port is free when both are closed.
    let shared: Vec<_> = (0..2)
        .map(|_| {
            let socket = associated(Domain::IPV4, Transport::Tcp, token(&grant));
            socket.set_reuse_port(true).unwrap();
            bind(&socket, 61402).unwrap();
            socket
        })
        .collect();
    control::release(&owner, token(&grant)).unwrap();
    world.assert_consistent();

    let mut client = TcpStream::connect("127.0.0.1:61401").unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"hello").unwrap();
    let mut five = [0; 5];
    server.read_exact(&mut five).unwrap();
    // In use for everybody, the former owner included. A socket that was associated but has not bound is too late.
    for port in [61401, 61402] {
        let request = AcquireRequest { start: port, count: 1, ..Default::default() };
        assert_eq!(errno(control::acquire(&owner, &request)), Errno::EADDRINUSE);
        let sharer = tcp();
        sharer.set_reuse_port(true).unwrap();
        assert_eq!(errno(bind(&sharer, port)), Errno::EADDRINUSE);
    }
    assert_eq!(errno(bind(&waiting, 0)), Errno::EACCES);
    assert_eq!(errno(bind(&waiting, 61400)), Errno::EACCES);
    assert_eq!(errno(connect(&waiting, "127.0.0.1:61401")), Errno::EACCES);
    // The rest of the block is free at once, beside the lingering ports.
    let neighbours = [reserve(&owner, 61400, 1), reserve(&owner, 61403, 1)];
    world.assert_consistent();
    assert_eq!(errno(bind(&tcp(), 61401)), Errno::EADDRINUSE);

    let mut shared = shared.into_iter();
    drop(shared.next());
    assert_eq!(uses(&world.maps(), world.netns(), Transport::Tcp, 61402), 1);
    assert_eq!(
        errno(control::acquire(&owner, &AcquireRequest { start: 61402, count: 1, ..Default::default() })),
        Errno::EADDRINUSE
    );
    drop(shared.next());
    reserve(&owner, 61402, 1);
    drop(listener);
    drop((client, server));
    reserve(&owner, 61401, 1);
    for grant in neighbours {
        control::release(&owner, token(&grant)).unwrap();
    }
    drop(owner);
    world.assert_empty();
}

#[test]
fn r8_tokens_are_unique_and_never_zero() {
    let Some(world) = World::enter("r8") else { return };
    let owners = [tcp(), udp(), tcp6(), udp6()];
    let mut tokens = std::collections::HashSet::new();
    let mut bits = [0u32; 64];
    for _ in 0..2000 {
        for owner in &owners {
            let grant = reserve(owner, 0, 1);
            assert!(tokens.insert(grant.token) && grant.token != 0);
            (0..64).filter(|bit| grant.token >> bit & 1 == 1).for_each(|bit| bits[bit] += 1);
            control::release(owner, token(&grant)).unwrap();
        }
    }
    // This is no proof, but a counter or a clock would fail it: in 8,000 tokens every bit is set in about half.
    assert!(bits.iter().all(|ones| (3500..=4500).contains(ones)), "{bits:?}");
    drop(owners);
    world.assert_empty();
}

#[test]
fn r9_both_align_and_labels() {
    let Some(world) = World::enter("r9") else { return };
    let owner = udp();
    // One token for both transports, ended in one step, through a socket of either.
    let request = AcquireRequest { count: 4, flags: wire::BOTH, ..Default::default() };
    let grant = acquire(&owner, &request).unwrap();
    assert_eq!(grant.transports, 3);
    for transport in Transport::ALL {
        for domain in [Domain::IPV4, Domain::IPV6] {
            let socket = associated(domain, transport, token(&grant));
            bind(&socket, 0).unwrap();
            assert!((grant.start..grant.start + 4).contains(&port(&socket)));
        }
        in_child(|| outsiders_are_refused(transport, grant.start, Errno::EADDRINUSE));
    }
    let twice = AcquireRequest { start: grant.start + 3, count: 2, flags: wire::BOTH, ..Default::default() };
    let before = audit::snapshot(&world.maps(), world.netns());
    assert_eq!(errno(control::acquire(&owner, &twice)), Errno::EADDRINUSE);
    assert_eq!(audit::snapshot(&world.maps(), world.netns()), before);
    control::release(tcp(), token(&grant)).unwrap();
    // If one transport of a port is in use, `both` is refused, and the claim of the other transport is undone.
    let half = tcp();
    let in_the_way = reserve(&half, 61002, 1);
    assert_eq!(
        errno(control::acquire(&owner, &AcquireRequest { start: 61000, flags: wire::BOTH, ..request })),
        Errno::EADDRINUSE
    );
    world.assert_consistent();
    control::release(&half, token(&in_the_way)).unwrap();
    world.assert_empty();

    // The wildcard search skips to aligned starts; a start that is named must be aligned already.
    reserve(&owner, 61001, 1);
    for align in [1, 2, 4, 8, 64, 128, 512, 1024, 2048] {
        for count in [1, 2, 63, 64, 65, 100] {
            let grant = acquire(&owner, &AcquireRequest { count, align, ..Default::default() }).unwrap();
            assert_eq!((grant.start % align, grant.count), (0, count));
            control::release(&owner, token(&grant)).unwrap();
            let off = AcquireRequest { start: 62000 / align * align + 1, count, align, ..Default::default() };
            if align > 1 {
                assert_eq!(errno(control::acquire(&owner, &off)), Errno::EINVAL);
            }
        }
    }
    for align in [3, 6, 100, u16::MAX] {
        assert_eq!(errno(control::acquire(&owner, &AcquireRequest { count: 1, align, ..request })), Errno::EINVAL);
    }
    assert_eq!(
        errno(control::acquire(&owner, &AcquireRequest { count: 1, align: 0x8000, ..Default::default() })),
        Errno::ENOSPC,
        "the pool has no multiple of 32768"
    );

    let mut label = [0; 24];
    label[..5].copy_from_slice(b"media");
    let grant = acquire(&owner, &AcquireRequest { count: 2, label, ..Default::default() }).unwrap();
    let by_token = SelectRequest { by: wire::BY_TOKEN, token: grant.token, ..Default::default() };
    let by_port = SelectRequest { by: wire::BY_PORT, port: grant.start + 1, transport: 2, ..Default::default() };
    let by_next = SelectRequest { by: wire::BY_NEXT, port: grant.start, transport: 2, ..Default::default() };
    for select in [by_token, by_port, by_next] {
        let state = control::state(&owner, &select).unwrap();
        assert_eq!(wire::text(&state.label), "media");
        assert_eq!((state.token, state.start, state.count), (grant.token, grant.start, 2));
        assert_eq!((state.netns, state.pid), (world.netns(), std::process::id()));
        // Others see it, but not its token.
        in_child(|| assert_eq!(control::state(udp(), &select).unwrap().token, 0));
    }
    drop((owner, half));
    world.assert_empty();
}

#[test]
fn r10_another_namespace_is_another_world() {
    let Some(world) = World::enter("r10") else { return };
    let here = tcp();
    let grant = reserve(&here, 61500, 10);
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let elsewhere = new_namespace();
                let there = tcp();
                let same = reserve(&there, 61500, 10);
                assert_ne!(same.token, grant.token);
                // The token is valid in its own namespace only.
                assert_eq!(errno(control::associate(&there, token(&grant))), Errno::EINVAL);
                assert_eq!(errno(control::release(&there, token(&grant))), Errno::EINVAL);
                let select = SelectRequest { by: wire::BY_TOKEN, token: grant.token, ..Default::default() };
                assert_eq!(errno(control::state(&there, &select)), Errno::ENOENT);
                bind(&drawn(token(&same)), 0).unwrap_err();
                drop(there);
                audit::assert_empty(&world.maps(), elsewhere);
                // A socket stays in the namespace in which it was made, even in another process.
                bind(&here, 61503).unwrap();
                assert_eq!(netns::cookie_of(&here).unwrap(), world.netns());
            })
            .join()
    })
    .unwrap();
    assert_eq!(uses(&world.maps(), world.netns(), Transport::Tcp, 61503), 1);
    drop(here);
    world.assert_empty();
}

#[test]
fn a1_association_comes_before_bind() {
    let Some(world) = World::enter("a1") else { return };
    let owner = tcp();
    let (first, second) = (reserve(&owner, 0, 2), reserve(&owner, 0, 2));
    let bound = tcp();
    bind(&bound, 0).unwrap();
    assert_eq!(errno(control::associate(&bound, token(&first))), Errno::EINVAL);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = tcp();
    connect(&connected, &listener.local_addr().unwrap().to_string()).unwrap();
    assert_eq!(errno(control::associate(&connected, token(&first))), Errno::EINVAL);
    let drawn = drawn(token(&first));
    assert_eq!(errno(control::associate(&drawn, token(&second))), Errno::EINVAL);
    assert_eq!(errno(bind(&drawn, 0)), Errno::EINVAL);
    assert_eq!(uses(&world.maps(), world.netns(), Transport::Tcp, port(&drawn)), 1);

    // The second association replaces the first; a failed one replaces nothing.
    let socket = associated(Domain::IPV4, Transport::Tcp, token(&first));
    control::associate(&socket, token(&second)).unwrap();
    assert_eq!(errno(control::associate(&socket, Token::new(1).unwrap())), Errno::ENOENT);
    assert_eq!(errno(bind(&socket, first.start + 1)), Errno::EACCES);
    bind(&socket, 0).unwrap();
    assert_eq!(port(&socket), second.start);
    // After a failed bind the socket is unbound, and may be associated again.
    let again = associated(Domain::IPV4, Transport::Tcp, token(&second));
    assert_eq!(errno(bind(&again, second.start)), Errno::EADDRINUSE);
    control::associate(&again, token(&first)).unwrap();
    bind(&again, 0).unwrap();
    assert_eq!(port(&again), first.start + 1);
    drop((owner, socket, again, drawn, bound, connected));
    world.assert_empty();
}

#[test]
fn a2_scopes_decide_who_may_associate() {
    let Some(world) = World::enter("a2") else { return };
    let owner = tcp();
    let request = AcquireRequest { count: 4, ..Default::default() };
    let process = acquire(&owner, &request).unwrap();
    let user = acquire(&owner, &AcquireRequest { scope: wire::SCOPE_USER, ..request }).unwrap();
    let group = acquire(&owner, &AcquireRequest { scope: wire::SCOPE_CGROUP, ..request }).unwrap();
    let in_bounds = |grant: &wire::Grant, socket: &Socket| (grant.start..grant.start + 4).contains(&port(socket));

    assert_eq!(errno(control::associate(udp(), token(&process))), Errno::EINVAL);
    std::thread::scope(|scope| scope.spawn(|| drawn(token(&process))).join()).unwrap();
    // Another process of the same user in the same cgroup.
    in_child(|| {
        assert_eq!(errno(control::associate(tcp(), token(&process))), Errno::EPERM);
        for grant in [&user, &group] {
            assert!(in_bounds(grant, &drawn(token(grant))));
        }
    });
    // Another user in the same cgroup.
    in_child(|| {
        become_user(NOBODY);
        for grant in [&process, &user] {
            assert_eq!(errno(control::associate(tcp(), token(grant))), Errno::EPERM);
        }
        assert!(in_bounds(&group, &drawn(token(&group))));
    });
    // A cgroup below, and one that is neither: the scope is the named cgroup, with all cgroups below it.
    let (below, deeper, aside) = {
        let sandbox = world.sandbox().cgroup();
        let below = sandbox.child("below").unwrap();
        fs::create_dir(below.join("deeper")).unwrap();
        (below.clone(), below.join("deeper"), sandbox.child("aside").unwrap())
    };
    let enter = |cgroup: &std::path::Path| {
        fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    };
    let mut keeper = Child::fork(|talk| {
        enter(&deeper);
        let owner = tcp();
        let own = acquire(&owner, &AcquireRequest { scope: wire::SCOPE_CGROUP, ..request }).unwrap();
        let cgroup = cgroup::id(&below).unwrap();
        let parent = acquire(&owner, &AcquireRequest { scope: wire::SCOPE_CGROUP, cgroup, ..request }).unwrap();
        // A process cannot name the cgroup of a scope that it is not in.
        for outsider in [cgroup::id(&aside).unwrap(), 1 << 40] {
            let request = AcquireRequest { scope: wire::SCOPE_CGROUP, cgroup: outsider, ..request };
            assert_eq!(errno(control::acquire(&owner, &request)), Errno::EINVAL);
        }
        assert_eq!(errno(control::acquire(&owner, &AcquireRequest { cgroup, ..request })), Errno::EINVAL);
        talk.say(own.token);
        talk.say(parent.token);
        talk.hear();
    });
    let own = Token::new(keeper.talk.hear()).unwrap();
    let parent = Token::new(keeper.talk.hear()).unwrap();
    assert_eq!(errno(control::associate(tcp(), own)), Errno::EPERM);
    assert_eq!(errno(control::associate(tcp(), parent)), Errno::EPERM);
    for (cgroup, to_own, to_parent) in [(&deeper, true, true), (&below, false, true), (&aside, false, false)] {
        in_child(|| {
            enter(cgroup);
            assert_eq!(control::associate(tcp(), own).is_ok(), to_own);
            assert_eq!(control::associate(tcp(), parent).is_ok(), to_parent);
            assert!(in_bounds(&group, &drawn(token(&group))));
        });
    }
    keeper.talk.say(0);
    keeper.join();
    fs::remove_dir(&deeper).unwrap();
    fs::remove_dir(&below).unwrap();
    fs::remove_dir(&aside).unwrap();

    // An associated socket carries its right: it may be inherited, or passed to an outsider.
    let handed = associated(Domain::IPV4, Transport::Tcp, token(&process));
    let mut outsider = Child::fork(|talk| {
        become_user(NOBODY);
        let taken = Socket::from(talk.take());
        bind(&taken, 0).unwrap();
        talk.say(port(&taken).into());
        let inherited = associated_copy(&handed);
        assert_eq!(port(&inherited), 0);
        bind(&inherited, 0).unwrap();
        talk.say(port(&inherited).into());
        // Held open until everything is checked: two processes have one right.
        talk.hear();
    });
    let passed = associated(Domain::IPV4, Transport::Tcp, token(&process));
    outsider.talk.pass(&passed);
    drop(passed);
    let ports = [outsider.talk.hear() as u16, outsider.talk.hear() as u16];
    assert!(ports.iter().all(|port| (process.start..process.start + 4).contains(port)) && ports[0] != ports[1]);
    assert_eq!(port(&handed), ports[1]);
    outsider.talk.say(0);
    outsider.join();
    drop((handed, owner));
    world.assert_empty();
}

fn associated_copy(socket: &Socket) -> Socket {
    socket.try_clone().unwrap()
}

#[test]
fn a3_a_draw_takes_the_next_port_and_a_freed_one_comes_last() {
    let Some(world) = World::enter("a3") else { return };
    for (start, count) in [(61001, 4u16), (61062, 4), (61000, 130)] {
        for (domain, transport) in [(Domain::IPV4, Transport::Tcp), (Domain::IPV6, Transport::Udp)] {
            let owner = socket(domain, transport);
            let grant = reserve(&owner, start, count);
            let draw = || {
                let socket = associated(domain, transport, token(&grant));
                bind(&socket, 0).unwrap();
                socket
            };
            // One at a time, each closed before the next: all ports are drawn, in order, before any is drawn again.
            for round in 0..2 * count {
                assert_eq!(port(&draw()), start + round % count);
            }
            // A port that stays in use is skipped.
            let held = draw();
            assert_eq!(port(&held), start);
            for round in 0..2 * (count - 1) {
                assert_eq!(port(&draw()), start + 1 + round % (count - 1));
            }
            drop((held, owner));
            world.assert_empty();
        }
    }
}

#[test]
fn a4_explicit_ports_inside_the_block_follow_the_ordinary_rules() {
    let Some(world) = World::enter("a4") else { return };
    let owner = tcp();
    let grant = reserve(&owner, 61600, 3);
    let socket = |transport_owner: &wire::Grant| associated(Domain::IPV4, Transport::Tcp, token(transport_owner));
    for outside in [1, 1023, 8080, 61599, 61603, 65535] {
        assert_eq!(errno(bind(&socket(&grant), outside)), Errno::EACCES);
    }
    let first = socket(&grant);
    bind_to(&first, "127.0.0.1:61601").unwrap();
    assert_eq!(errno(bind_to(&socket(&grant), "127.0.0.1:61601")), Errno::EADDRINUSE);
    assert_eq!(errno(bind(&socket(&grant), 61601)), Errno::EADDRINUSE);
    let second = socket(&grant);
    bind_to(&second, "127.0.0.2:61601").unwrap();
    assert_eq!(uses(&world.maps(), world.netns(), Transport::Tcp, 61601), 2);
    drop((first, second));
    // Sharing, if all sockets ask for it.
    let shared: Vec<_> = (0..3)
        .map(|_| {
            let socket = socket(&grant);
            socket.set_reuse_port(true).unwrap();
            bind(&socket, 61602).unwrap();
            socket.listen(1).unwrap();
            socket
        })
        .collect();
    assert_eq!(uses(&world.maps(), world.netns(), Transport::Tcp, 61602), 3);
    assert_eq!(errno(bind(&socket(&grant), 61602)), Errno::EADDRINUSE);
    world.assert_consistent();
    drop(shared);
    assert_eq!(uses(&world.maps(), world.netns(), Transport::Tcp, 61602), 0);
    // A failed bind leaves the port as it was: here the address is not local.
    let lost = socket(&grant);
    assert_eq!(bind_to(&lost, "192.0.2.1:61600").unwrap_err().raw_os_error(), Some(libc::EADDRNOTAVAIL));
    assert_eq!(bind_to(&lost, "192.0.2.1:0").unwrap_err().raw_os_error(), Some(libc::EADDRNOTAVAIL));
    bind(&lost, 61600).unwrap();
    // Both families are one reservation: a dual-stack socket blocks IPv4.
    let dual = associated(Domain::IPV6, Transport::Tcp, token(&grant));
    bind(&dual, 61601).unwrap();
    assert_eq!(errno(bind(&socket(&grant), 61601)), Errno::EADDRINUSE);
    drop((lost, dual, owner));
    world.assert_empty();
}

#[test]
fn a5_an_exhausted_block_is_in_use() {
    let Some(world) = World::enter("a5") else { return };
    for (domain, transport) in [(Domain::IPV4, Transport::Tcp), (Domain::IPV6, Transport::Udp)] {
        let owner = socket(domain, transport);
        let grant = reserve(&owner, 0, 70);
        let mut all: Vec<_> = (0..70)
            .map(|_| {
                let socket = associated(domain, transport, token(&grant));
                bind(&socket, 0).unwrap();
                socket
            })
            .collect();
        let mut ports: Vec<_> = all.iter().map(port).collect();
        ports.sort_unstable();
        assert_eq!(ports, (grant.start..grant.start + 70).collect::<Vec<_>>());
        let late = associated(domain, transport, token(&grant));
        assert_eq!(errno(bind(&late, 0)), Errno::EADDRINUSE);
        let freed = port(&all.remove(33));
        bind(&late, 0).unwrap();
        assert_eq!(port(&late), freed);
        drop((all, late, owner));
        world.assert_empty();
    }
}

#[test]
fn a6_connect_draws_the_source_port() {
    let Some(world) = World::enter("a6") else { return };
    let owner = tcp();
    let request = AcquireRequest { count: 2, flags: wire::BOTH, ..Default::default() };
    let grant = acquire(&owner, &request).unwrap();
    let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
    let v6 = TcpListener::bind("[::1]:0").unwrap();
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let receiver6 = UdpSocket::bind("[::1]:0").unwrap();
    // Its own listener: the kernel refuses the same four addresses and ports again directly after a close.
    let behind_mapped = TcpListener::bind("127.0.0.1:0").unwrap();
    let mapped = format!("[::ffff:127.0.0.1]:{}", behind_mapped.local_addr().unwrap().port());
    let at = |address: SocketAddr| address.to_string();
    let udp_port = receiver.local_addr().unwrap().port();
    let cases = [
        (Domain::IPV4, Transport::Tcp, at(v4.local_addr().unwrap())),
        (Domain::IPV6, Transport::Tcp, at(v6.local_addr().unwrap())),
        (Domain::IPV6, Transport::Tcp, mapped),
        (Domain::IPV4, Transport::Udp, at(receiver.local_addr().unwrap())),
        (Domain::IPV6, Transport::Udp, at(receiver6.local_addr().unwrap())),
        (Domain::IPV6, Transport::Udp, format!("[::ffff:127.0.0.1]:{udp_port}")),
        // An IPv6 socket may connect to an address of the IPv4 family, with UDP.
        (Domain::IPV6, Transport::Udp, format!("127.0.0.1:{udp_port}")),
    ];
    for (domain, transport, address) in &cases {
        let draw = || {
            let socket = associated(*domain, *transport, token(&grant));
            connect(&socket, address).map(|()| socket)
        };
        let (one, other) = (draw().unwrap(), draw().unwrap());
        let mut ports = [port(&one), port(&other)];
        ports.sort_unstable();
        assert_eq!(ports, [grant.start, grant.start + 1], "{transport} {address}");
        assert_eq!(uses(&world.maps(), world.netns(), *transport, grant.start), 1);
        assert_eq!(errno(draw()), Errno::EADDRINUSE, "{transport} {address}");
        world.assert_consistent();
        if *transport == Transport::Udp {
            // A second connect keeps the port, and so does dissolving the association with the peer.
            connect(&one, address).unwrap();
            assert!(ports.contains(&port(&one)));
        }
        drop((one, other));
        assert_eq!(uses(&world.maps(), world.netns(), *transport, grant.start), 0, "{transport} {address}");
    }
    // If nobody listens, the connection fails. The port is drawn all the same, and is free when the socket closes.
    let refused = associated(Domain::IPV4, Transport::Tcp, token(&grant));
    assert_eq!(connect(&refused, "127.0.0.1:9").unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
    drop(refused);
    world.assert_consistent();
    // If there was an explicit bind before the connect, it counts.
    let bound = associated(Domain::IPV4, Transport::Udp, token(&grant));
    bind(&bound, grant.start + 1).unwrap();
    connect(&bound, &at(receiver.local_addr().unwrap())).unwrap();
    assert_eq!(port(&bound), grant.start + 1);
    assert_eq!(uses(&world.maps(), world.netns(), Transport::Udp, grant.start + 1), 1);
    // A socket of the owner process that is not associated does not draw.
    let plain = tcp();
    connect(&plain, &at(v4.local_addr().unwrap())).unwrap();
    assert!(!(grant.start..grant.start + 2).contains(&port(&plain)));
    drop((bound, plain, owner));
    world.assert_empty();
}

#[test]
fn a7_unmodified_servers_of_the_scope_bind_their_ports() {
    let Some(world) = World::enter("a7") else { return };
    let owner = tcp();
    let grant = reserve(&owner, 61700, 4);
    for socket in [tcp(), tcp6()] {
        bind(&socket, 61700).unwrap();
        assert_eq!(uses(&world.maps(), world.netns(), Transport::Tcp, 61700), 1);
    }
    drop(TcpListener::bind("127.0.0.1:61701").unwrap());
    in_child(|| assert_eq!(errno(bind(&tcp(), 61700)), Errno::EADDRINUSE));
    // Among sockets in the scope the kernel's usual rules apply.
    let first = tcp();
    bind(&first, 61702).unwrap();
    assert_eq!(errno(bind(&tcp(), 61702)), Errno::EADDRINUSE);
    assert_eq!(errno(bind(&tcp6(), 61702)), Errno::EADDRINUSE);
    drop(first);
    // The other transport is not reserved.
    bind(&udp(), 61700).unwrap();
    // `strict` requires association, also of the owner.
    let request = AcquireRequest { start: 61710, count: 2, flags: wire::STRICT, ..Default::default() };
    let strict = acquire(&owner, &request).unwrap();
    assert_eq!(errno(bind(&tcp(), 61710)), Errno::EADDRINUSE);
    assert_eq!(port(&drawn(token(&strict))), 61710);
    // Wider scopes: another process may, another user may not.
    let request = AcquireRequest { start: 61720, count: 2, scope: wire::SCOPE_USER, ..Default::default() };
    acquire(&owner, &request).unwrap();
    in_child(|| {
        bind(&tcp(), 61720).unwrap();
        bind(&tcp6(), 61721).unwrap();
        become_user(NOBODY);
        assert_eq!(errno(bind(&tcp(), 61720)), Errno::EADDRINUSE);
    });
    let request = AcquireRequest { start: 61730, count: 2, scope: wire::SCOPE_CGROUP, ..Default::default() };
    acquire(&owner, &request).unwrap();
    in_child(|| {
        become_user(NOBODY);
        bind(&tcp(), 61730).unwrap();
    });
    control::release(&owner, token(&grant)).unwrap();
    bind(&tcp(), 61700).unwrap();
    drop(owner);
    world.assert_empty();
}

#[test]
fn a7_servers_that_ask_for_mptcp_leave_nothing_behind() {
    let Some(world) = World::enter("a7_mptcp") else { return };
    let Ok(server) = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::from(IPPROTO_MPTCP))) else { return };
    let owner = tcp();
    let grant = reserve(&owner, 61800, 1);
    bind(&server, 61800).unwrap();
    server.listen(1).unwrap();
    assert_eq!(uses(&world.maps(), world.netns(), Transport::Tcp, 61800), 1);
    drop(TcpStream::connect("127.0.0.1:61800").unwrap());
    drop(server);
    assert_eq!(uses(&world.maps(), world.netns(), Transport::Tcp, 61800), 0);
    control::release(&owner, token(&grant)).unwrap();
    drop(owner);
    world.assert_empty();
}

#[test]
fn a8_privileged_ports_need_no_capability_for_those_in_scope() {
    let Some(_world) = World::with_outside("a8") else { return };
    let mut settings = Settings::default();
    settings.pool = Some(PortRange::inclusive(600, 700).unwrap());
    let sandbox = Sandbox::beside("privileged", &settings);
    let mut root = Child::fork(|talk| {
        talk.hear();
        let owner = tcp();
        let request = AcquireRequest { count: 10, flags: wire::BOTH, ..Default::default() };
        let user = acquire(&owner, &AcquireRequest { scope: wire::SCOPE_USER, ..request }).unwrap();
        let group = acquire(&owner, &AcquireRequest { scope: wire::SCOPE_CGROUP, ..request }).unwrap();
        let strict = AcquireRequest { scope: wire::SCOPE_CGROUP, flags: wire::BOTH | wire::STRICT, ..request };
        let strict = acquire(&owner, &strict).unwrap();
        for grant in [&user, &group, &strict] {
            assert!((600..=691).contains(&grant.start));
        }
        in_child(|| {
            become_user(NOBODY);
            // The kernel's own answer where nothing is reserved; the reservation's answer outside its scope.
            assert_eq!(errno(bind(&tcp(), 80)), Errno::EACCES);
            assert_eq!(errno(bind(&tcp(), user.start)), Errno::EADDRINUSE);
            assert_eq!(errno(bind(&tcp(), strict.start)), Errno::EADDRINUSE);
            for socket in [tcp(), tcp6(), udp(), udp6()] {
                bind(&socket, group.start + 1).unwrap();
            }
            for (domain, transport) in [(Domain::IPV4, Transport::Tcp), (Domain::IPV6, Transport::Udp)] {
                let socket = associated(domain, transport, token(&strict));
                bind(&socket, 0).unwrap();
                assert!((strict.start..strict.start + 10).contains(&port(&socket)));
            }
            // The kernel binds a draw at a connect in the program's name, with the capabilities of the caller, which
            // has none.
            let client = associated(Domain::IPV4, Transport::Udp, token(&strict));
            assert_eq!(errno(connect(&client, "127.0.0.1:9")), Errno::EACCES);
            // If the socket binds first, it connects.
            bind(&client, 0).unwrap();
            connect(&client, "127.0.0.1:9").unwrap();
            // From the pool, which the administrator has chosen, any process may acquire such ports and use them.
            let own = tcp();
            let grant = reserve(&own, 0, 2);
            bind(&tcp(), grant.start).unwrap();
            assert_eq!(port(&drawn(token(&grant))), grant.start);
            // Another process of the same user, with a user scope.
            let request = AcquireRequest { count: 2, scope: wire::SCOPE_USER, ..Default::default() };
            let mine = acquire(&own, &request).unwrap();
            in_child(|| bind(&tcp6(), mine.start + 1).unwrap());
            assert_eq!(errno(bind(&tcp(), 599)), Errno::EACCES);
        });
        talk.say(0);
    });
    sandbox.cgroup().enter(root.pid()).unwrap();
    root.talk.say(0);
    root.join();
    let maps = sandbox.loaded().maps().unwrap();
    audit::assert_consistent(&maps);
    assert_eq!(maps.counters().unwrap().reservations, 0);
}

#[test]
fn a9_time_wait_does_not_keep_a_port_from_being_drawn() {
    let Some(world) = World::enter("a9") else { return };
    let owner = tcp();
    let grant = reserve(&owner, 0, 1);
    let address = format!("127.0.0.1:{}", grant.start);
    // The server's side of TIME_WAIT, for associated and other sockets, drawn and named.
    for named in [0, grant.start, 0] {
        let listener = associated(Domain::IPV4, Transport::Tcp, token(&grant));
        bind(&listener, named).unwrap();
        listener.listen(1).unwrap();
        leave_time_wait(&listener, &address);
    }
    let unmodified = tcp();
    bind(&unmodified, grant.start).unwrap();
    unmodified.listen(1).unwrap();
    leave_time_wait(&unmodified, &address);
    drop(unmodified);
    // The client's side: one connection after another uses the only port of the block.
    for _ in 0..3 {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = associated(Domain::IPV4, Transport::Tcp, token(&grant));
        connect(&client, &target.local_addr().unwrap().to_string()).unwrap();
        assert_eq!(port(&client), grant.start);
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (mut server, _) = target.accept().unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut [0; 1]).unwrap(), 0);
        drop(server);
        assert_eq!((&client).read(&mut [0; 1]).unwrap(), 0);
    }
    // Two sockets that do not listen still conflict: the option that allows sharing is not set while another socket is
    // bound.
    let first = drawn(token(&grant));
    let second = associated(Domain::IPV4, Transport::Tcp, token(&grant));
    assert_eq!(errno(bind(&second, grant.start)), Errno::EADDRINUSE);
    assert!(!SockRef::from(&second).reuse_address().unwrap());
    drop((first, second, owner));
    world.assert_empty();
}
