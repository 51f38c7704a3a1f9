//! Automatic choices, also when the kernel has no other port left.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
};

use portkeep::control;
use portkeep_core::Transport;
use portkeep_testkit::{
    World,
    audit::uses,
    process::{become_user, in_child},
    sockets::{bind, port, reserve, socket, tcp, token, udp},
};
use socket2::{Domain, Socket};

use crate::siege::{KINDS, NOBODY, absent, besiege, owner_binds, set};

fn ephemeral_range(first: u16, last: u16) {
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", format!("{first} {last}")).unwrap();
}

fn connect(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    socket.connect(&to.into())
}

/// bind to 0, connect, connect after IP_BIND_ADDRESS_NO_PORT, listen, sendto, until no port is left. Then the answer is
/// an error, and never a port of a block.
#[test]
fn storms_end_with_the_ephemeral_range() {
    let Some(world) = World::enter("bypass::storms") else { return };
    ephemeral_range(40000, 40015);
    let peer = TcpListener::bind("127.0.0.1:20000").unwrap();
    let sink = UdpSocket::bind("127.0.0.1:20000").unwrap();
    let (to_tcp, to_udp) = (peer.local_addr().unwrap(), sink.local_addr().unwrap());
    besiege(&world, |target| {
        type Choose<'a> = (&'a str, &'a dyn Fn(&Socket) -> io::Result<()>);
        let to = if target.tcp() { to_tcp } else { to_udp };
        let to = if target.v6() { SocketAddr::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), to.port()) } else { to };
        let by_bind = |s: &Socket| bind(s, 0);
        let by_connect = |s: &Socket| connect(s, to);
        let no_port = |s: &Socket| {
            set(s, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
            bind(s, 0)?;
            connect(s, to)
        };
        let by_use = |s: &Socket| if target.tcp() { s.listen(1) } else { s.send_to(b"x", &to.into()).map(drop) };
        let ways: [Choose<'_>; 4] =
            [("bind", &by_bind), ("connect", &by_connect), ("no port", &no_port), ("listen or send", &by_use)];
        for (name, choose) in ways {
            let mut taken = Vec::new();
            let error = loop {
                let socket = target.socket();
                match choose(&socket) {
                    Err(error) => break error,
                    Ok(()) => assert!((40000..=40015).contains(&port(&socket)), "{name} {} {target:?}", port(&socket)),
                }
                taken.push(socket);
                assert!(taken.len() <= 16, "{name}: more sockets than ports, {target:?}");
            };
            let exhausted = [libc::EADDRINUSE, libc::EADDRNOTAVAIL, libc::EAGAIN];
            assert!(exhausted.contains(&error.raw_os_error().unwrap()), "{name}: {error} {target:?}");
            for socket in taken {
                // No TIME_WAIT: the next storm needs the ports.
                if target.tcp() {
                    let _ = socket.set_linger(Some(std::time::Duration::ZERO));
                }
            }
            while target.tcp() && peer.set_nonblocking(true).is_ok() && peer.accept().is_ok() {}
        }
    });
}

