//! The agent as a process of its own, in a namespace of its own. The kernel enforcement applies to this process, too.

use std::{
    fs::{self, File},
    io::{self, Read},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use portkeep::{
    control,
    persistent::{Connection, protocol},
};
use portkeep_agent::{self as agent, Agent, Options, Programs, RuntimeDir};
use portkeep_core::{
    Errno, Transport,
    wire::{self, AcquireRequest, Grant},
};
use portkeep_kernel::{Instance, UpOptions, WordKey, bpffs, cgroup};
use portkeep_testkit::{
    Sandbox, TestCgroup, World,
    agent::AgentProcess,
    eventually, new_namespace,
    process::{Child, become_user, in_child},
    sockets::{bind, bind_to, connect, errno, port, tcp, tcp6, token, udp, udp6},
};
use rustix::{
    mount::{MountPropagationFlags, mount_change},
    process::{Pid, Signal, kill_process},
};
use socket2::Socket;

const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// With an event ring of its own. An older reader of the ring would find events again that another reader took out.
fn programs() -> Programs {
    Programs::of_loaded(&mut Sandbox::get().loaded()).unwrap()
}

/// ACQUIRE, and the agent's answer.
fn ask(socket: &Socket, start: u16, count: u16) -> Result<Grant, Errno> {
    request(socket, &AcquireRequest { start, count, ..Default::default() })
}

fn number(error: io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap())
}

fn request(socket: &Socket, request: &AcquireRequest) -> Result<Grant, Errno> {
    match control::acquire(socket, request).map_err(number) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    decided(socket)
}

