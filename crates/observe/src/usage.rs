//! The use of a port: the sockets that have it bound, and those that are connected from it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
};

use portkeep::{BoundSocket, Info, Process};
use portkeep_core::{PortRange, PortSet, Transport, Transports};
use portkeep_kernel::cgroup;
use serde::Serialize;

use crate::{
    accounts::known_user,
    process::{self, Openers},
    sockets::{Listing, Socket},
};

/// The number of connections of a port that are shown; the rest is counted. A busy server has thousands.
const SHOWN: usize = 16;

/// The sockets on one port, in one network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortUse {
    /// The port, host byte order.
    pub port: u16,
    /// Of which transport.
    pub transport: Transport,
    /// The sockets that have it bound or listen on it: one for each process that has the socket open.
    pub bound_by: Vec<BoundSocket>,
    /// The first few connections on it: those that were accepted, those of clients, and what remains of either.
    pub connections: Vec<BoundSocket>,
    /// How many connections there are.
    pub connection_count: usize,
}

impl PortUse {
    /// The use of a port without sockets.
    pub const fn none(port: u16, transport: Transport) -> Self {
        Self { port, transport, bound_by: Vec::new(), connections: Vec::new(), connection_count: 0 }
    }

    /// Whether no socket has the port.
    pub const fn is_free(&self) -> bool {
        self.bound_by.is_empty() && self.connection_count == 0
    }

    /// The sockets, those that have the port bound first.
    pub fn sockets(&self) -> impl Iterator<Item = &BoundSocket> {
        self.bound_by.iter().chain(&self.connections)
    }
}

/// The sockets on some ports.
#[derive(Debug, Default)]
pub struct Usage {
    /// For each port that has a socket.
    pub ports: BTreeMap<(u16, Transport), PortUse>,
    /// Reservations that a process holds by held mode with one of these sockets.
    pub held: Vec<Info>,
    /// Whether the processes of all users could be seen. If not, root would see more.
    pub all: bool,
    /// Whether every socket that has a port is listed. Before Linux 6.8, TCP sockets that are bound and do not listen
    /// are not.
    pub complete: bool,
}

/// The sockets of one port.
#[derive(Default)]
struct Sorted {
    holds: Vec<Socket>,
    /// The first few.
    connections: Vec<Socket>,
    connection_count: usize,
}

impl Usage {
    /// The use of the ports of these blocks (host byte order), in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// If the kernel does not list its sockets.
    pub fn of(blocks: &[(PortRange, Transports)]) -> io::Result<Self> {
        let (sockets, complete) = listed(blocks)?;
        Ok(Self { complete, ..Self::with(sockets) })
    }

    /// The same without connections: only the sockets that have the ports bound.
    ///
    /// # Errors
    ///
    /// As [`of`](Self::of).
    pub fn bound(blocks: &[(PortRange, Transports)]) -> io::Result<Self> {
        let (mut sockets, complete) = listed(blocks)?;
        sockets.retain(Socket::holds);
        Ok(Self { complete, ..Self::with(sockets) })
    }

    /// The same, with every block of this network namespace that a process holds in held mode, at any ports.
    ///
    /// # Errors
    ///
    /// As [`of`](Self::of).
    pub fn bound_and_held(blocks: &[(PortRange, Transports)]) -> io::Result<Self> {
        let (mut sockets, complete) = listed(&[(PortRange::ALL, Transports::Both)])?;
        sockets.retain(Socket::holds);
        let openers = Openers::of(&sockets.iter().filter_map(|socket| socket.inode).collect());
        let held = held(&openers, &sockets);
        let asked = Transport::ALL.map(|transport| (transport, ports_of(blocks, transport)));
        let is_asked = |socket: &Socket| {
            asked.iter().any(|(transport, ports)| *transport == socket.transport && ports.contains(socket.port()))
        };
        sockets.retain(is_asked);
        Ok(Self { complete, held, ..Self::named(sorted(sockets), &openers) })
    }

