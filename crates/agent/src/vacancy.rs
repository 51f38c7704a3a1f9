//! Checks whether a port is vacant. A port is in use (rule R4) if a socket is bound to it or listens on it. It is also
//! in use if a connection or a TIME_WAIT on it would keep the next holder from binding it.
//!
//! A bind probe decides wherever it can: it conflicts with what the next bind would conflict with, sockets of the
//! kernel's own included. One bind of `[::]` for both families, without SO_REUSEADDR, conflicts with every socket on
//! the port, of every address, family or device. If it succeeds, the port is vacant. For UDP this is enough. For TCP it
//! also conflicts with connections and with TIME_WAIT. So when it fails, sock_diag has to show what is there:
//!
//! | sock_diag lists             | then                                         |
//! | --------------------------- | -------------------------------------------- |
//! | a listener, a bound socket  | in use                                       |
//! | connections, TIME_WAIT      | a second probe, with SO_REUSEADDR, decides   |
//! | nothing                     | the first probe once more: its error decides |
//!
//! The sockets of a reservation's holders get SO_REUSEADDR, so the second probe conflicts with what they would conflict
//! with. It ignores connections that a server with SO_REUSEADDR left behind. It conflicts with those that a server
//! without it left behind, orphaned connections included. It does not listen: bind with SO_REUSEADDR already conflicts
//! with listeners, and a probe that listened might accept another program's connection.
//!
//! While a probe is bound, no other process can bind the port. Any user can request a block that is refused, again and
//! again. So for a request the ports with listed sockets are checked first: then a block with a socket in the way is
//! refused before a probe binds any of its free ports.
//!
//! Not visible: if a client set SO_REUSEADDR, bound and connected, it looks like an accepted connection and does not
//! count. Before Linux 6.8 sock_diag does not list TCP sockets that are only bound. The probe conflicts with them all
//! the same, unless such a socket shares its port, by SO_REUSEADDR, with connections or TIME_WAIT.

use std::{cell::OnceCell, collections::BTreeMap, io, net::SocketAddr};

use portkeep::control;
use portkeep_core::{
    PortRange, Transport, Transports,
    wire::{AGENT_PROBE, AgentMark},
};
use portkeep_observe::sockets::{Listing, Socket, SocketState};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt},
};

/// Of a longer block, only the ports with a listed socket are probed: a probe of each port would cost too much.
const MANY: u16 = 64;

/// Checks ports. Everything happens in the calling thread's network namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prober {
    mark: Option<AgentMark>,
}

impl Prober {
    /// A prober whose probes may bind reserved ports, by the secret in the configuration of the BPF programs.
    pub(crate) fn marked(secret: [u64; 2]) -> Self {
        Self { mark: Some(AgentMark { secret, role: AGENT_PROBE, zero: 0 }) }
    }

    /// A prober that reads sock_diag's lists only, for a process to which the control codes are not served.
    pub(crate) fn listing_only() -> Self {
        Self { mark: None }
    }

    /// Begin to check some ports in the calling thread's network namespace.
    pub(crate) fn look(&self, transport: Transport, ports: PortRange) -> Look<'_> {
        Look { prober: self, transport, ports, listing: OnceCell::new() }
    }

    /// A port of the block that is not vacant.
    pub(crate) fn in_use(&self, transports: Transports, ports: PortRange) -> io::Result<Option<(Transport, u16)>> {
        let looks: Vec<Look<'_>> = transports.iter().map(|transport| self.look(transport, ports)).collect();
        if let ([look], 1) = (&looks[..], ports.count()) {
            // There is no other port that a probe could keep from a process.
            return Ok((!look.vacant(ports.start())?).then_some((look.transport, ports.start())));
        }
        let mut candidates = Vec::new();
        for look in &looks {
            candidates.extend(look.listed_first()?.into_iter().map(|candidate| (candidate, look)));
        }
        candidates.sort_by_key(|(candidate, _)| *candidate);
        for ((_, port), look) in candidates {
            if !look.vacant(port)? {
                return Ok(Some((look.transport, port)));
            }
        }
        Ok(None)
    }
}

