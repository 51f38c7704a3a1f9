//! The reservations, sockets and ranges of a network namespace. Ports are in host byte order.
//!
//! Everything here waits for the kernel or for the agent, and belongs on a thread of its own.

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, SystemTime},
};

use portkeep::{
    Info, PortRange, QueryError, State, Time, Transport, Transports,
    persistent::{Connection, PersistentError},
};
use portkeep_core::PortSet;
use portkeep_kernel::netns;
use portkeep_observe::{
    Facts, PortFacts, PortUse, Usage, accounts, listing,
    namespaces::{self, visible},
    sockets::{Listing, SocketState},
    sysctl,
};
use serde::Serialize;

/// How long the agent has for an answer: the rest can be shown without it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// All ports of a network namespace.
#[derive(Debug, Serialize)]
pub(crate) struct Map {
    pub(crate) when: Time,
    pub(crate) netns: u64,
    pub(crate) netns_name: Option<String>,
    /// Whether kernel enforcement serves this server.
    pub(crate) up: bool,
    pub(crate) agent: bool,
    /// `None`: no agent runs, or its socket is not here.
    pub(crate) agent_answers: Option<bool>,
    pub(crate) pool: Option<PortRange>,
    pub(crate) local_port_range: Option<PortRange>,
    /// `ip_local_reserved_ports`.
    pub(crate) local_reserved_ports: PortSet,
    pub(crate) unprivileged_port_start: Option<u32>,
    /// In force or being checked, and declared ones that are not in force.
    pub(crate) reservations: Vec<Info>,
    pub(crate) sockets: Vec<Sockets>,
    /// The facts that could not be read, with the reason.
    pub(crate) not_seen: Vec<String>,
}

/// Ports with sockets of the same kind. A port with several kinds is in several.
#[derive(Debug, Serialize)]
pub(crate) struct Sockets {
    pub(crate) transport: Transport,
    pub(crate) state: String,
    /// The user of the sockets; `None` where the kernel knows none.
    pub(crate) uid: Option<u32>,
    pub(crate) user: Option<String>,
    pub(crate) ports: PortSet,
    /// They have the ports bound or listen on them.
    #[serde(skip)]
    pub(crate) holds: bool,
}

/// One port of one transport, as `portkeep who` shows it.
#[derive(Debug, Serialize)]
pub(crate) struct Who {
    #[serde(flatten)]
    usage: PortUse,
    reservation: Option<Info>,
    waiting: Vec<Info>,
    /// Reservations in other network namespaces, which only the command shows.
    elsewhere: [Info; 0],
    pool: bool,
    #[serde(flatten)]
    facts: PortFacts,
}

/// A network namespace.
#[derive(Debug, Serialize)]
pub(crate) struct Namespace {
    netns: u64,
    /// `this`, or its name in /run/netns.
    netns_name: Option<String>,
}

/// The declared reservations, and whether the agent answers.
struct Declared {
    list: Vec<Info>,
    answers: Option<bool>,
}

impl Declared {
    fn ask() -> Self {
        match Connection::open_within(PATIENCE).and_then(|mut agent| agent.list()) {
            Ok(list) => Self { list, answers: Some(true) },
            Err(PersistentError::AgentAbsent { .. } | PersistentError::ConnectCall(_)) => {
                Self { list: Vec::new(), answers: None }
            }
            Err(_) => Self { list: Vec::new(), answers: Some(false) },
        }
    }

    fn not_in_force(&self) -> impl Iterator<Item = &Info> {
        self.list.iter().filter(|info| info.state != State::Active)
    }
}

/// Run `work` in the namespace with this cookie; in that of this process if there is none.
///
/// # Errors
///
/// If it cannot be found or entered: other namespaces require root.
pub(crate) fn within<T: Send>(cookie: Option<u64>, work: impl FnOnce(bool) -> io::Result<T> + Send) -> io::Result<T> {
    let own = netns::current_cookie()?;
    match cookie.filter(|cookie| *cookie != own) {
        None => work(true),
        Some(cookie) => {
            let found = namespaces::find(cookie)?;
            let namespace =
                found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such network namespace"))?;
            namespace.within(|| work(false))
        }
    }
}

/// The network namespaces that this process can enter, its own first.
pub(crate) fn all_namespaces() -> io::Result<Vec<Namespace>> {
    let own = netns::current_cookie()?;
    let found: BTreeMap<u64, String> = visible().flatten().map(|found| (found.cookie, found.name())).collect();
    let others = found.into_iter().filter(|(cookie, _)| *cookie != own);
    let others = others.map(|(netns, name)| Namespace { netns, netns_name: Some(name) });
    Ok(std::iter::once(Namespace { netns: own, netns_name: Some("this".into()) }).chain(others).collect())
}

