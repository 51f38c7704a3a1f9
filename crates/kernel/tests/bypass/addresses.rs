//! Other addresses, other families.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::AsRawFd,
};

use portkeep_core::Transport;
use portkeep_testkit::{
    World,
    process::{become_user, in_child},
    sockets::{bind_to, reserve, socket, udp, udp6},
};
use socket2::Domain;

use crate::siege::{KINDS, NOBODY, Target, besiege, owner_binds};

const LOOPBACK: u32 = 1;
const SECOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const LINK: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 7);
const SECOND6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7);
const LINK6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7);

/// More addresses for the loopback interface of the calling thread's namespace.
fn add_addresses() {
    for (alias, address) in [("lo:2", SECOND), ("lo:3", LINK)] {
        // SAFETY: all-zero is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        alias.bytes().zip(&mut request.ifr_name).for_each(|(from, to)| *to = from as libc::c_char);
        let mut data = [0; 14];
        data[2..6].copy_from_slice(&address.octets().map(|byte| byte as libc::c_char));
        request.ifr_ifru.ifru_addr = libc::sockaddr { sa_family: libc::AF_INET as u16, sa_data: data };
        // SAFETY: SIOCSIFADDR reads an ifreq, and `request` is one with name and address filled in.
        let done = unsafe { libc::ioctl(udp().as_raw_fd(), libc::SIOCSIFADDR as _, &raw const request) };
        assert_eq!(done, 0, "{alias}: {}", io::Error::last_os_error());
    }
    for address in [SECOND6, LINK6] {
        let request = libc::in6_ifreq {
            ifr6_addr: libc::in6_addr { s6_addr: address.octets() },
            ifr6_prefixlen: 64,
            ifr6_ifindex: LOOPBACK as i32,
        };
        // SAFETY: on an IPv6 socket SIOCSIFADDR reads an in6_ifreq.
        let done = unsafe { libc::ioctl(udp6().as_raw_fd(), libc::SIOCSIFADDR as _, &raw const request) };
        assert_eq!(done, 0, "{address}: {}", io::Error::last_os_error());
    }
}

fn addresses(target: &Target) -> Vec<SocketAddr> {
    let link6 = SocketAddrV6::new(LINK6, target.port, 0, LOOPBACK).into();
    let mapped = |address: Ipv4Addr| target.at(address.to_ipv6_mapped());
    match target.v6() {
        false => [Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 1, 2, 3), SECOND, LINK]
            .map(|address| target.at(address))
            .into(),
        true => vec![
            target.any(),
            target.loopback(),
            target.at(SECOND6),
            link6,
            mapped(Ipv4Addr::UNSPECIFIED),
            mapped(Ipv4Addr::LOCALHOST),
            mapped(SECOND),
            mapped(LINK),
        ],
    }
}

#[test]
fn every_local_address_is_covered() {
    let Some(world) = World::enter("bypass::every_local_address") else { return };
    add_addresses();
    besiege(&world, |target| {
        for address in addresses(target) {
            target.refused("plain", &target.socket(), address);
        }
    });
    // The owner may bind each of them.
    for (domain, transport) in KINDS {
        let owner = socket(domain, transport);
        let grant = reserve(&owner, 0, 1);
        let target = Target {
            domain,
            transport,
            port: grant.start,
            who: crate::siege::Who::Root,
            owner: crate::siege::Owner::Waits,
        };
        for address in addresses(&target) {
            target.socket().bind(&address.into()).unwrap_or_else(|error| panic!("{address}: {error}"));
        }
        drop(owner);
        world.assert_empty();
    }
}

#[test]
fn the_families_are_one_with_v6only_and_without() {
    let Some(world) = World::enter("bypass::the_families") else { return };
    for transport in Transport::ALL {
        // The owner's bind, and the outsider's attempt beside it.
        for owners in ["none", "v4", "v6 only", "dual"] {
            let keeper = socket(Domain::IPV6, transport);
            let grant = reserve(&keeper, 0, 1);
            let port = grant.start;
            let bound = (owners != "none").then(|| {
                let v4 = owners == "v4";
                let bound = socket(if v4 { Domain::IPV4 } else { Domain::IPV6 }, transport);
                if !v4 {
                    bound.set_only_v6(owners == "v6 only").unwrap();
                }
                let any: IpAddr = if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
                bound.bind(&SocketAddr::new(any, port).into()).unwrap();
                bound
            });
            for user in [false, true] {
                in_child(|| {
                    if user {
                        become_user(NOBODY);
                    }
                    for (domain, only_v6, address) in [
                        (Domain::IPV4, None, "0.0.0.0:P"),
                        (Domain::IPV4, None, "127.0.0.1:P"),
                        (Domain::IPV6, Some(true), "[::]:P"),
                        (Domain::IPV6, Some(true), "[::1]:P"),
                        (Domain::IPV6, Some(false), "[::]:P"),
                        (Domain::IPV6, Some(false), "[::ffff:127.0.0.1]:P"),
                    ] {
                        let outsider = socket(domain, transport);
                        if let Some(only_v6) = only_v6 {
                            outsider.set_only_v6(only_v6).unwrap();
                        }
                        let result = bind_to(&outsider, &address.replace('P', &port.to_string()));
                        let error = result.expect_err(address).raw_os_error();
                        assert_eq!(error, Some(libc::EADDRINUSE), "{owners} {address} {only_v6:?}");
                    }
                });
            }
            // The owner may also bind the family that it has not bound.
            match owners {
                "v4" => {
                    let other = socket(Domain::IPV6, transport);
                    other.set_only_v6(true).unwrap();
                    bind_to(&other, &format!("[::]:{port}")).unwrap();
                }
                "v6 only" => bind_to(&socket(Domain::IPV4, transport), &format!("0.0.0.0:{port}")).unwrap(),
                _ => {}
            }
            drop(bound);
            owner_binds(Domain::IPV6, transport, &grant);
            drop(keeper);
            world.assert_empty();
        }
    }
}
