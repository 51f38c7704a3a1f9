//! Other protocols that use ports of TCP or UDP, sockets that the kernel makes for itself, and ways to send from a port
//! without binding it.

use std::{
    net::{SocketAddr, TcpListener, UdpSocket},
    process::Command,
    time::Duration,
};

use portkeep::control;
use portkeep_core::{
    Errno, Transport,
    wire::{self, AcquireRequest},
};
use portkeep_kernel::WordKey;
use portkeep_testkit::{
    World,
    audit::uses,
    bpf,
    process::{become_user, in_child},
    sockets::{acquire, bind, connect, errno, port, reserve, socket, tcp, token, udp},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::siege::{NOBODY, Who, absent, besiege, owner_binds, set};

const IPPROTO_MPTCP: i32 = 262;
const IPPROTO_UDPLITE: i32 = 136;

fn mptcp(domain: Domain) -> std::io::Result<Socket> {
    Socket::new(domain, Type::STREAM, Some(Protocol::from(IPPROTO_MPTCP)))
}

#[test]
fn mptcp_is_held_to_the_reservations_of_tcp() {
    let Some(world) = World::enter("bypass::mptcp") else { return };
    if let Err(error) = mptcp(Domain::IPV4) {
        return absent("MPTCP", error);
    }
    besiege(&world, |target| {
        if target.tcp() {
            for reuse in [false, true] {
                target.refused_everywhere("MPTCP", || {
                    let socket = mptcp(target.domain).unwrap();
                    socket.set_reuse_port(reuse).unwrap();
                    socket
                });
            }
        }
    });
    let owner = tcp();
    let grant = reserve(&owner, 0, 1);
    bind(&mptcp(Domain::IPV6).unwrap(), grant.start).unwrap();
    drop(owner);
    world.assert_empty();
}

/// A server of the scope that uses MPTCP keeps its port after the end of the reservation, as any other server does, and
/// the port stays charged. Closing its last descriptor frees the port.
#[test]
fn an_mptcp_server_that_outlives_its_reservation_keeps_its_port() {
    let Some(world) = World::enter("bypass::mptcp_outlives") else { return };
    for domain in [Domain::IPV4, Domain::IPV6] {
        let Ok(server) = mptcp(domain) else { return absent("MPTCP", "no such protocol") };
        let former = tcp();
        let grant = reserve(&former, 61000, 1);
        bind(&server, grant.start).unwrap();
        server.listen(1).unwrap();
        assert_eq!(uses(&world.maps(), world.netns(), Transport::Tcp, 61000), 1);
        // A connection is not a bind, and nothing of it is counted.
        let client = mptcp(Domain::IPV4).unwrap();
        connect(&client, "127.0.0.1:61000").unwrap();
        drop((client, server.accept().unwrap()));
        control::release(&former, token(&grant)).unwrap();
        let kept = server.try_clone().unwrap();
        drop(server);
        in_child(|| {
            let ask = AcquireRequest { start: 61000, count: 1, ..Default::default() };
            assert_eq!(errno(control::acquire(tcp(), &ask)), Errno::EADDRINUSE);
            assert_eq!(errno(bind(&tcp(), 61000)), Errno::EADDRINUSE);
        });
        drop(kept);
        let again = reserve(&former, 61000, 1);
        owner_binds(domain, Transport::Tcp, &again);
        drop(former);
        world.assert_empty();
    }
}

/// The use is counted before the kernel has bound. If the kernel then does not bind, nothing is counted twice, and
/// nothing stays counted.
#[test]
fn an_mptcp_bind_that_fails_is_not_counted_twice() {
    let Some(world) = World::enter("bypass::mptcp_fails") else { return };
    let Ok(server) = mptcp(Domain::IPV4) else { return absent("MPTCP", "no such protocol") };
    let owner = tcp();
    reserve(&owner, 61000, 2);
    let first = tcp();
    bind(&first, 61000).unwrap();
    first.listen(1).unwrap();
    for _ in 0..3 {
        assert_eq!(errno(bind(&server, 61000)), Errno::EADDRINUSE);
        assert!(uses(&world.maps(), world.netns(), Transport::Tcp, 61000) <= 2);
    }
    bind(&server, 61001).unwrap();
    assert_eq!(errno(bind(&server, 61001)), Errno::EINVAL);
    let counted = [61000, 61001].map(|port| uses(&world.maps(), world.netns(), Transport::Tcp, port));
    assert_eq!(counted, [1, 1]);
    drop((server, first, owner));
    world.assert_empty();
}

/// UDP-Lite has a port space of its own: the same number does not give access to UDP's traffic.
#[test]
fn udp_lite_has_ports_of_its_own() {
    let Some(world) = World::enter("bypass::udp_lite") else { return };
    let Ok(lite) = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::from(IPPROTO_UDPLITE))) else {
        return absent("UDP-Lite", "no such protocol");
    };
    let owner = udp();
    let grant = reserve(&owner, 0, 1);
    in_child(|| {
        become_user(NOBODY);
        bind(&lite, grant.start).unwrap();
    });
    let rightful = udp();
    bind(&rightful, grant.start).unwrap();
    rightful.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let to = SocketAddr::from(([127, 0, 0, 1], grant.start));
    udp().send_to(b"for the owner", &to.into()).unwrap();
    let mut buffer = [0; 32];
    assert_eq!(std::io::Read::read(&mut &rightful, &mut buffer).unwrap(), 13);
    drop((lite, rightful, owner));
    world.assert_empty();
}

