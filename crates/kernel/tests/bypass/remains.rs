//! Remains of requests and sockets: they keep no process from a port, and they are charged.

use std::{fs, net::Ipv4Addr};

use portkeep::control;
use portkeep_core::{
    Errno, Transport,
    wire::{self, AcquireRequest, AgentMark},
};
use portkeep_kernel::WordKey;
use portkeep_testkit::{
    World,
    audit::uses,
    process::{Child, become_user, in_child},
    sockets::{bind, bind_to, connect, errno, port, reserve, tcp, tcp6, token, udp},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::siege::{NOBODY, absent};

fn beacon(world: &World) -> Socket {
    let beacon = udp();
    let secret = world.maps().config().unwrap().secret;
    control::agent_mark(&beacon, &AgentMark { secret, role: wire::AGENT_BEACON, zero: 0 }).unwrap();
    beacon
}

fn ask(start: u16) -> AcquireRequest {
    AcquireRequest { start, count: 1, ..Default::default() }
}

/// The number of entries is limited. Each refused request is charged one port until its owner has asked about it, and
/// only 64 requests wait.
#[test]
fn refused_requests_cost_a_port_until_their_owner_asks() {
    let Some(world) = World::enter("bypass::refused_entries") else { return };
    let beacon = beacon(&world);
    let admin = world.sandbox().loaded().admin().unwrap();
    admin.set_quota_limit(NOBODY, 70).unwrap();
    let mut user = Child::fork(|talk| {
        become_user(NOBODY);
        let owners: Vec<Socket> = (0..80).map(|_| tcp()).collect();
        for (n, owner) in owners.iter().enumerate() {
            let error = errno(control::acquire(owner, &ask(5000 + n as u16)));
            if error != Errno::EINPROGRESS {
                talk.say(0);
                assert_eq!((error, n), (Errno::EDQUOT, 70), "all of its ports are charged");
                break;
            }
            talk.say(control::granted(owner).unwrap().token);
            talk.hear();
        }
        talk.hear();
        // An entry is free again once its owner has asked about it.
        assert_eq!(control::granted(&owners[0]).unwrap().state, wire::REFUSED);
        assert_eq!(errno(control::acquire(&owners[0], &ask(6000))), Errno::EINPROGRESS);
    });
    loop {
        let number = user.talk.hear();
        let Some(token) = portkeep_core::Token::new(number) else { break };
        admin.refuse(world.maps().id_of(token).unwrap(), token, Errno::EADDRINUSE).unwrap();
        user.talk.say(0);
    }
    world.assert_consistent();
    user.talk.say(0);
    user.join();
    admin.set_quota_limit(NOBODY, 0).unwrap();
    // Without the agent's answers, 64.
    in_child(|| {
        become_user(NOBODY);
        let owner = tcp();
        for n in 0..64 {
            assert_eq!(errno(control::acquire(&owner, &ask(5000 + n))), Errno::EINPROGRESS);
        }
        assert_eq!(errno(control::acquire(&owner, &ask(5100))), Errno::EDQUOT);
    });
    drop(beacon);
    world.assert_empty();
}

/// The agent refuses at the moment when the owner closes: the entry is free afterwards, in either order.
#[test]
fn a_close_while_the_agent_refuses_loses_no_entry() {
    let Some(world) = World::enter("bypass::refused_and_closed") else { return };
    let beacon = beacon(&world);
    let admin = world.sandbox().loaded().admin().unwrap();
    let maps = world.maps();
    for _ in 0..3000 {
        let owner = tcp();
        assert_eq!(errno(control::acquire(&owner, &ask(5000))), Errno::EINPROGRESS);
        let pending = token(&control::granted(&owner).unwrap());
        let id = maps.id_of(pending).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| drop(owner));
            let _ = admin.refuse(id, pending, Errno::EADDRINUSE);
        });
    }
    drop(beacon);
    world.assert_empty();
}

/// Connections of one holder do not keep the next one from the port, even if different listeners accepted them.
#[test]
fn connections_of_a_second_listener_do_not_keep_the_port() {
    let Some(world) = World::enter("bypass::leftovers") else { return };
    for (first, second, orphan) in [
        ("127.0.0.1:61000", "127.0.0.2:61000", false),
        ("127.0.0.1:61000", "[::1]:61000", false),
        ("127.0.0.1:61000", "127.0.0.3:61000", true),
    ] {
        let mut former = Child::fork(|talk| {
            become_user(NOBODY);
            let owner = tcp();
            reserve(&owner, 61000, 1);
            let make = |address: &str| {
                let socket = if address.starts_with('[') { tcp6() } else { tcp() };
                if address.starts_with('[') {
                    socket.set_only_v6(true).unwrap();
                }
                bind_to(&socket, address).unwrap();
                socket.listen(1).unwrap();
                socket
            };
            let listeners = [make(first), make(second)];
            let client = if second.starts_with('[') { tcp6() } else { tcp() };
            client.set_recv_buffer_size(4096).unwrap();
            connect(&client, second).unwrap();
            let (kept, _) = listeners[1].accept().unwrap();
            let kept = if orphan {
                // Closed while unread data is left: the connection continues without a descriptor.
                kept.set_nonblocking(true).unwrap();
                while kept.send(&[0; 65536]).is_ok() {}
                drop(kept);
                None
            } else {
                Some(kept)
            };
            drop((listeners, owner));
            talk.say(0);
            talk.hear();
            drop((kept, client));
        });
        former.talk.hear();
        let owner = tcp();
        reserve(&owner, 61000, 1);
        bind(&tcp6(), 61000).unwrap();
        former.talk.say(0);
        former.join();
        drop(owner);
        world.assert_empty();
    }
}

