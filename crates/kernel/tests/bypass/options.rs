//! Socket options that allow binds which would otherwise fail.

use std::{net::Ipv4Addr, process::Command};

use portkeep_core::Transport;
use portkeep_testkit::{
    World,
    process::{become_user, in_child},
    sockets::{bind, port, reserve, socket, tcp, udp},
};
use socket2::{Domain, Socket};

use crate::siege::{KINDS, NOBODY, Target, Who, absent, besiege, owner_binds, set, set_bytes};

const IP_LOCAL_PORT_RANGE: i32 = 51;
const TCP_REPAIR: i32 = 19;

fn with(target: &Target, options: &[(i32, i32)]) -> Socket {
    let socket = target.socket();
    for (level, name) in options {
        set(&socket, *level, *name, 1).unwrap_or_else(|error| panic!("option {name}: {error} {target:?}"));
    }
    socket
}

#[test]
fn so_reuseaddr_and_so_reuseport_share_with_no_outsider() {
    let Some(world) = World::enter("bypass::so_reuse") else { return };
    let address = (libc::SOL_SOCKET, libc::SO_REUSEADDR);
    let port = (libc::SOL_SOCKET, libc::SO_REUSEPORT);
    besiege(&world, |target| {
        for options in [&[address][..], &[port], &[address, port]] {
            target.refused_everywhere("reuse", || with(target, options));
        }
    });
}

/// `SK_FORCE_REUSE`, the strongest reuse there is: what TCP_REPAIR sets.
#[test]
fn tcp_repair_does_not_force_its_way_in() {
    let Some(world) = World::enter("bypass::tcp_repair") else { return };
    besiege(&world, |target| {
        if !target.tcp() {
            return;
        }
        let repairing = || {
            let socket = target.socket();
            let may = set(&socket, libc::SOL_TCP, TCP_REPAIR, 1);
            assert_eq!(may.is_ok(), target.who == Who::Root, "{may:?}");
            socket
        };
        target.refused_everywhere("TCP_REPAIR", repairing);
    });
    // It works for the owner.
    let owner = tcp();
    let grant = reserve(&owner, 0, 1);
    let restored = tcp();
    set(&restored, libc::SOL_TCP, TCP_REPAIR, 1).unwrap();
    bind(&restored, grant.start).unwrap();
    drop((restored, owner));
    world.assert_empty();
}

#[test]
fn ip_freebind_and_ip_transparent_bind_no_foreign_address_either() {
    let Some(world) = World::enter("bypass::ip_freebind") else { return };
    besiege(&world, |target| {
        let (level, freebind, transparent, foreign) = match target.v6() {
            false => (libc::SOL_IP, libc::IP_FREEBIND, libc::IP_TRANSPARENT, "192.0.2.99".parse().unwrap()),
            true => (libc::SOL_IPV6, libc::IPV6_FREEBIND, libc::IPV6_TRANSPARENT, "2001:db8::99".parse().unwrap()),
        };
        for option in [freebind, transparent] {
            let socket = || {
                let socket = target.socket();
                let may = set(&socket, level, option, 1);
                assert_eq!(may.is_ok(), option == freebind || target.who == Who::Root, "{may:?}");
                socket
            };
            target.refused_everywhere("option", socket);
            let elsewhere: std::net::IpAddr = foreign;
            if set(&target.socket(), level, option, 1).is_ok() {
                target.refused("an address that is not ours", &socket(), target.at(elsewhere));
            }
        }
    });
}

#[test]
fn so_bindtodevice_opens_no_second_port_space() {
    let Some(world) = World::enter("bypass::so_bindtodevice") else { return };
    besiege(&world, |target| {
        let bound_to_device = || {
            let socket = target.socket();
            socket.bind_device(Some(b"lo")).unwrap();
            socket
        };
        target.refused_everywhere("SO_BINDTODEVICE", bound_to_device);
    });
}

/// A device, made by `ip`. Sockets bound to it have a port space of their own.
fn device(way: &str, words: &str) -> Option<String> {
    let name = "door0";
    let add = Command::new("ip").args(["link", "add", name, "type"]).args(words.split(' ')).output();
    match add {
        Err(error) => absent(way, format!("no `ip`: {error}")),
        Ok(done) if !done.status.success() => absent(way, String::from_utf8_lossy(&done.stderr).trim()),
        Ok(_) => {
            assert!(Command::new("ip").args(["link", "set", name, "up"]).status().unwrap().success());
            return Some(name.into());
        }
    }
    None
}