impl Map {
    /// Of this thread's network namespace; `own`: it is that of the process, and so the agent's.
    pub(crate) fn here(own: bool) -> io::Result<Self> {
        let netns = netns::current_cookie()?;
        let mut not_seen = Vec::new();
        let version = match portkeep::version() {
            Ok(version) => Some(version),
            Err(QueryError::KernelAbsent) => None,
            Err(error) => {
                not_seen.push(format!("reservations: {error}"));
                None
            }
        };
        let mut reservations = match version.as_ref().map(|_| portkeep::list()) {
            Some(Ok(found)) => found,
            Some(Err(error)) => {
                not_seen.push(format!("reservations: {error}"));
                Vec::new()
            }
            None => Vec::new(),
        };
        let declared = Declared::ask();
        // Refused requests stay until their owner asks; they hold nothing. The agent reports declarations that are not
        // in force, with the reason.
        reservations.retain(|info| info.state != State::Refused && !info.is_checked());
        let waiting: Vec<Info> = declared.not_in_force().filter(|_| own).cloned().collect();
        let answers = declared.answers;
        listing::complete(&mut reservations, &declared.list);
        for info in &mut reservations {
            info.netns_name = own.then(|| "this".into());
        }
        let mut read = |what: &str, error: io::Error| not_seen.push(format!("{what}: {error}"));
        let sockets = sockets().unwrap_or_else(|error| {
            read("sockets", error);
            Vec::new()
        });
        count_bound(&mut reservations, &sockets);
        reservations.extend(waiting);
        Ok(Self {
            when: SystemTime::now().into(),
            netns,
            netns_name: own.then(|| "this".into()),
            up: version.is_some(),
            agent: version.as_ref().is_some_and(|version| version.agent),
            agent_answers: answers,
            pool: version.and_then(|version| version.pool),
            local_port_range: sysctl::local_port_range().unwrap_or_else(|error| {
                read("ip_local_port_range", error);
                None
            }),
            local_reserved_ports: sysctl::reserved().unwrap_or_else(|error| {
                read("ip_local_reserved_ports", error);
                PortSet::default()
            }),
            unprivileged_port_start: sysctl::unprivileged_port_start().ok(),
            reservations,
            sockets,
            not_seen,
        })
    }
}

/// The ports in use, by kind of socket.
fn sockets() -> io::Result<Vec<Sockets>> {
    let mut kinds: BTreeMap<(Transport, SocketState, Option<u32>, bool), PortSet> = BTreeMap::new();
    for transport in Transport::ALL {
        for socket in Listing::of(transport)?.sockets {
            let Ok(port) = PortRange::single(socket.port()) else { continue };
            kinds.entry((transport, socket.state, socket.uid, socket.holds())).or_default().insert(port);
        }
    }
    let kinds = kinds.into_iter().map(|((transport, state, uid, holds), ports)| Sockets {
        transport,
        state: state.to_string(),
        uid,
        user: uid.and_then(accounts::known_user),
        ports,
        holds,
    });
    Ok(kinds.collect())
}

/// Count the ports that are bound. The kernel counts only binds made after the reservation: a server that was adopted
/// bound its port before.
fn count_bound(reservations: &mut [Info], sockets: &[Sockets]) {
    let bound = Transport::ALL.map(|transport| {
        let holding = sockets.iter().filter(|kind| kind.transport == transport && kind.holds);
        (transport, holding.fold(PortSet::default(), |all, kind| all.union(&kind.ports)))
    });
    for info in reservations {
        let its = bound.iter().filter(|(transport, _)| info.transports.contains(*transport));
        let seen = its.flat_map(|(_, bound)| info.ports.iter().filter(|port| bound.contains(*port))).count();
        // The kernel counts connected sockets, too.
        info.bound = info.bound.map(|counted| counted.max(seen as u32));
    }
}

/// The reservations and sockets of a port, of both transports, in this thread's network namespace.
pub(crate) fn who(port: PortRange, own: bool) -> io::Result<Vec<Who>> {
    let declared = Declared::ask();
    let usage = Usage::of(&[(port, Transports::Both)])?;
    // NAT rules are left out: to list them requires root and starts programs, for each port that is pointed at.
    let facts = Facts {
        ephemeral: sysctl::local_port_range().unwrap_or_default(),
        excluded: sysctl::reserved().unwrap_or_default(),
        unprivileged_start: sysctl::unprivileged_port_start().unwrap_or_default(),
        redirects: None,
    };
    let pool = portkeep::version().ok().and_then(|version| version.pool);
    let number = port.start();
    let found = Transport::ALL.map(|transport| {
        let found = match portkeep::who(transport, number) {
            Err(QueryError::KernelAbsent) => Ok(None),
            found => found.map_err(io::Error::other),
        };
        let mut reservation = Vec::from_iter(found?);
        listing::complete(&mut reservation, &declared.list);
        let waiting = declared.not_in_force().filter(|info| own && info.has(transport, number)).cloned().collect();
        Ok(Who {
            usage: usage.port(transport, number),
            reservation: reservation.pop(),
            waiting,
            elsewhere: [],
            pool: pool.is_some_and(|pool| pool.contains(number)),
            facts: facts.of(transport, number),
        })
    });
    found.into_iter().collect()
}