    /// The processes that have these sockets open.
    fn with(sockets: Vec<Socket>) -> Self {
        let by_port = sorted(sockets);
        let shown = by_port.values().flat_map(|sorted| sorted.holds.iter().chain(&sorted.connections));
        let openers = Openers::of(&shown.filter_map(|socket| socket.inode).collect());
        let held = held(&openers, by_port.values().flat_map(|sorted| &sorted.holds));
        Self { held, ..Self::named(by_port, &openers) }
    }

    fn named(by_port: BTreeMap<(u16, Transport), Sorted>, openers: &Openers) -> Self {
        let mut names = Names::new(openers);
        let mut usage = Self { all: openers.all, ..Self::default() };
        for ((port, transport), Sorted { holds, connections, connection_count }) in by_port {
            let mut named =
                |sockets: &[Socket]| sockets.iter().flat_map(|socket| names.of(socket)).collect::<Vec<BoundSocket>>();
            let (bound_by, connections) = (named(&holds), named(&connections));
            if !bound_by.is_empty() || connection_count > 0 {
                let found = PortUse { port, transport, bound_by, connections, connection_count };
                usage.ports.insert((port, transport), found);
            }
        }
        usage
    }

    /// One port.
    pub fn port(&self, transport: Transport, port: u16) -> PortUse {
        self.ports.get(&(port, transport)).cloned().unwrap_or_else(|| PortUse::none(port, transport))
    }
}

/// The ports of the blocks of one transport. A machine can have as many blocks as sockets.
fn ports_of(blocks: &[(PortRange, Transports)], transport: Transport) -> PortSet {
    blocks.iter().filter(|(_, transports)| transports.contains(transport)).map(|(ports, _)| *ports).collect()
}

fn sorted(mut sockets: Vec<Socket>) -> BTreeMap<(u16, Transport), Sorted> {
    // Sockets that no process has open come last.
    sockets.sort_by_key(|socket| (!socket.holds(), socket.state, socket.inode.is_none()));
    let mut by_port: BTreeMap<(u16, Transport), Sorted> = BTreeMap::new();
    for socket in sockets {
        let sorted = by_port.entry((socket.port(), socket.transport)).or_default();
        if socket.holds() {
            sorted.holds.push(socket);
        } else {
            sorted.connection_count += 1;
            if sorted.connections.len() < SHOWN {
                sorted.connections.push(socket);
            }
        }
    }
    by_port
}

/// The sockets on the ports of these blocks, and whether all are listed.
fn listed(blocks: &[(PortRange, Transports)]) -> io::Result<(Vec<Socket>, bool)> {
    let (mut sockets, mut complete) = (Vec::new(), true);
    for transport in Transport::ALL {
        let asked = ports_of(blocks, transport);
        if asked.is_empty() {
            continue;
        }
        let listing = Listing::on(transport, &asked)?;
        complete &= listing.complete;
        sockets.extend(listing.sockets);
    }
    Ok((sockets, complete))
}

/// The blocks in held mode whose process has a socket on one of their ports. Any process can claim to hold any number
/// of blocks.
fn held<'a>(openers: &Openers, sockets: impl IntoIterator<Item = &'a Socket>) -> Vec<Info> {
    let claimants: BTreeSet<u32> = openers.held.iter().filter_map(|info| Some(info.owner.as_ref()?.pid)).collect();
    if claimants.is_empty() {
        return Vec::new();
    }
    let mut its = BTreeSet::new();
    for socket in sockets {
        let openers = socket.inode.into_iter().flat_map(|inode| openers.with(inode));
        let pids = openers.map(|process| process.pid).filter(|pid| claimants.contains(pid));
        its.extend(pids.map(|pid| (pid, socket.transport, socket.port())));
    }
    let holds = |pid, transport, block: &PortRange| {
        its.range((pid, transport, block.start())..=(pid, transport, block.last())).next().is_some()
    };
    let (mut found, mut known) = (Vec::new(), BTreeSet::new());
    for info in &openers.held {
        let Some(pid) = info.owner.as_ref().map(|owner| owner.pid) else { continue };
        let mut transports = Transport::ALL.into_iter().filter(|transport| info.transports.contains(*transport));
        let has = transports.any(|of| info.ports.blocks().iter().any(|block| holds(pid, of, block)));
        // A child that inherited the socket has it, too.
        if has && known.insert((&info.ports, info.transports)) {
            let mut info = info.clone();
            name_user(info.owner.as_mut());
            found.push(info);
        }
    }
    Info::join(found)
}