/// Sockets in a VRF may share a port with those outside it; a reservation covers them all.
#[test]
fn a_vrf_or_a_second_interface_is_no_second_port_space() {
    let Some(world) = World::enter("bypass::a_vrf") else { return };
    let devices = [
        device("VRF", "vrf table 10").map(|_| "door0"),
        device("a second interface", "veth peer name door1").map(|_| "door0"),
    ];
    if let Some(name) = devices.into_iter().flatten().next() {
        besiege(&world, |target| {
            let bound_to_device = || {
                let socket = target.socket();
                socket.bind_device(Some(name.as_bytes())).unwrap();
                socket
            };
            target.refused("in a device's world", &bound_to_device(), target.any());
        });
    }
}

#[test]
fn ip_bind_address_no_port_changes_nothing_for_a_named_port() {
    let Some(world) = World::enter("bypass::no_port") else { return };
    besiege(&world, |target| {
        let no_port = || with(target, &[(libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT)]);
        target.refused_everywhere("IP_BIND_ADDRESS_NO_PORT", no_port);
    });
}

fn range(socket: &Socket, first: u16, last: u16) -> std::io::Result<()> {
    set(socket, libc::SOL_IP, IP_LOCAL_PORT_RANGE, (u32::from(last) << 16 | u32::from(first)) as i32)
}

/// The kernel chooses from the part of the option's range that is in the namespace's range, so the option cannot choose
/// a block of the pool.
#[test]
fn ip_local_port_range_over_the_block_gives_no_port_of_it() {
    let Some(world) = World::enter("bypass::local_port_range") else { return };
    if let Err(error) = range(&tcp(), 40000, 40009) {
        return absent("IP_LOCAL_PORT_RANGE", error);
    }
    besiege(&world, |target| {
        for through in ["bind", "connect", "listen or send"] {
            let socket = target.socket();
            range(&socket, target.port, target.port).unwrap();
            let chosen = match through {
                "bind" => bind(&socket, 0),
                "connect" => socket.connect(&(target.loopback().ip(), 9).into_socket().into()),
                _ if target.tcp() => socket.listen(1),
                _ => socket.send_to(b"x", &(target.loopback().ip(), 9).into_socket().into()).map(drop),
            };
            assert_ne!(port(&socket), target.port, "{through}: {chosen:?} {target:?}");
            assert!(port(&socket) < 61000, "{through}: {} {target:?}", port(&socket));
        }
    });
}

trait IntoSocket {
    fn into_socket(self) -> std::net::SocketAddr;
}

impl IntoSocket for (std::net::IpAddr, u16) {
    fn into_socket(self) -> std::net::SocketAddr {
        self.into()
    }
}

/// A BPF program on an SO_REUSEPORT group does not add a socket that has not bound.
#[test]
fn a_program_on_a_reuseport_group_needs_a_bound_socket() {
    let Some(world) = World::enter("bypass::reuseport_group") else { return };
    besiege(&world, |target| {
        let socket = with(target, &[(libc::SOL_SOCKET, libc::SO_REUSEPORT)]);
        // `return 0`: the group's first socket. An unbound socket makes a group with one member.
        let steer = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
        let program = libc::sock_fprog { len: 1, filter: steer.as_ptr().cast_mut() };
        // SAFETY: the bytes of the structure, which the kernel reads; `steer` lives beyond the call.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const program).cast(), size_of_val(&program)) };
        let _ = set_bytes(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, bytes);
        target.refused("a steered group", &socket, target.any());
    });
}

/// If an owner shares its port on purpose, only sockets in the scope can share it. Datagrams and connections of an
/// outsider still arrive: a port is there for them.
#[test]
fn owners_share_among_themselves() {
    let Some(world) = World::enter("bypass::owners_share") else { return };
    for (domain, transport) in KINDS {
        let owner = socket(domain, transport);
        let grant = reserve(&owner, 0, 1);
        let shared: Vec<Socket> = (0..2)
            .map(|_| {
                let socket = socket(domain, transport);
                socket.set_reuse_port(true).unwrap();
                bind(&socket, grant.start).unwrap();
                socket
            })
            .collect();
        in_child(|| {
            become_user(NOBODY);
            let sharer = socket(domain, transport);
            sharer.set_reuse_port(true).unwrap();
            assert_eq!(bind(&sharer, grant.start).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
            if transport == Transport::Udp && domain == Domain::IPV4 {
                let to = std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, grant.start));
                assert_eq!(udp().send_to(b"x", &to.into()).unwrap(), 1);
            }
        });
        drop(shared);
        owner_binds(domain, transport, &grant);
        drop(owner);
        world.assert_empty();
    }
}