/// The sockets that are listed on a port. The ports that are most probably in use come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Listed {
    Holder,
    Connections,
    Nothing,
}

/// One check of some ports of a namespace, with at most one listing of their sockets.
#[derive(Debug)]
pub(crate) struct Look<'a> {
    prober: &'a Prober,
    transport: Transport,
    ports: PortRange,
    listing: OnceCell<Listing>,
}

impl Look<'_> {
    /// The sockets on a port.
    fn on(&self, port: u16) -> io::Result<impl Iterator<Item = &Socket>> {
        Ok(self.listing()?.sockets.iter().filter(move |socket| socket.port() == port))
    }

    fn listing(&self) -> io::Result<&Listing> {
        if self.listing.get().is_none() {
            let _ = self.listing.set(Listing::on(self.transport, &self.ports.into())?);
        }
        Ok(self.listing.get().expect("set just now"))
    }

    /// The ports that have to be checked one by one, in this order. For a short block this needs no listing, which
    /// costs some milliseconds.
    pub(crate) fn candidates(&self) -> io::Result<Vec<(Listed, u16)>> {
        if self.prober.mark.is_some() && self.ports.count() <= MANY {
            return Ok(self.ports.iter().map(|port| (Listed::Nothing, port)).collect());
        }
        self.listed_first()
    }

    /// The same, with the ports of listed sockets first. If the block is long and sock_diag lists every socket, only
    /// these.
    fn listed_first(&self) -> io::Result<Vec<(Listed, u16)>> {
        let listing = self.listing()?;
        let mut listed = BTreeMap::new();
        if self.prober.mark.is_some() && (self.ports.count() <= MANY || !listing.complete) {
            listed.extend(self.ports.iter().map(|port| (port, Listed::Nothing)));
        }
        for socket in &listing.sockets {
            let found = if socket.holds() { Listed::Holder } else { Listed::Connections };
            let known = listed.entry(socket.port()).or_insert(found);
            *known = found.min(*known);
        }
        let mut candidates: Vec<(Listed, u16)> = listed.into_iter().map(|(port, listed)| (listed, port)).collect();
        candidates.sort_unstable();
        Ok(candidates)
    }

    /// Whether one port is vacant.
    pub(crate) fn vacant(&self, port: u16) -> io::Result<bool> {
        let Some(mark) = &self.prober.mark else {
            return Ok(self.on(port)?.all(|socket| socket.state == SocketState::TimeWait));
        };
        if probe(mark, self.transport, port, false)? {
            return Ok(true);
        }
        if self.transport == Transport::Udp {
            return Ok(false);
        }
        let mut left_behind = false;
        for socket in self.on(port)? {
            if socket.holds() {
                return Ok(false);
            }
            left_behind = true;
        }
        probe(mark, self.transport, port, left_behind)
    }
}

/// True if the port could be bound, on all addresses of both families.
fn probe(mark: &AgentMark, transport: Transport, port: u16, reuse: bool) -> io::Result<bool> {
    let (kind, protocol) = match transport {
        Transport::Tcp => (SocketType::STREAM, ipproto::TCP),
        Transport::Udp => (SocketType::DGRAM, ipproto::UDP),
    };
    let dual = match socket_with(AddressFamily::INET6, kind, SocketFlags::CLOEXEC, Some(protocol)) {
        Ok(socket) => {
            sockopt::set_ipv6_v6only(&socket, false)?;
            Some(socket)
        }
        Err(Errno::AFNOSUPPORT) => None,
        Err(error) => return Err(error.into()),
    };
    let (socket, address) = match dual {
        Some(socket) => (socket, SocketAddr::from(([0u16; 8], port))),
        None => {
            let socket = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, Some(protocol))?;
            (socket, SocketAddr::from(([0u8; 4], port)))
        }
    };
    control::agent_mark(&socket, mark)?;
    if reuse {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    match bind(&socket, &address) {
        Ok(()) => Ok(true),
        Err(Errno::ADDRINUSE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