fn name_user(process: Option<&mut Process>) {
    if let Some(process) = process {
        process.user = process.uid.and_then(known_user);
    }
}

/// Names for the numbers of sockets, each looked up once.
struct Names<'a> {
    openers: &'a Openers,
    units: HashMap<u64, Option<String>>,
    /// Sockets on ports that were listed again, to check the sockets that no process has open.
    again: HashMap<(u16, Transport), BTreeSet<u64>>,
}

impl<'a> Names<'a> {
    fn new(openers: &'a Openers) -> Self {
        Self { openers, units: HashMap::new(), again: HashMap::new() }
    }

    /// One for each process that has the socket open.
    fn of(&mut self, socket: &Socket) -> Vec<BoundSocket> {
        let openers: Vec<&Process> = socket.inode.into_iter().flat_map(|inode| self.openers.with(inode)).collect();
        let kernel = openers.is_empty() && self.openers.all && socket.inode.is_some();
        if kernel && !self.is_still_there(socket) {
            // Its process has just ended.
            return Vec::new();
        }
        let unit = match socket.cgroup.filter(|_| openers.is_empty() && !kernel) {
            Some(id) => self.units.entry(id).or_insert_with(|| unit_of(id)).clone(),
            None => None,
        };
        let user = socket.uid.and_then(known_user);
        let bound = |process: Option<&Process>| BoundSocket {
            port: socket.port(),
            transport: socket.transport,
            state: Some(socket.state.to_string()),
            local: Some(socket.local.to_string()),
            peer: socket.peer.map(|peer| peer.to_string()),
            process: process.cloned(),
            kernel,
            uid: socket.uid,
            user: user.clone(),
            unit: unit.clone().or_else(|| process.and_then(|process| process.unit.clone())),
            remaining: socket.remaining.map(|left| left.as_secs()),
        };
        if openers.is_empty() {
            return vec![bound(None)];
        }
        let mut all: Vec<BoundSocket> = openers.into_iter().map(|process| bound(Some(process))).collect();
        all.iter_mut().for_each(|bound| name_user(bound.process.as_mut()));
        all
    }

    fn is_still_there(&mut self, socket: &Socket) -> bool {
        let inodes = self.again.entry((socket.port(), socket.transport)).or_insert_with(|| {
            let block = PortRange::single(socket.port()).expect("a socket's port is not 0");
            let listed = Listing::on(socket.transport, &block.into()).unwrap_or_default().sockets;
            listed.into_iter().filter_map(|socket| socket.inode).collect()
        });
        socket.inode.is_some_and(|inode| inodes.contains(&inode))
    }
}

fn unit_of(cgroup: u64) -> Option<String> {
    let path = cgroup::path_of(cgroup)?;
    process::unit_of(&cgroup::root()?.join(path.strip_prefix("/").ok()?))
}

/// A socket of which only this is known: the port cannot be bound.
pub const fn unlisted(transport: Transport, port: u16) -> BoundSocket {
    BoundSocket {
        port,
        transport,
        state: None,
        local: None,
        peer: None,
        process: None,
        kernel: false,
        uid: None,
        user: None,
        unit: None,
        remaining: None,
    }
}

/// A sentence with the port of a block that is in use and its socket; `None` if no socket is listed. In the calling
/// thread's network namespace.
pub fn in_use(transport: Transport, block: PortRange) -> Option<String> {
    let usage = Usage::of(&[(block, transport.into())]).ok()?;
    // Bound sockets come first, because the user can close them.
    let found =
        usage.ports.values().find(|found| !found.bound_by.is_empty()).or_else(|| usage.ports.values().next())?;
    let sockets: Vec<BoundSocket> = found.sockets().cloned().collect();
    Some(sentence(transport, found.port, &sockets))
}

/// "8443/tcp is in use by pid 812 (nginx): listening".
pub fn sentence(transport: Transport, port: u16, sockets: &[BoundSocket]) -> String {
    let Some(first) = sockets.first() else { return format!("{port}/{transport} is in use") };
    format!("{port}/{transport} is in use by {}: {}", holder(first), state(first))
}