/// The agent's answer to the last request.
fn decided(socket: &Socket) -> Result<Grant, Errno> {
    let begin = Instant::now();
    loop {
        let grant = control::granted(socket).map_err(number)?;
        match grant.state {
            wire::ACTIVE => return Ok(grant),
            // Without an error, it is being withdrawn at this moment.
            wire::REFUSED if grant.error != 0 => return Err(Errno(grant.error.into())),
            _ => assert!(begin.elapsed() < Duration::from_secs(60), "no answer from the agent"),
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The same for ports that are just being released: it takes some time to close a connection.
#[track_caller]
fn ask_until_vacant(socket: &Socket, start: u16, count: u16) -> Grant {
    let mut grant = None;
    eventually(|| match ask(socket, start, count) {
        Err(Errno::EADDRINUSE) => false,
        other => {
            grant = Some(other.unwrap());
            true
        }
    });
    grant.unwrap()
}

/// The ports in the sysctl of this thread's namespace, in one read.
fn reserved() -> String {
    let mut text = vec![0; 1 << 18];
    let length = File::open(RESERVED).unwrap().read(&mut text).unwrap();
    String::from_utf8_lossy(&text[..length]).trim().to_owned()
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

#[test]
fn a_vacant_block_is_granted_in_the_callers_namespace() {
    let Some(world) = World::enter("a_vacant_block_is_granted_in_the_callers_namespace") else { return };
    let runtime = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start_apart(runtime.path());
    fs::write(RESERVED, "100,5002,7000-7009").unwrap();

    let owner = tcp();
    assert_eq!(control::version(&owner).unwrap().agent, 1);
    let grant = ask(&owner, 5000, 4).unwrap();
    assert_eq!((grant.start, grant.count), (5000, 4));
    assert_eq!(reserved(), "100,5000-5003,7000-7009");

    // The same numbers can be reserved in another namespace, although they are reserved in this one.
    thread::scope(|scope| {
        scope.spawn(|| {
            new_namespace();
            let owner = tcp();
            ask(&owner, 5000, 4).unwrap();
            assert_eq!(reserved(), "5000-5003");
            control::release(&owner, token(&control::granted(&owner).unwrap())).unwrap();
            eventually(|| reserved().is_empty());
        });
    });
    assert_eq!(reserved(), "100,5000-5003,7000-7009");

    // Entries that others add meanwhile stay, too. Their earlier entries are not removed as ours.
    fs::write(RESERVED, "100,5000-5003,7000-7009,8000").unwrap();
    control::release(&owner, token(&grant)).unwrap();
    eventually(|| reserved() == "100,5002,7000-7009,8000");

    let owner = udp();
    request(&owner, &AcquireRequest { start: 1000, count: 1, flags: wire::BOTH, ..Default::default() }).unwrap();
    drop(owner);
    agent.stop();
    world.assert_empty();
}

#[test]
fn many_blocks_make_a_long_sysctl_and_none_is_lost() {
    let Some(world) = World::enter("many_blocks_make_a_long_sysctl_and_none_is_lost") else { return };
    let runtime = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start_apart(runtime.path());
    // 20,000 bytes of them: five writes.
    let theirs: Vec<String> = (40000..48000u16).step_by(2).map(|port| port.to_string()).collect();
    let theirs = theirs.join(",");
    let file = fs::OpenOptions::new().write(true).open(RESERVED).unwrap();
    for (i, part) in theirs.as_bytes().chunks(3000).enumerate() {
        std::os::unix::fs::FileExt::write_at(&file, part, i as u64).unwrap();
    }
    assert_eq!(reserved(), theirs);

    let owners: Vec<Socket> = (0..100).map(|_| udp()).collect();
    for (i, owner) in owners.iter().enumerate() {
        ask(owner, 10000 + 10 * i as u16, 5).unwrap();
    }
    assert!(reserved().ends_with(&theirs) && reserved().starts_with("10000-10004,10010-10014,"));
    ask(&tcp(), 20000, 5000).unwrap();
    drop(owners);
    eventually(|| reserved() == theirs);
    agent.stop();
    world.assert_empty();
}

#[test]
fn any_socket_on_the_port_is_in_the_way() {
    let Some(world) = World::enter("any_socket_on_the_port_is_in_the_way") else { return };
    let runtime = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start_apart(runtime.path());
    let elsewhere = TcpListener::bind(address(4000)).unwrap();

    type Occupy = fn() -> Socket;
    let occupants: [(&str, Transport, Occupy); 13] = [
        ("a listener", Transport::Tcp, || TcpListener::bind(address(5002)).unwrap().into()),
        ("a listener without SO_REUSEADDR", Transport::Tcp, || {
            let socket = tcp();
            bind(&socket, 5002).unwrap();
            socket.listen(1).unwrap();
            socket
        }),
        ("a socket that is only bound", Transport::Tcp, || {
            let socket = tcp();
            bind_to(&socket, &address(5002)).unwrap();
            socket
        }),
        ("one that would share with others", Transport::Tcp, || {
            let socket = tcp();
            socket.set_reuse_address(true).unwrap();
            socket.set_reuse_port(true).unwrap();
            bind(&socket, 5002).unwrap();
            socket
        }),
        ("IPv6 alone", Transport::Tcp, || {
            let socket = tcp6();
            socket.set_only_v6(true).unwrap();
            bind_to(&socket, "[::1]:5002").unwrap();
            socket
        }),
        ("both families", Transport::Tcp, || {
            let socket = tcp6();
            bind(&socket, 5002).unwrap();
            socket
        }),
        ("one device", Transport::Tcp, || {
            let socket = tcp();
            socket.bind_device(Some(b"lo")).unwrap();
            bind(&socket, 5002).unwrap();
            socket
        }),
        ("a client that chose its port", Transport::Tcp, || {
            let socket = tcp();
            bind(&socket, 5002).unwrap();
            connect(&socket, &address(4000)).unwrap();
            // So that no TIME_WAIT stays behind.
            socket.set_linger(Some(Duration::ZERO)).unwrap();
            socket
        }),
        ("a bound UDP socket", Transport::Udp, || {
            let socket = udp();
            bind_to(&socket, &address(5002)).unwrap();
            socket
        }),
        ("a UDP socket with SO_REUSEADDR", Transport::Udp, || {
            let socket = udp();
            socket.set_reuse_address(true).unwrap();
            bind(&socket, 5002).unwrap();
            socket
        }),
        ("a connected UDP socket", Transport::Udp, || {
            let socket = udp();
            bind(&socket, 5002).unwrap();
            connect(&socket, &address(4000)).unwrap();
            socket
        }),
        ("a UDP socket of IPv6 alone", Transport::Udp, || {
            let socket = udp6();
            socket.set_only_v6(true).unwrap();
            bind(&socket, 5002).unwrap();
            socket
        }),
        ("a UDP socket of both families", Transport::Udp, || {
            let socket = udp6();
            bind(&socket, 5002).unwrap();
            socket
        }),
    ];
    for (what, transport, occupy) in occupants {
        let occupant = occupy();
        let (same, other) = if transport == Transport::Tcp { (tcp(), udp()) } else { (udp(), tcp()) };
        let both = AcquireRequest { start: 5000, count: 4, flags: wire::BOTH, ..Default::default() };
        assert_eq!(ask(&same, 5000, 4), Err(Errno::EADDRINUSE), "{what}");
        // The agent examines a long block in another way.
        assert_eq!(ask(&same, 5000, 500), Err(Errno::EADDRINUSE), "{what}");
        assert_eq!(request(&other, &both), Err(Errno::EADDRINUSE), "{what}");
        eventually(|| reserved().is_empty());
        world.assert_empty();
        // The refusal leaves nothing behind, and the ports of the other transport are not affected.
        let grant = ask(&other, 5000, 4).unwrap();
        control::release(&other, token(&grant)).unwrap();
        drop(occupant);
        let grant = ask_until_vacant(&same, 5000, 500);
        control::release(&same, token(&grant)).unwrap();
    }

    // A port that the kernel chose for a client.
    let client = TcpStream::connect(address(4000)).unwrap();
    let chosen = client.local_addr().unwrap().port();
    assert_eq!(ask(&tcp(), chosen, 1), Err(Errno::EADDRINUSE));
    drop((client, elsewhere));
    agent.stop();
    world.assert_empty();
}

/// A connection between two sockets of this namespace; `server` was accepted by `listener`.
fn connection(reuse: bool, port: u16, from: u16) -> (Socket, Socket, Socket) {
    let listener = tcp();
    listener.set_reuse_address(reuse).unwrap();
    bind(&listener, port).unwrap();
    listener.listen(1).unwrap();
    let client = tcp();
    client.set_reuse_address(reuse).unwrap();
    bind(&client, from).unwrap();
    connect(&client, &address(port)).unwrap();
    let (server, _) = listener.accept().unwrap();
    (listener, client, server)
}

#[test]
fn a_socket_that_would_keep_the_next_holder_from_binding_counts_as_in_use() {
    let Some(world) = World::enter("a_socket_that_would_keep_the_next_holder_from_binding_counts_as_in_use") else {
        return;
    };
    let runtime = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start_apart(runtime.path());

    // The side that closes first is in TIME_WAIT: here the server. With SO_REUSEADDR, the next socket can bind its
    // port.
    let (listener, client, server) = connection(true, 5000, 0);
    drop((server, listener));
    drop(client);
    assert_eq!(errno(bind(&tcp(), 5000)), Errno::EADDRINUSE);
    for count in [1, 500] {
        let owner = tcp();
        let grant = ask_until_vacant(&owner, 5000, count);
        bind(&owner, 5000).unwrap();
        control::release(&owner, token(&grant)).unwrap();
        drop(owner);
    }
    // Here the client closes first.
    let (listener, client, server) = connection(true, 5600, 5700);
    drop(client);
    drop((server, listener));
    assert_eq!(errno(bind(&tcp(), 5700)), Errno::EADDRINUSE);
    ask_until_vacant(&tcp(), 5700, 1);

    // Without SO_REUSEADDR no socket can bind the port, whatever its own options are: the request is refused.
    for (port, from, first) in [(5100, 0, true), (5150, 5200, false)] {
        let (listener, client, server) = connection(false, port, from);
        if first {
            drop((server, listener));
            drop(client);
        } else {
            drop(client);
            drop((server, listener));
        }
        let left = if first { port } else { from };
        let reusing = tcp();
        reusing.set_reuse_address(true).unwrap();
        eventually(|| {
            let tables = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
            tables.lines().any(|line| line.contains(&format!(":{left:04X} ")) && line.contains(" 06 "))
        });
        assert_eq!(errno(bind(&reusing, left)), Errno::EADDRINUSE);
        for count in [1, 40] {
            assert_eq!(ask(&tcp(), left, count), Err(Errno::EADDRINUSE));
        }
    }

    let (listener, _client, _server) = connection(true, 5300, 0);
    drop(listener);
    ask(&tcp(), 5300, 1).unwrap();
    let (listener, _client, _server) = connection(false, 5400, 0);
    drop(listener);
    assert_eq!(ask(&tcp(), 5400, 1), Err(Errno::EADDRINUSE));
    // A socket in TIME_WAIT does not hide another socket on the port.
    let (listener, client, server) = connection(true, 5500, 0);
    drop(server);
    drop(client);
    assert_eq!(ask(&tcp(), 5500, 1), Err(Errno::EADDRINUSE));
    drop(listener);
    ask_until_vacant(&tcp(), 5500, 1);
    agent.stop();
    world.assert_empty();
}

/// Two reservations can have the same numbers for TCP and UDP. The entry is removed with the second. Entries of others
/// are changed meanwhile. At no moment does an automatic choice find a reserved port that is not entered.
#[test]
fn r3_what_is_granted_is_entered_all_the_time() {
    let Some(world) = World::enter("r3_what_is_granted_is_entered_all_the_time") else { return };
    let runtime = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start_apart(runtime.path());
    let (first, second) = (tcp(), udp());
    ask(&first, 5000, 4).unwrap();
    ask(&second, 5002, 4).unwrap();
    assert_eq!(reserved(), "5000-5005");
    drop(first);
    eventually(|| reserved() == "5002-5005");
    thread::scope(|scope| {
        let others = scope.spawn(|| {
            for round in 0..20u16 {
                let owner = tcp();
                ask(&owner, 6000 + 10 * round, 5).unwrap();
                drop(owner);
                eventually(|| reserved() == "5002-5005");
            }
        });
        while !others.is_finished() {
            let entered = reserved();
            assert!(entered.starts_with("5002-5005"), "{entered}");
        }
    });
    drop(second);
    eventually(|| reserved().is_empty());
    agent.stop();
    world.assert_empty();
}

/// An entry without a reservation is removed before a request is refused because of it (N5).
#[test]
fn n5_what_was_refused_or_has_ended_uses_up_nothing() {
    let Some(world) = World::enter("n5_what_was_refused_or_has_ended_uses_up_nothing") else { return };
    let runtime = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start_apart(runtime.path());
    // Of these 1000, 500 have to be left.
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40999").unwrap();
    let in_use = tcp();
    bind(&in_use, 40000).unwrap();
    let acquire = |start| {
        let owner = tcp();
        let request = AcquireRequest { start, count: 400, ..Default::default() };
        assert_eq!(errno(control::acquire(&owner, &request)), Errno::EINPROGRESS);
        owner
    };
    // Both wait, so that one is examined right after the other is refused.
    agent.signal(Signal::STOP);
    let (refused, granted) = (acquire(40000), acquire(40400));
    agent.signal(Signal::CONT);
    assert_eq!(decided(&refused), Err(Errno::EADDRINUSE));
    decided(&granted).unwrap();
    assert_eq!(reserved(), "40400-40799");
    // The same for reservations that have ended.
    drop((granted, in_use));
    for round in 0..20u16 {
        ask_until_vacant(&tcp(), 40000 + 500 * (round % 2), 400);
    }
    agent.stop();
    world.assert_empty();
}

#[test]
fn a_killed_agent_takes_nothing_with_it_and_the_next_one_repairs() {
    let Some(world) = World::enter("a_killed_agent_takes_nothing_with_it_and_the_next_one_repairs") else { return };
    let runtime = tempfile::tempdir().unwrap();
    assert_eq!(ask(&tcp(), 5000, 1), Err(Errno::ENETDOWN));
    let agent = AgentProcess::start_apart(runtime.path());
    let (first, second) = (tcp(), tcp());
    fs::write(RESERVED, "100").unwrap();
    let grant = ask(&first, 5000, 4).unwrap();
    ask(&second, 6000, 4).unwrap();
    assert_eq!(reserved(), "100,5000-5003,6000-6003");

    agent.kill();
    assert_eq!(ask(&tcp(), 5100, 1), Err(Errno::ENETDOWN));
    assert_eq!(control::version(tcp()).unwrap().agent, 0);
    in_child(|| assert_eq!(errno(bind(&tcp(), 5000)), Errno::EADDRINUSE));
    control::release(&first, token(&grant)).unwrap();
    // The sysctl is overwritten while no agent runs.
    fs::write(RESERVED, "200,5000-5003").unwrap();
    // Only this thread is in its namespace, and not its process. So the next agent finds the namespace only by the
    // state.
    let agent = AgentProcess::start_apart(runtime.path());
    eventually(|| reserved() == "200,6000-6003");
    ask(&first, 5100, 1).unwrap();
    assert_eq!(reserved(), "200,5100,6000-6003");

    agent.stop();
    assert_eq!(reserved(), "200,5100,6000-6003");
    let restored = agent::restore_all(&RuntimeDir::at(runtime.path())).unwrap();
    assert_eq!((restored.namespaces, restored.unreachable), (1, 0));
    assert_eq!(reserved(), "200");
    drop((first, second));
    world.assert_empty();
}

#[test]
fn killed_at_any_instant_nothing_of_ours_stays_in_the_sysctl() {
    let Some(world) = World::enter("killed_at_any_instant_nothing_of_ours_stays_in_the_sysctl") else { return };
    let runtime = tempfile::tempdir().unwrap();
    fs::write(RESERVED, "100,10003").unwrap();
    for round in 0..20u64 {
        let agent = AgentProcess::start_apart(runtime.path());
        let end = Instant::now() + Duration::from_micros(round * 1500);
        let mut asked = Vec::new();
        for i in 0.. {
            if Instant::now() >= end {
                break;
            }
            let owner = tcp();
            let start = 10000 + (i % 500) * 10;
            let _ = control::acquire(&owner, &AcquireRequest { start, count: 5, ..Default::default() });
            asked.push(owner);
            if i % 3 == 0 {
                asked.clear();
            }
        }
        agent.kill();
    }
    let agent = AgentProcess::start_apart(runtime.path());
    eventually(|| reserved() == "100,10003");
    agent.stop();
    world.assert_empty();
}

#[test]
fn requests_without_an_event_are_found() {
    let Some(world) = World::enter("requests_without_an_event_are_found") else { return };
    let runtime = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start_apart(runtime.path());
    agent.signal(Signal::STOP);
    let lost = || world.maps().counters().unwrap().lost;
    let before = lost();
    while lost() == before {
        // Each is granted at once, and is an event.
        control::acquire(tcp(), &AcquireRequest { start: 0, count: 1, ..Default::default() }).unwrap();
    }
    // The agent knows only the process. Only this thread is in the namespace, and root may bind its privileged ports.
    let owners = [5000, 601].map(|start| {
        let owner = tcp();
        let request = AcquireRequest { start, count: 1, ..Default::default() };
        assert_eq!(errno(control::acquire(&owner, &request)), Errno::EINPROGRESS);
        (owner, start)
    });
    assert!(lost() >= before + 3);
    agent.signal(Signal::CONT);
    for (owner, start) in &owners {
        assert_eq!(decided(owner).map(|grant| grant.start), Ok(*start));
    }
    drop(owners);
    agent.stop();
    world.assert_empty();
}

/// The ring has the event of a request whose process has ended. Another request has its entry now.
#[test]
fn a_request_of_root_has_the_entry_of_one_that_is_gone() {
    let Some(world) = World::enter("a_request_of_root_has_the_entry_of_one_that_is_gone") else { return };
    let runtime = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start_apart(runtime.path());
    agent.signal(Signal::STOP);
    let acquire = |start| {
        let owner = tcp();
        let request = AcquireRequest { start, count: 1, ..Default::default() };
        assert_eq!(errno(control::acquire(&owner, &request)), Errno::EINPROGRESS);
        owner
    };
    let entry = || world.maps().reservations().map(|found| found.unwrap().0).collect::<Vec<u32>>();
    let mut gone = Child::fork(|talk| {
        let _owner = acquire(600);
        talk.say(0);
        _ = talk.try_hear();
    });
    gone.talk.hear();
    let earlier = entry();
    drop(gone);
    eventually(|| entry().is_empty());
    let owner = acquire(601);
    assert_eq!(entry(), earlier);
    agent.signal(Signal::CONT);
    assert_eq!(decided(&owner).map(|grant| grant.start), Ok(601));
    drop(owner);
    agent.stop();
    world.assert_empty();
}

#[test]
fn a_flood_of_events_keeps_the_agent_from_nothing_else() {
    let Some(world) = World::enter("a_flood_of_events_keeps_the_agent_from_nothing_else") else { return };
    let runtime = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start_apart(runtime.path());
    // More events than it can report: the ring is never empty.
    let flood: Vec<Child> = (0..4)
        .map(|_| {
            Child::fork(|_| {
                let owner = tcp();
                loop {
                    let grant = ask(&owner, 0, 1).unwrap();
                    control::release(&owner, token(&grant)).unwrap();
                }
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(500));
    let mut connection = Connection::open_at(&protocol::socket_in(runtime.path())).unwrap();
    assert_eq!(connection.list().unwrap(), []);
    let waits = tcp();
    ask(&waits, 5000, 1).unwrap();
    agent.stop();
    drop((flood, waits));
    world.assert_empty();
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.pid() as i32).unwrap()
}

/// The agent checks a port by a bind, which keeps other processes from the port for an instant. A request that is refused
/// keeps no process from a port (N1).
#[test]
fn n1_a_request_for_a_block_with_a_port_in_use_keeps_no_process_from_the_others() {
    let Some(world) = World::enter("n1_a_request_for_a_block_with_a_port_in_use") else { return };
    let runtime = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start_apart(runtime.path());
    let (in_tcp, in_udp) = (tcp(), udp());
    bind(&in_tcp, 7063).unwrap();
    bind(&in_udp, 7163).unwrap();
    let both = AcquireRequest { start: 7100, count: 64, flags: wire::BOTH, ..Default::default() };
    for asked in [AcquireRequest { start: 7000, count: 64, ..Default::default() }, both] {
        let asker = Child::fork(|talk| {
            let owner = tcp();
            talk.say(0);
            loop {
                assert_eq!(request(&owner, &asked), Err(Errno::EADDRINUSE));
            }
        });
        let free = (asked.start..asked.start + 63).cycle();
        for port in free.take(30_000) {
            assert!(bind(&tcp(), port).is_ok(), "{port} was kept from another process");
        }
        asker.kill();
    }
    drop((in_tcp, in_udp));
    agent.stop();
    world.assert_empty();
}

/// How many namespaces there are is up to users. The agent puts them right after it has begun to answer.
#[test]
fn the_first_answer_does_not_wait_for_namespaces_of_users() {
    let Some(world) = World::enter("the_first_answer_does_not_wait_for_namespaces") else { return };
    let secret = world.maps().config().unwrap().secret;
    // In each of them a socket has a pool port since before `up`: the agent sets the port aside when it gets there.
    let crowd: Vec<(Child, u64)> = (0..200)
        .map(|_| {
            let mut child = Child::fork(|talk| {
                let netns = new_namespace();
                let early = tcp();
                let mark = wire::AgentMark { secret, role: wire::AGENT_PROBE, zero: 0 };
                control::agent_mark(&early, &mark).unwrap();
                bind(&early, 61000).unwrap();
                talk.say(netns);
                _ = talk.try_hear();
            });
            let netns = child.talk.hear();
            (child, netns)
        })
        .collect();
    let reached = || {
        let aside = |netns| world.maps().word(&WordKey::of(netns, Transport::Tcp, 61000)).unwrap();
        crowd.iter().filter(|(_, netns)| aside(*netns).is_some_and(|word| word.aside & 1 << (61000 % 64) != 0)).count()
    };
    let runtime = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start_apart(runtime.path());
    let answer = Connection::open_at(&protocol::socket_in(runtime.path())).unwrap().list().unwrap();
    agent.signal(Signal::STOP);
    assert!(answer.is_empty() && reached() < crowd.len(), "it reached all {} first", crowd.len());
    agent.signal(Signal::CONT);
    eventually(|| reached() > 0);
    agent.stop();
}

#[test]
fn privileged_blocks_are_for_root() {
    let Some(world) = World::enter("privileged_blocks_are_for_root") else { return };
    let runtime = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start_apart(runtime.path());
    let owner = tcp();
    let grant = ask(&owner, 1020, 4).unwrap();
    control::release(&owner, token(&grant)).unwrap();
    in_child(|| {
        become_user(4711);
        assert_eq!(ask(&tcp(), 1020, 4), Err(Errno::EACCES));
        // The first port counts, and the limit is the namespace's own.
        assert_eq!(ask(&tcp(), 1023, 4), Err(Errno::EACCES));
        ask(&tcp(), 1024, 4).unwrap();
    });
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "500").unwrap();
    in_child(|| {
        become_user(4711);
        ask(&tcp(), 500, 4).unwrap();
        assert_eq!(ask(&tcp(), 499, 4), Err(Errno::EACCES));
    });
    eventually(|| reserved().is_empty());
    drop(owner);
    agent.stop();
    world.assert_empty();
}

#[test]
fn pool_ports_in_use_before_up_are_set_aside_and_given_back() {
    let Some(world) = World::enter("pool_ports_in_use_before_up_are_set_aside_and_given_back") else { return };
    let runtime = tempfile::tempdir().unwrap();
    // The agent's own probes pass the hooks, as sockets do that were bound before `up`.
    let secret = world.maps().config().unwrap().secret;
    let before_up = |socket: Socket, port: u16| {
        control::agent_mark(&socket, &wire::AgentMark { secret, role: wire::AGENT_PROBE, zero: 0 }).unwrap();
        bind(&socket, port).unwrap();
        socket
    };
    let (listening, bound, datagram) = (before_up(tcp(), 61000), before_up(tcp6(), 61002), before_up(udp(), 61001));
    listening.listen(1).unwrap();
    // A process in this namespace, so that the agent can see the namespace.
    let resident = Child::fork(|talk| _ = talk.try_hear());
    // It was forked after the sockets were made. So sockets that are dropped here stay open there until it ends.
    drop((listening, bound, datagram));

    let agent = AgentProcess::start_apart(runtime.path());
    let aside = |transport, port: u16| {
        let key = WordKey::of(world.netns(), transport, port);
        world.maps().word(&key).unwrap().is_some_and(|word| word.aside & 1 << (port % 64) != 0)
    };
    let expected = [(Transport::Tcp, 61000), (Transport::Tcp, 61002), (Transport::Udp, 61001)];
    for (transport, port) in expected {
        eventually(|| aside(transport, port));
    }
    let owner = tcp();
    assert_eq!(ask(&owner, 0, 1).unwrap().start, 61001);
    assert_eq!(ask(&owner, 61000, 1), Err(Errno::EADDRINUSE));

    // The agent was forked with them open, too.
    drop(agent);
    resident.kill();
    let agent = AgentProcess::start_apart(runtime.path());
    for (transport, port) in expected {
        eventually(|| !aside(transport, port));
    }
    ask(&owner, 61002, 1).unwrap();
    drop(owner);
    agent.stop();
    eventually(|| world.maps().reservations().count() == 0);
}

#[test]
fn the_part_of_the_pool_that_automatic_choices_reach_is_entered() {
    let Some(_world) = World::enter("the_part_of_the_pool_that_automatic_choices_reach_is_entered") else { return };
    let runtime = tempfile::tempdir().unwrap();
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "60000 62000").unwrap();
    fs::write(RESERVED, "61500").unwrap();
    let _resident = Child::fork(|talk| _ = talk.try_hear());
    let agent = AgentProcess::start_apart(runtime.path());
    let (owner, other) = (tcp(), tcp());
    // Nothing is reserved here, and nothing is entered.
    assert_eq!(reserved(), "61500");
    ask(&owner, 0, 1).unwrap();
    eventually(|| reserved() == "61000-62000");
    // Half of the 2,001 ports have to remain (N5).
    assert_eq!(ask(&other, 60980, 20), Err(Errno::ENOSPC));
    ask(&other, 59990, 10).unwrap();
    eventually(|| reserved() == "59990-59999,61000-62000");
    ask(&other, 61100, 2).unwrap();
    assert_eq!(reserved(), "59990-59999,61000-62000");
    drop(other);
    eventually(|| reserved() == "61000-62000");
    drop(owner);
    eventually(|| reserved() == "61500");
    agent.stop();
    agent::restore_all(&RuntimeDir::at(runtime.path())).unwrap();
    assert_eq!(reserved(), "61500");
}

#[test]
fn there_is_one_agent() {
    let Some(_world) = World::enter("there_is_one_agent") else { return };
    let runtime = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start_apart(runtime.path());
    let mut programs = programs();
    let error = Agent::start(&mut programs, &Options::below(runtime.path())).unwrap_err();
    assert_eq!(error.to_string(), "another agent is running");
    agent.stop();
}

#[test]
fn an_agent_has_to_be_served() {
    let Some(_world) = World::with_outside("an_agent_has_to_be_served") else { return };
    let runtime = tempfile::tempdir().unwrap();
    let mut programs = programs();
    in_child(|| {
        let root = cgroup::root().unwrap();
        fs::write(root.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        let error = Agent::start(&mut programs, &Options::below(runtime.path())).unwrap_err().to_string();
        assert!(error.contains("the control codes are served in cgroup /portkeep-test-sandbox"), "{error}");
    });
}

/// All steps with a pinned kernel enforcement: up, agent, SIGTERM, SIGKILL, down.
#[test]
fn on_a_pinned_instance() {
    let Some(_world) = World::with_outside("on_a_pinned_instance") else { return };
    let runtime = tempfile::tempdir().unwrap();
    let mounted = tempfile::tempdir().unwrap();
    let home = TestCgroup::new("pinned").unwrap();
    in_child(|| {
        home.enter(std::process::id()).unwrap();
        // When the last process that can see the file system ends, the pins end with it, and so does what is attached.
        // SAFETY: the child has a single thread, and no other process uses its mounts.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        bpffs::ensure(mounted.path()).unwrap();
        let folder = mounted.path().join("portkeep");
        // SAFETY: this process has one thread.
        unsafe { std::env::set_var(agent::RUNTIME_DIR, runtime.path()) };
        let netns = new_namespace();

        let early = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], 61000))).unwrap();
        let mut options = UpOptions::default();
        options.folder = Some(folder.clone());
        options.enforce = Some(home.path().to_owned());
        let instance = Instance::up(&options).unwrap();
        // The counts include other namespaces. So this checks the port in the test's own namespace.
        let is_aside = || {
            let key = WordKey::of(netns, Transport::Tcp, 61000);
            instance.maps().unwrap().word(&key).unwrap().is_some_and(|word| word.aside & 1 << (61000 % 64) != 0)
        };
        assert!(agent::set_aside_used_pool_ports(&instance).unwrap().set_aside >= 1);
        assert!(is_aside());
        let owner = tcp();
        assert_eq!(ask(&owner, 0, 1).unwrap().start, 61001);
        assert_eq!(ask(&tcp(), 5000, 4), Err(Errno::ENETDOWN));
        drop(early);
        assert!(agent::set_aside_used_pool_ports(&instance).unwrap().given_back >= 1);
        assert!(!is_aside());

        let start = || {
            let child = Child::fork(|_| agent::run_in_foreground(&folder, &Options::below(runtime.path())).unwrap());
            eventually(|| control::version(tcp()).unwrap().agent == 1);
            child
        };
        let child = start();
        ask(&owner, 5000, 4).unwrap();
        kill_process(pid(&child), Signal::TERM).unwrap();
        child.join();
        assert_eq!(control::version(tcp()).unwrap().agent, 0);
        assert_eq!(reserved(), "5000-5003");
        assert_eq!(port(&tcp()), 0);

        let child = start();
        ask(&owner, 6000, 1).unwrap();
        child.kill();
        assert_eq!(ask(&owner, 7000, 1), Err(Errno::ENETDOWN));
        assert_eq!(reserved(), "5000-5003,6000");

        // `down` while an agent runs: the agent cleans up and ends.
        let mut child = Child::fork(|talk| {
            let error = agent::run_in_foreground(&folder, &Options::below(runtime.path())).unwrap_err();
            assert_eq!(error.to_string(), "kernel enforcement has been taken down");
            talk.say(1);
        });
        eventually(|| control::version(tcp()).unwrap().agent == 1);
        Instance::down(&folder).unwrap();
        assert_eq!(child.talk.hear(), 1);
        child.join();
        assert_eq!(reserved(), "");
    });
}