/// The kernel leaves multicast groups before it releases the port, and this may take a while: until then the port is in
/// use.
#[test]
fn a_socket_that_leaves_multicast_groups_counts_a_little_longer() {
    let Some(world) = World::enter("bypass::closing") else { return };
    let receiver = udp();
    bind(&receiver, 61000).unwrap();
    receiver.join_multicast_v4(&Ipv4Addr::new(239, 1, 2, 3), &Ipv4Addr::LOCALHOST).unwrap();
    let plain = udp();
    bind(&plain, 61001).unwrap();
    drop((receiver, plain));
    let word = world.maps().word(&WordKey::of(world.netns(), Transport::Udp, 61000)).unwrap().unwrap();
    let closing = word.closing.ports[0] | word.closing.ports[1];
    assert_eq!(closing >> (61000 % 64) & 3, 1);
    world.assert_empty();
}

/// A failed draw is remembered for the holder for which it failed, and for no later holder.
#[test]
fn failed_draws_of_a_former_holder_are_forgotten() {
    let Some(world) = World::enter("bypass::stale_draws") else { return };
    let former = udp();
    let grant = reserve(&former, 61000, 8);
    let unlucky: Vec<Socket> = (0..8)
        .map(|_| {
            let socket = udp();
            control::associate(&socket, token(&grant)).unwrap();
            bind_to(&socket, "192.0.2.1:0").unwrap_err();
            socket
        })
        .collect();
    let drawn = || world.maps().word(&WordKey::of(world.netns(), Transport::Udp, 61000)).unwrap().unwrap().drawn;
    assert_ne!(drawn(), 0);
    control::release(&former, token(&grant)).unwrap();
    let next = udp();
    reserve(&next, 61000, 8);
    assert_eq!(drawn(), 0);
    drop((unlucky, next, former));
    world.assert_empty();
}

/// A socket that has a port tries to bind a reserved one. The programs answer before the kernel releases the socket's
/// lock. Otherwise another process could disconnect the socket in between, and the bind would succeed.
#[test]
fn a_second_bind_of_a_reserved_port_is_refused_before_anything_else_is_looked_at() {
    let Some(world) = World::enter("bypass::second_bind") else { return };
    let owner = udp();
    let grant = reserve(&owner, 0, 1);
    in_child(|| {
        become_user(NOBODY);
        let socket = udp();
        connect(&socket, "127.0.0.1:9").unwrap();
        // An address that no interface has: the kernel checks the address first.
        assert_eq!(errno(bind_to(&socket, &format!("192.0.2.1:{}", grant.start))), Errno::EINVAL);
        assert_eq!(errno(bind_to(&socket, "192.0.2.1:20000")), Errno(libc::EADDRNOTAVAIL));
    });
    bind(&udp(), grant.start).unwrap();
    drop(owner);
    world.assert_empty();
}

/// For a bind of an MPTCP socket the kernel binds a TCP socket whose close no program sees. If the kernel chooses a
/// port of a request that is not granted yet, the use must not stay counted.
#[test]
fn mptcp_that_is_given_a_port_of_a_pending_request_leaves_nothing_behind() {
    let Some(world) = World::enter("bypass::mptcp_pending") else { return };
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40015").unwrap();
    let mptcp = |domain| Socket::new(domain, Type::STREAM, Some(Protocol::MPTCP));
    if mptcp(Domain::IPV4).is_err() {
        return absent("MPTCP", "no such protocol");
    }
    let beacon = beacon(&world);
    for domain in [Domain::IPV4, Domain::IPV6] {
        let owner = tcp();
        let request = AcquireRequest { count: 16, ..ask(40000) };
        assert_eq!(errno(control::acquire(&owner, &request)), Errno::EINPROGRESS);
        let socket = mptcp(domain).unwrap();
        bind(&socket, 0).unwrap();
        let chosen = port(&socket);
        assert!((40000..=40015).contains(&chosen));
        drop((socket, owner));
        assert_eq!(uses(&world.maps(), world.netns(), Transport::Tcp, chosen), 0, "{domain:?}");
        // No program sees the close, so user space clears the mark.
        world.assert_consistent();
    }
    drop(beacon);
}