/// "pid 812 (nginx)", "the kernel itself", or what else is known about the holder of a socket.
pub fn holder(socket: &BoundSocket) -> String {
    if let Some(process) = &socket.process {
        return process.to_string();
    }
    if socket.kernel {
        return "the kernel itself".into();
    }
    if is_left(socket) {
        return "a connection that no process has open".into();
    }
    let user = socket.user.clone().or_else(|| socket.uid.map(|uid| uid.to_string()));
    let user = user.map_or_else(String::new, |user| format!(" of user {user}"));
    let unit = socket.unit.as_ref().map_or_else(String::new, |unit| format!(" in {unit}"));
    // Sockets of the kernel look like those of root.
    let kernel = if socket.uid == Some(0) { ", or the kernel," } else { "" };
    format!("a process{user}{unit}{kernel} that cannot be seen from here")
}

/// Whether it is listed and no process has it open: then it has no user either.
pub const fn is_left(socket: &BoundSocket) -> bool {
    socket.process.is_none() && !socket.kernel && socket.state.is_some() && socket.uid.is_none()
}

/// "listening on 0.0.0.0:80", "connected, 127.0.0.1:44444 to 127.0.0.1:8008", "TIME-WAIT, ..., 43 s left".
pub fn state(socket: &BoundSocket) -> String {
    let (Some(state), Some(local)) = (socket.state.as_deref(), socket.local.as_deref()) else {
        return "it cannot be bound".into();
    };
    let left = socket.remaining.map_or_else(String::new, |left| format!(", {left} s left"));
    match &socket.peer {
        Some(peer) => format!("{state}, {local} to {peer}{left}"),
        None if state == "bound" && socket.transport == Transport::Tcp => format!("bound to {local}, not listening"),
        None => format!("{state} on {local}{left}"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_is_named_with_its_process_and_its_peer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let client = TcpStream::connect(there).unwrap();
        let here = client.local_addr().unwrap();
        let look = |port| Usage::of(&[(PortRange::single(port).unwrap(), Transports::Tcp)]).unwrap();
        let found = look(here.port()).port(Transport::Tcp, here.port());
        assert!(found.bound_by.is_empty() && found.connection_count >= 1 && !found.is_free());
        let of_client = found.connections.iter().find(|socket| socket.peer == Some(there.to_string())).unwrap();
        assert_eq!(of_client.process.as_ref().map(|process| process.pid), Some(std::process::id()));
        let text = sentence(Transport::Tcp, here.port(), std::slice::from_ref(of_client));
        let expected = format!("by pid {}", std::process::id());
        assert!(text.contains(&expected) && text.ends_with(&format!("connected, {here} to {there}")), "{text}");
        let of_server = look(there.port()).port(Transport::Tcp, there.port());
        assert_eq!(of_server.bound_by[0].state.as_deref(), Some("listening"));
        assert_eq!(of_server.bound_by[0].process.as_ref().map(|process| process.pid), Some(std::process::id()));
    }

    #[test]
    fn an_answer_names_the_parts_that_could_not_be_seen() {
        let socket = BoundSocket {
            state: Some("bound".into()),
            local: Some("0.0.0.0:53".into()),
            uid: Some(0),
            user: Some("root".into()),
            unit: Some("named.service".into()),
            ..unlisted(Transport::Udp, 53)
        };
        assert_eq!(
            sentence(Transport::Udp, 53, std::slice::from_ref(&socket)),
            "53/udp is in use by a process of user root in named.service, or the kernel, that cannot be seen \
             from here: bound on 0.0.0.0:53"
        );
        let of_user =
            BoundSocket { uid: Some(33), user: None, unit: None, state: Some("closing".into()), ..socket.clone() };
        assert_eq!(holder(&of_user), "a process of user 33 that cannot be seen from here");
        assert_eq!(holder(&BoundSocket { uid: None, ..of_user }), "a connection that no process has open");
        let kernel = BoundSocket { kernel: true, ..socket };
        assert_eq!(holder(&kernel), "the kernel itself");
    }
}