fn ip(words: &str) -> Result<(), String> {
    match Command::new("ip").args(words.split(' ')).output() {
        Err(error) => Err(format!("no `ip`: {error}")),
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
    }
}

/// The kernel binds sockets of its own for tunnels, NFS and the like. These binds pass the same hooks, in the name of
/// the process that asked for them. Their close passes no hook. So requests skip a port that the scope has bound until
/// user space sees that the socket is closed and reports it. Binds do not skip it (N1).
#[test]
fn sockets_of_the_kernel_itself_are_refused_like_others() {
    let Some(world) = World::enter("bypass::kernel_sockets") else { return };
    let owner = udp();
    let grant = reserve(&owner, 0, 1);
    let add = format!("link add door0 type vxlan id 7 dstport {} local 127.0.0.1 dev lo", grant.start);
    if let Err(why) = ip(&add) {
        return absent("sockets of the kernel (vxlan)", why);
    }
    let refused = ip("link set door0 up").unwrap_err();
    assert!(refused.contains("in use"), "{refused}");
    owner_binds(Domain::IPV4, Transport::Udp, &grant);
    ip("link del door0").unwrap();
    drop(owner);
    world.assert_empty();

    // A process in the scope may.
    let owner = udp();
    let request = AcquireRequest { start: 61999, count: 1, scope: wire::SCOPE_CGROUP, ..Default::default() };
    acquire(&owner, &request).unwrap();
    ip("link add door0 type vxlan id 7 dstport 61999 local 127.0.0.1 dev lo").unwrap();
    ip("link set door0 up").unwrap();
    let aside = || {
        let word = world.maps().word(&WordKey::of(world.netns(), Transport::Udp, 61999)).unwrap().unwrap();
        word.aside >> (61999 % 64) & 1 == 1
    };
    assert!(aside());
    ip("link del door0").unwrap();
    drop(owner);
    assert!(aside(), "the kernel has begun to report this close");
    let again = AcquireRequest { start: 61999, count: 1, ..Default::default() };
    assert_eq!(errno(control::acquire(udp(), &again)), Errno::EADDRINUSE);
    in_child(|| bind(&udp(), 61999).unwrap());
    world.sandbox().loaded().admin().unwrap().give_back(world.netns(), Transport::Udp, 61999).unwrap();
    control::acquire(udp(), &again).unwrap();
    world.assert_empty();
}

