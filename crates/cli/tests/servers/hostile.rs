//! Outsiders that try to bind declared ports, in every way there is.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use portkeep::{PortRange, control, persistent::lookup};
use portkeep_core::{Errno, Transport, wire::AcquireRequest};
use portkeep_testkit::sockets::socket;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{Declared, tally::Slot};

const REUSE_ADDRESS: u8 = 1;
const REUSE_PORT: u8 = 2;
const FREE_BIND: u8 = 4;
const TO_DEVICE: u8 = 8;
const TRANSPARENT: u8 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
    Mptcp,
}

impl Kind {
    fn transport(self) -> Transport {
        if self == Self::Udp { Transport::Udp } else { Transport::Tcp }
    }

    fn socket(self, domain: Domain) -> io::Result<Socket> {
        match self {
            Self::Tcp => Socket::new(domain, Type::STREAM, Some(Protocol::TCP)),
            Self::Udp => Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)),
            Self::Mptcp => Socket::new(domain, Type::STREAM, Some(Protocol::MPTCP)),
        }
    }
}

/// One way to bind a port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    kind: Kind,
    address: IpAddr,
    only_v6: bool,
    options: u8,
}

/// All of them; root's are more.
pub(crate) fn ways(root: bool) -> Vec<Way> {
    let mapped = |address: Ipv4Addr| (IpAddr::from(address.to_ipv6_mapped()), false);
    let second = Ipv4Addr::new(127, 0, 0, 2);
    let addresses = [
        (Ipv4Addr::UNSPECIFIED.into(), false),
        (Ipv4Addr::LOCALHOST.into(), false),
        (second.into(), false),
        (Ipv6Addr::UNSPECIFIED.into(), false),
        (Ipv6Addr::UNSPECIFIED.into(), true),
        (Ipv6Addr::LOCALHOST.into(), false),
        (Ipv6Addr::LOCALHOST.into(), true),
        mapped(Ipv4Addr::UNSPECIFIED),
        mapped(Ipv4Addr::LOCALHOST),
        mapped(second),
    ];
    // Not a local address: only with FREE_BIND.
    let foreign = [
        (Ipv4Addr::new(192, 0, 2, 7).into(), false),
        (Ipv6Addr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7]).into(), false),
    ];
    let sets = if root { 32 } else { 16 };
    let mut ways = Vec::new();
    for kind in [Kind::Tcp, Kind::Udp, Kind::Mptcp] {
        // A kernel may be without MPTCP.
        if kind.socket(Domain::IPV4).is_err() {
            continue;
        }
        for options in 0..sets {
            let foreign = foreign.iter().filter(|_| options & FREE_BIND != 0);
            for (address, only_v6) in addresses.iter().chain(foreign).copied() {
                ways.push(Way { kind, address, only_v6, options });
            }
        }
    }
    ways
}

impl Way {
    pub(crate) fn is_for(&self, declared: &Declared) -> bool {
        declared.transports.contains(self.kind.transport())
    }

    /// Whether it succeeds although connections are in TIME_WAIT.
    pub(crate) fn ignores_time_wait(&self) -> bool {
        self.kind == Kind::Udp || self.options & REUSE_ADDRESS != 0
    }

    /// Bind, and listen where that is done.
    pub(crate) fn bind(&self, port: u16) -> io::Result<Socket> {
        let has = |option| self.options & option != 0;
        let socket = self.kind.socket(if self.address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 })?;
        if self.address.is_ipv6() {
            socket.set_only_v6(self.only_v6)?;
        }
        socket.set_reuse_address(has(REUSE_ADDRESS))?;
        socket.set_reuse_port(has(REUSE_PORT))?;
        if has(FREE_BIND) {
            socket.set_freebind_v4(true)?;
        }
        if has(TO_DEVICE) {
            socket.bind_device(Some(b"lo"))?;
        }
        if has(TRANSPARENT) {
            socket.set_ip_transparent_v4(true)?;
        }
        socket.bind(&SocketAddr::from((self.address, port)).into())?;
        if self.kind != Kind::Udp {
            socket.listen(8)?;
        }
        Ok(socket)
    }
}

/// Try to reserve the port, or to associate with its reservation. Administrators may associate, so root does not try
/// that.
fn by_control_codes(root: bool, declared: &Declared) -> Option<&'static str> {
    let ports = PortRange::single(declared.port).expect("a port");
    for transport in declared.transports.iter() {
        let request = AcquireRequest { start: declared.port, count: 1, ..Default::default() };
        let acquired = control::acquire(socket(Domain::IPV4, transport), &request);
        // EINPROGRESS means that the BPF programs have granted it, and only the agent's answer is missing.
        if acquired.map_or_else(|error| error.raw_os_error() == Some(Errno::EINPROGRESS.0), |()| true) {
            return Some("ACQUIRE");
        }
        let token = (!root).then(|| lookup(ports, transport).ok()).flatten();
        if token.is_some_and(|token| control::associate(socket(Domain::IPV4, transport), token).is_ok()) {
            return Some("ASSOCIATE");
        }
    }
    None
}

/// Try everything again and again, without end.
pub(crate) fn hammer(slot: &Slot<'_>, root: bool, declared: &[Declared]) {
    let ways = ways(root);
    loop {
        for way in &ways {
            for declared in declared.iter().filter(|declared| way.is_for(declared)) {
                let port = declared.port;
                match way.bind(port) {
                    Ok(_) => slot.wrong(&format!("{port} is lost to {way:?}")),
                    Err(error) if error.raw_os_error() == Some(Errno::EADDRINUSE.0) => {}
                    // An attempt that fails for another reason does not test the reservation.
                    Err(error) => slot.wrong(&format!("{port} by {way:?}: {error}")),
                }
                slot.count(|counts| counts.tries += 1);
            }
            slot.publish();
        }
        for declared in declared {
            if let Some(code) = by_control_codes(root, declared) {
                slot.wrong(&format!("{} is lost to {code}", declared.port));
            }
        }
        slot.count(|counts| counts.sweeps += 1);
        slot.publish();
    }
}
