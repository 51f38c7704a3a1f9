//! Attempts on ports that belong to others, and choices that the kernel makes.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use portkeep_core::Transport;
use portkeep_testkit::{
    process::{Child, become_user},
    sockets::{self, port},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Held, Operation, Worker, outcome};
use crate::ledger::now;

/// Users that processes are and become.
pub(crate) const USERS: [u32; 3] = [30001, 30002, 30003];

impl Worker {
    /// A socket with every option that might help to bind a reserved port.
    fn hostile_socket(&mut self, transport: Transport) -> (Socket, IpAddr) {
        let (domain, address): (Domain, IpAddr) = self.random.of(&[
            (Domain::IPV4, Ipv4Addr::UNSPECIFIED.into()),
            (Domain::IPV4, Ipv4Addr::LOCALHOST.into()),
            (Domain::IPV4, Ipv4Addr::new(127, 1, 2, 3).into()),
            (Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()),
            (Domain::IPV6, Ipv6Addr::LOCALHOST.into()),
            (Domain::IPV6, Ipv4Addr::LOCALHOST.to_ipv6_mapped().into()),
        ]);
        let mptcp = transport == Transport::Tcp && self.random.one_in(6);
        let socket = match mptcp.then(|| Socket::new(domain, Type::STREAM, Some(Protocol::MPTCP))) {
            Some(Ok(socket)) => socket,
            // If the kernel has no MPTCP, there is one way less.
            Some(Err(_)) | None => sockets::socket(domain, transport),
        };
        let mapped = matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some());
        for option in 0..6 {
            if !self.random.one_in(3) {
                continue;
            }
            // Options that this user may not set are left out.
            let _ = match option {
                0 => socket.set_reuse_address(true),
                1 => socket.set_reuse_port(true),
                2 => socket.set_freebind_v4(true),
                3 => socket.set_ip_transparent_v4(true),
                4 if domain == Domain::IPV6 && !mapped => socket.set_only_v6(true),
                _ => socket.bind_device(Some(b"lo")),
            };
        }
        (socket, address)
    }

    /// A socket without any right is bound to this port since after `before`.
    pub(super) fn check_outsider(
        &self,
        how: &str,
        socket: &Socket,
        transport: Transport,
        before: u64,
        automatic: bool,
    ) {
        let port = port(socket);
        if port == 0 {
            return;
        }
        let Some((entry, grant)) = self.ledger.held_since(transport, port, before) else { return };
        if automatic || !grant.may_bind(&self.person) {
            let text = format!("{how} got {port}/{transport} of {}, and is {:?}", grant.describe(), self.person);
            self.violation(&text, &[entry.holder()]);
        }
    }

    pub(super) fn bind_outsider(&mut self) {
        let Some((_, grant)) = self.pick_foreign() else { return };
        let transport = if grant.of(Transport::Tcp) && (!grant.of(Transport::Udp) || self.random.one_in(2)) {
            Transport::Tcp
        } else {
            Transport::Udp
        };
        let port = grant.start + self.random.below(grant.count.into()) as u16;
        self.intrude(Operation::BindOutsider, transport, port);
    }

    fn intrude(&mut self, operation: Operation, transport: Transport, port: u16) {
        let (socket, address) = self.hostile_socket(transport);
        let result = socket.bind(&SocketAddr::from((address, port)).into());
        let possible = [libc::EADDRINUSE, libc::EACCES];
        if self.expect(operation, &format!("{address} {port}/{transport}"), &result, &possible) {
            // A port in use is granted to nobody, so it does not matter which of the two was first.
            self.check_outsider("a bind", &socket, transport, u64::MAX, false);
            self.keep_a_while(socket, transport);
        }
    }

    /// Keep a bound socket for a while, so that its port is in use for others.
    fn keep_a_while(&mut self, socket: Socket, transport: Transport) {
        if self.random.one_in(3) && self.held.len() < super::SOCKETS {
            // The control codes are not for MPTCP: such a socket only keeps its port in use.
            let mptcp = socket.protocol().is_ok_and(|protocol| protocol == Some(Protocol::MPTCP));
            let mut held = Held::new(socket, transport);
            (held.bound, held.shared) = (true, mptcp);
            self.held.push(held);
        }
    }

    pub(super) fn bind_somewhere(&mut self) {
        let transport = self.transport();
        let (first, count) = self.random.of(&[(61000, 4536), (12000, 600), (40000, 2000), (5000, 1500)]);
        let port = first + self.random.below(count) as u16;
        self.intrude(Operation::BindUnreserved, transport, port);
    }

    /// R3: the ports that the kernel chooses by itself are not reserved.
    pub(super) fn automatic(&mut self) {
        let transport = self.transport();
        let (socket, address) = self.hostile_socket(transport);
        let _ = socket.set_nonblocking(true);
        let loopback: SocketAddr = match address {
            IpAddr::V6(address) if address.to_ipv4_mapped().is_none() => (Ipv6Addr::LOCALHOST, 9).into(),
            IpAddr::V6(_) => (Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 9).into(),
            IpAddr::V4(_) => (Ipv4Addr::LOCALHOST, 9).into(),
        };
        let before = now();
        let (operation, result): (_, io::Result<()>) = match (self.random.below(4), transport) {
            (0, _) => (Operation::BindAny, socket.bind(&SocketAddr::from((address, 0)).into())),
            (1, Transport::Tcp) => (Operation::Listen, socket.listen(1)),
            (1 | 2, Transport::Udp) => (Operation::Send, socket.send_to(b"x", &loopback.into()).map(drop)),
            _ => (Operation::Connect, socket.connect(&loopback.into())),
        };
        let possible = [
            libc::EADDRINUSE,
            libc::EADDRNOTAVAIL,
            libc::EAGAIN,
            libc::EINPROGRESS,
            libc::ECONNREFUSED,
            // An IPv4 destination for a socket that is for IPv6 only.
            libc::ENETUNREACH,
        ];
        self.expect(operation, &transport.to_string(), &result, &possible);
        if outcome(&result) == 0 || operation == Operation::Connect {
            self.check_outsider("an automatic choice", &socket, transport, before, true);
        }
        if result.is_ok() {
            self.keep_a_while(socket, transport);
        }
    }

    /// A child is another process, even with all its parent's descriptors.
    pub(super) fn fork_outsider(&mut self) {
        let Some((i, j)) = self.pick_grant() else { return };
        let (_, grant) = self.held[i].owns[j];
        let child = Child::fork(|_| {
            self.person.pid = std::process::id();
            for _ in 0..3 {
                let transport = if grant.of(Transport::Tcp) { Transport::Tcp } else { Transport::Udp };
                let port = grant.start + self.random.below(grant.count.into()) as u16;
                self.intrude(Operation::ForkOutsider, transport, port);
            }
        });
        child.join();
        // The child made its choices with a copy.
        self.random.below(2);
    }

    /// Another user, with another user's quota.
    pub(super) fn fork_user(&mut self) {
        if self.person.uid != 0 {
            return;
        }
        let user = self.random.of(&USERS);
        let targets: Vec<_> = (0..3).filter_map(|_| self.pick_foreign()).collect();
        let child = Child::fork(|_| {
            become_user(user);
            self.person =
                super::Person { pid: std::process::id(), uid: user, gid: user, cgroups: self.person.cgroups.clone() };
            for (_, grant) in targets {
                let transport = if grant.of(Transport::Udp) { Transport::Udp } else { Transport::Tcp };
                self.intrude(Operation::ForkUser, transport, grant.start);
            }
            // Something that ends with the process.
            let owner = sockets::tcp();
            let request = portkeep_core::wire::AcquireRequest { count: 20, ..Default::default() };
            let result = portkeep::control::acquire(&owner, &request);
            self.expect(Operation::AcquireWildcard, "after setuid", &result, &[libc::ENOSPC, libc::EDQUOT]);
        });
        child.join();
    }
}