/// A process that may send raw packets may write any source port into them, reserved or not. But it does not have the
/// port: nothing arrives.
#[test]
fn raw_sockets_can_lie_about_the_source_port_as_root() {
    let Some(world) = World::enter("bypass::raw") else { return };
    let owner = udp();
    let grant = reserve(&owner, 0, 1);
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let to = receiver.local_addr().unwrap();
    in_child(|| {
        let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).unwrap();
        // A UDP header: source, destination, length, no checksum.
        let header = [grant.start, to.port(), 9, 0].map(u16::to_be_bytes).concat();
        raw.send_to(&[&header[..], b"x"].concat(), &SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        become_user(NOBODY);
        let refused = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    });
    let (_, from) = receiver.recv_from(&mut [0; 8]).unwrap();
    assert_eq!(from.port(), grant.start);
    owner_binds(Domain::IPV4, Transport::Udp, &grant);
    drop(owner);
    world.assert_empty();
}

/// A program that steers lookups of incoming packets (BPF_PROG_TYPE_SK_LOOKUP, and TPROXY and NAT rules likewise)
/// requires no port. It requires CAP_NET_ADMIN, which allows any change to the network.
#[test]
fn steering_incoming_connections_is_for_the_networks_administrator() {
    let Some(world) = World::enter("bypass::steering") else { return };
    let owner = tcp();
    let grant = reserve(&owner, 0, 1);
    let thief = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = || std::net::TcpStream::connect(("127.0.0.1", grant.start));
    assert_eq!(client().unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    in_child(|| {
        become_user(NOBODY);
        assert!(bpf::steer(&thief, grant.start).is_err(), "an ordinary user steers nothing");
    });
    match bpf::steer(&thief, grant.start) {
        Err(error) => absent("sk_lookup", error),
        Ok(steering) => {
            let stolen = client().unwrap();
            assert_eq!(thief.accept().unwrap().0.local_addr().unwrap().port(), grant.start);
            drop((stolen, steering));
            assert_eq!(client().unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        }
    }
    // The owner had the port all the time.
    owner_binds(Domain::IPV4, Transport::Tcp, &grant);
    drop(owner);
    world.assert_empty();
}

/// IPV6_ADDRFORM turns a connected IPv6 socket into an IPv4 one: the same socket, the same count.
#[test]
fn ipv6_addrform_keeps_the_count() {
    let Some(world) = World::enter("bypass::addrform") else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    for transport in Transport::ALL {
        let owner = socket(Domain::IPV6, transport);
        let grant = reserve(&owner, 0, 1);
        let peer = match transport {
            Transport::Tcp => listener.local_addr().unwrap().port(),
            Transport::Udp => receiver.local_addr().unwrap().port(),
        };
        let turned = socket(Domain::IPV6, transport);
        control::associate(&turned, token(&grant)).unwrap();
        turned.connect(&format!("[::ffff:127.0.0.1]:{peer}").parse::<SocketAddr>().unwrap().into()).unwrap();
        assert_eq!(port(&turned), grant.start);
        set(&turned, libc::SOL_IPV6, 1 /* IPV6_ADDRFORM */, libc::AF_INET).unwrap();
        assert_eq!((turned.local_addr().unwrap().is_ipv4(), port(&turned)), (true, grant.start));
        assert_eq!(uses(&world.maps(), world.netns(), transport, grant.start), 1);
        in_child(|| {
            become_user(NOBODY);
            let rival = socket(Domain::IPV4, transport);
            assert_eq!(bind(&rival, grant.start).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
        });
        drop(turned);
        assert_eq!(uses(&world.maps(), world.netns(), transport, grant.start), 0);
        drop(owner);
        world.assert_empty();
    }
    let _ = Who::Root;
}
