//! The common part of all these tests: a reserved port, an outsider that tries to bind it, and the owner that must be
//! able to bind it afterwards.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portkeep_core::{Errno, Transport, wire};
use portkeep_testkit::{
    World,
    process::{become_user, in_child},
    sockets::{bind, errno, port, reserve, socket},
};
use socket2::{Domain, Socket};

pub(crate) const NOBODY: u32 = 65534;

/// The four kinds of socket.
pub(crate) const KINDS: [(Domain, Transport); 4] = [
    (Domain::IPV4, Transport::Tcp),
    (Domain::IPV4, Transport::Udp),
    (Domain::IPV6, Transport::Tcp),
    (Domain::IPV6, Transport::Udp),
];

/// The identity of the outsider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Root,
    User,
}

/// The state of the owner meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// It has not bound the port yet.
    Waits,
    /// It has bound the port, with options that allow sharing it.
    Shares,
}

/// A reserved port, seen by an outsider.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) domain: Domain,
    pub(crate) transport: Transport,
    pub(crate) port: u16,
    pub(crate) who: Who,
    /// Shown in every message.
    #[allow(dead_code)]
    pub(crate) owner: Owner,
}

impl Target {
    /// A socket of the target's kind.
    pub(crate) fn socket(&self) -> Socket {
        socket(self.domain, self.transport)
    }

    pub(crate) fn any(&self) -> SocketAddr {
        SocketAddr::new(if self.v6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }, self.port)
    }

    pub(crate) fn loopback(&self) -> SocketAddr {
        SocketAddr::new(if self.v6() { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }, self.port)
    }

    pub(crate) fn at(&self, address: impl Into<IpAddr>) -> SocketAddr {
        SocketAddr::new(address.into(), self.port)
    }

    pub(crate) fn v6(&self) -> bool {
        self.domain == Domain::IPV6
    }

    pub(crate) fn tcp(&self) -> bool {
        self.transport == Transport::Tcp
    }

    /// The bind fails with EADDRINUSE, and leaves the socket without a port.
    #[track_caller]
    pub(crate) fn refused(&self, how: &str, socket: &Socket, to: SocketAddr) {
        assert_eq!(errno_of(socket.bind(&to.into()), how, self), Errno::EADDRINUSE, "{how} {to} {self:?}");
        assert_eq!(port(socket), 0, "{how} {to} {self:?}");
    }

    /// [`Self::refused`] on the wildcard and the loopback address.
    #[track_caller]
    pub(crate) fn refused_everywhere(&self, how: &str, socket: impl Fn() -> Socket) {
        self.refused(how, &socket(), self.any());
        self.refused(how, &socket(), self.loopback());
    }
}

#[track_caller]
fn errno_of(result: std::io::Result<()>, how: &str, target: &Target) -> Errno {
    match result {
        Ok(()) => panic!("{how}: the outsider got in, {target:?}"),
        Err(error) => Errno(error.raw_os_error().expect("an error number")),
    }
}

/// Attack one port after another: with each kind of socket, with each kind of outsider, before and after the owner
/// binds. After each attack the owner binds the port, and at the end nothing is left.
pub(crate) fn besiege(world: &World, attack: impl Fn(&Target)) {
    for (domain, transport) in KINDS {
        for (who, waits) in [(Who::Root, true), (Who::User, true), (Who::Root, false), (Who::User, false)] {
            let socket = || socket(domain, transport);
            let keeper = socket();
            let grant = reserve(&keeper, 0, 1);
            let bound = (!waits).then(|| {
                let bound = socket();
                bound.set_reuse_port(true).unwrap();
                bound.set_reuse_address(true).unwrap();
                bind(&bound, grant.start).unwrap();
                bound
            });
            let owner = if waits { Owner::Waits } else { Owner::Shares };
            let target = Target { domain, transport, port: grant.start, who, owner };
            in_child(|| {
                if who == Who::User {
                    become_user(NOBODY);
                }
                attack(&target);
            });
            drop(bound);
            owner_binds(domain, transport, &grant);
            drop(keeper);
        }
        world.assert_empty();
    }
}

/// The other half of every test: the owner process can bind its port.
#[track_caller]
pub(crate) fn owner_binds(domain: Domain, transport: Transport, grant: &wire::Grant) {
    let rightful = socket(domain, transport);
    bind(&rightful, grant.start).expect("the owner binds its port");
    assert_eq!(port(&rightful), grant.start);
    // The kernel itself refuses a second bind.
    assert_eq!(errno(bind(&socket(domain, transport), grant.start)), Errno::EADDRINUSE);
    if transport == Transport::Tcp {
        rightful.listen(1).expect("the owner listens");
    }
}

/// Report visibly that this kernel does not have a feature. This is no failure: an outsider cannot use a feature that
/// the kernel does not have.
pub(crate) fn absent(way: &str, why: impl std::fmt::Display) {
    portkeep_testkit::note(&format!("SKIPPED bypass: {way}: {why}"));
}

/// `setsockopt` with a number.
pub(crate) fn set(socket: &impl std::os::fd::AsRawFd, level: i32, name: i32, value: i32) -> std::io::Result<()> {
    set_bytes(socket, level, name, &value.to_ne_bytes())
}

pub(crate) fn set_bytes(
    socket: &impl std::os::fd::AsRawFd,
    level: i32,
    name: i32,
    value: &[u8],
) -> std::io::Result<()> {
    // SAFETY: the kernel reads `value`, of the size given.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), value.len() as u32) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