/// The ephemeral range lies in the pool. A bind is undone once the port is known. `connect`, `listen` and `sendto`
/// pass no hook. They avoid a block only because of ip_local_reserved_ports, which `up` and the agent fill for that
/// part of the pool. Without it they do get a port of a block, and the owner's bind fails.
#[test]
fn an_ephemeral_range_over_the_pool_needs_ip_local_reserved_ports() {
    let Some(world) = World::enter("bypass::range_over_the_pool") else { return };
    let peer = TcpListener::bind("127.0.0.1:20000").unwrap().local_addr().unwrap();
    let owner = tcp();
    let grant = reserve(&owner, 61000, 2);
    ephemeral_range(61000, 61001);
    in_child(|| {
        become_user(NOBODY);
        for domain in [Domain::IPV4, Domain::IPV6] {
            let outsider = socket(domain, Transport::Tcp);
            assert_eq!(bind(&outsider, 0).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
        }
    });
    let reserved = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    fs::write(reserved, "61000-65535").unwrap();
    in_child(|| {
        become_user(NOBODY);
        assert_eq!(connect(&tcp(), peer).unwrap_err().raw_os_error(), Some(libc::EADDRNOTAVAIL));
        assert_eq!(tcp().listen(1).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
        assert!(udp().send_to(b"x", &peer.into()).is_err());
    });
    owner_binds(Domain::IPV4, Transport::Tcp, &grant);
    // Without ip_local_reserved_ports.
    fs::write(reserved, "\n").unwrap();
    in_child(|| {
        become_user(NOBODY);
        let listener = tcp();
        listener.listen(1).unwrap();
        assert!((61000..=61001).contains(&port(&listener)));
    });
    drop(owner);
    world.assert_empty();
}

/// TCP fast open connects in sendto. The connect hook runs all the same: outsiders get an ephemeral port, and
/// associated sockets get one of their block (A6).
#[test]
fn tcp_fast_open_is_a_connect() {
    let Some(world) = World::enter("bypass::fast_open") else { return };
    const TCP_FASTOPEN_CONNECT: i32 = 30;
    fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3").unwrap_or_else(|error| absent("tcp_fastopen", error));
    let peer = TcpListener::bind("127.0.0.1:20000").unwrap();
    set(&peer, libc::SOL_TCP, 23 /* TCP_FASTOPEN */, 5).unwrap();
    let to = peer.local_addr().unwrap();
    let owner = tcp();
    let grant = reserve(&owner, 0, 1);
    let send = |socket: &Socket| socket.send_to_with_flags(b"x", &to.into(), libc::MSG_FASTOPEN).map(drop);
    let deferred = |socket: &Socket| {
        set(socket, libc::SOL_TCP, TCP_FASTOPEN_CONNECT, 1)?;
        connect(socket, to)
    };
    for open in [&send as &dyn Fn(&Socket) -> io::Result<()>, &deferred] {
        in_child(|| {
            become_user(NOBODY);
            for _ in 0..20 {
                let outsider = tcp();
                open(&outsider).unwrap();
                assert!(port(&outsider) < 61000);
            }
        });
        let inside = tcp();
        inside.set_linger(Some(std::time::Duration::ZERO)).unwrap();
        control::associate(&inside, token(&grant)).unwrap();
        open(&inside).unwrap();
        assert_eq!(port(&inside), grant.start);
        assert_eq!(uses(&world.maps(), world.netns(), Transport::Tcp, grant.start), 1);
        drop(inside);
    }
    owner_binds(Domain::IPV4, Transport::Tcp, &grant);
    drop(owner);
    world.assert_empty();
}

/// After a connection is dissolved (connect to AF_UNSPEC), a socket keeps its drawn port, and an outsider still cannot
/// bind a reserved one.
#[test]
fn disconnecting_and_binding_again_opens_nothing() {
    let Some(world) = World::enter("bypass::disconnect") else { return };
    let disconnect = |socket: &Socket| {
        let unspecified = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
        // SAFETY: connect reads a sockaddr of the length given.
        unsafe {
            libc::connect(
                std::os::fd::AsRawFd::as_raw_fd(socket),
                &raw const unspecified,
                size_of::<libc::sockaddr>() as u32,
            )
        }
    };
    let peer = TcpListener::bind("127.0.0.1:20000").unwrap();
    let sink = UdpSocket::bind("127.0.0.1:20000").unwrap();
    let to = sink.local_addr().unwrap();
    let mapped = SocketAddr::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), to.port());
    besiege(&world, |target| {
        let socket = target.socket();
        connect(&socket, if target.v6() { mapped } else { to }).unwrap();
        disconnect(&socket);
        // An automatic TCP or UDP port is either released by then, or it remains and a bind fails with EINVAL. The
        // socket never gets the target's port.
        let again = socket.bind(&target.any().into()).unwrap_err().raw_os_error().unwrap();
        assert!([libc::EADDRINUSE, libc::EINVAL].contains(&again), "{again} {target:?}");
        assert_ne!(port(&socket), target.port);
    });
    for (domain, transport) in KINDS {
        let owner = socket(domain, transport);
        let grant = reserve(&owner, 0, 1);
        let drawn = socket(domain, transport);
        drawn.set_reuse_address(true).unwrap();
        control::associate(&drawn, token(&grant)).unwrap();
        if transport == Transport::Tcp {
            drawn.set_linger(Some(std::time::Duration::ZERO)).unwrap();
        }
        connect(&drawn, if domain == Domain::IPV6 { mapped } else { to }).unwrap();
        disconnect(&drawn);
        assert_eq!(port(&drawn), grant.start, "the drawn port stays, {domain:?} {transport}");
        assert_eq!(uses(&world.maps(), world.netns(), transport, grant.start), 1);
        drop(drawn);
        owner_binds(domain, transport, &grant);
        drop(owner);
        world.assert_empty();
    }
    drop(peer);
}
