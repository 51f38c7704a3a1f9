//! A reservation as listings show it, from the maps or from queries.

use std::{cell::LazyCell, collections::BTreeMap, fs, io};

use anyhow::Context;
use portkeep::{
    Errno, PortRange, Scope, Transport, Transports, control,
    persistent::{self, Origin},
};
use portkeep_agent::accounts;
use portkeep_core::wire::{self, SelectRequest, State};
use portkeep_kernel::{ForWhom, Instance, Maps, Reservation, WordKey, cgroup, netns};
use serde::Serialize;

use crate::{
    level, patience,
    process::{self, Binders, Process},
    when,
};

/// One reservation.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entry {
    pub(crate) ports: PortRange,
    start: u16,
    count: u16,
    pub(crate) transports: Transports,
    /// Only shown to those who may use it.
    pub(crate) token: Option<String>,
    state: &'static str,
    /// Network namespace, by its cookie.
    pub(crate) netns: u64,
    /// `this`, or the name in /run/netns.
    pub(crate) netns_name: Option<String>,
    pub(crate) pid: u32,
    pub(crate) comm: String,
    /// Command line of the owner process, if it still runs and can be seen.
    pub(crate) command: Option<String>,
    /// Its systemd unit or cgroup.
    pub(crate) unit: Option<String>,
    pub(crate) uid: u32,
    pub(crate) scope: String,
    /// With scope cgroup: its path.
    pub(crate) cgroup: Option<String>,
    pub(crate) strict: bool,
    /// A private ephemeral range: binds to port 0 of its scope draw from it.
    pub(crate) ephemeral: bool,
    /// An administrator declared it, and no process owns it: then pid is 0.
    pub(crate) persistent: bool,
    /// The audience of a persistent one, as in "unit tomcat.service".
    pub(crate) for_whom: Option<String>,
    /// Which file or command declared a persistent one, if an agent could be asked.
    pub(crate) origin: Option<Origin>,
    pub(crate) description: Option<String>,
    /// The processes that have its ports bound (persistent, in this network namespace), as far as can be seen.
    pub(crate) bound_by: Vec<Process>,
    pub(crate) label: Option<String>,
    pub(crate) since: String,
    age_seconds: u64,
    #[serde(skip)]
    pub(crate) since_ns: u64,
    /// Ports with a bound socket; TCP and UDP count apart.
    pub(crate) bound: u32,
}

impl Entry {
    fn from_state(state: &State, netns_name: Option<String>) -> Option<Self> {
        let scope = Scope::from_wire(state.scope, state.cgroup, state.gid);
        let comm = wire::text(&state.comm);
        let owner = owner(state.pid, &comm);
        let persistent = u32::from(state.flags) & wire::PERSISTENT != 0;
        Some(Self {
            ports: PortRange::new(state.start, state.count).ok()?,
            start: state.start,
            count: state.count,
            transports: Transports::from_bits(state.transports)?,
            token: (state.token != 0).then(|| format!("{:016x}", state.token)),
            state: match state.state {
                wire::PENDING => "pending",
                wire::ACTIVE => "active",
                _ => "refused",
            },
            netns: state.netns,
            netns_name,
            pid: state.pid,
            comm,
            command: owner.as_ref().and_then(|owner| owner.command.clone()),
            unit: owner.and_then(|owner| owner.unit),
            uid: state.uid,
            scope: scope.to_string(),
            cgroup: match scope {
                Scope::Cgroup(id) if id != 0 => cgroup::path_of(id).map(|path| path.display().to_string()),
                _ => None,
            },
            strict: u32::from(state.flags) & wire::STRICT != 0,
            ephemeral: u32::from(state.flags) & wire::EPHEMERAL != 0,
            persistent,
            for_whom: persistent.then(|| for_whom(scope, state.uid)),
            origin: None,
            description: None,
            bound_by: Vec::new(),
            label: Some(wire::text(&state.label)).filter(|label| !label.is_empty()),
            since: when::rfc3339(state.since),
            age_seconds: when::age(state.since).as_secs(),
            since_ns: state.since,
            bound: state.bound,
        })
    }

    /// Whether it has this port.
    pub(crate) fn has(&self, transport: Transport, port: u16) -> bool {
        self.transports.contains(transport) && self.ports.contains(port)
    }

    /// Its owner as messages name it: "pid 812 (nginx)", "unit tomcat.service".
    pub(crate) fn owner(&self) -> String {
        match &self.for_whom {
            Some(whom) => whom.clone(),
            None => format!("pid {} ({})", self.pid, self.comm),
        }
    }

    /// What its scope is subject to: ", strict", ", ephemeral" or nothing.
    pub(crate) const fn terms(&self) -> &'static str {
        match (self.strict, self.ephemeral) {
            (true, _) => ", strict",
            (_, true) => ", ephemeral",
            _ => "",
        }
    }

    pub(crate) const fn is_here(&self, own_netns: u64) -> bool {
        self.netns == own_netns
    }
}

/// The owner process, unless its pid means something else here or belongs to somebody else by now.
fn owner(pid: u32, comm: &str) -> Option<Process> {
    if !process::in_first_pid_namespace() {
        return None;
    }
    Process::of(pid).filter(|process| process.comm == comm)
}

/// All reservations of the machine, out of the maps.
pub(crate) fn all(instance: &Instance) -> anyhow::Result<Vec<Entry>> {
    let maps = instance.maps()?;
    let mut names = NamespaceNames::new();
    let mut entries = Vec::new();
    for item in maps.reservations() {
        let (id, reservation) = item?;
        // Refused ones stay until their socket has heard of it; they hold nothing.
        if reservation.state() == wire::REFUSED {
            continue;
        }
        let name = names.name(reservation.netns);
        let whom = maps.for_whom(id, &reservation);
        entries.extend(Entry::from_state(&state_of(&maps, &reservation)?, name).map(|entry| match whom {
            Some(whom) => Entry { for_whom: Some(in_words(&whom)), ..entry },
            None => entry,
        }));
    }
    sort(&mut entries);
    Ok(entries)
}

/// Those of this network namespace, through queries that anybody may make.
pub(crate) fn here() -> anyhow::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for transport in Transport::ALL {
        let socket = level::socket(transport)?;
        let mut port = 1;
        loop {
            let select = SelectRequest { by: wire::BY_NEXT, port, transport: transport.bit(), ..Default::default() };
            let state = match control::state(&socket, &select) {
                Ok(state) => state,
                Err(error) if error.raw_os_error() == Some(Errno::ENOENT.0) => break,
                Err(error) => return Err(error.into()),
            };
            let of_both = state.transports == Transports::Both.bits();
            if !(of_both && transport == Transport::Udp) {
                entries.extend(Entry::from_state(&state, Some("this".into())));
            }
            match state.start.checked_add(state.count) {
                Some(next) => port = next,
                None => break,
            }
        }
    }
    sort(&mut entries);
    Ok(entries)
}

/// The audience of a persistent reservation, as far as a query shows: the names of units and cgroups are not in it.
fn for_whom(scope: Scope, uid: u32) -> String {
    match scope {
        Scope::User => format!("user {}", accounts::user_name(uid)),
        Scope::Group(gid) => format!("group {}", accounts::group_name(gid)),
        other => other.to_string(),
    }
}

fn in_words(whom: &ForWhom) -> String {
    match whom {
        ForWhom::Administrators => "administrators".into(),
        ForWhom::User(uid) => format!("user {}", accounts::user_name(*uid)),
        ForWhom::Group(gid) => format!("group {}", accounts::group_name(*gid)),
        ForWhom::Unit(name) => format!("unit {name}"),
        ForWhom::Cgroup(path) => format!("cgroup /{}", path.join("/")),
    }
}

/// All that is declared, if an agent says so at once.
pub(crate) fn agent_list() -> Vec<persistent::Entry> {
    persistent::Connection::open_within(patience::BRIEF).and_then(|mut agent| agent.list()).unwrap_or_default()
}

/// Add facts that the BPF programs lack: the agent's, if one runs, and the processes that have the ports bound.
pub(crate) fn complete(entries: &mut [Entry]) -> anyhow::Result<()> {
    if !entries.iter().any(|entry| entry.persistent) {
        return Ok(());
    }
    let declared = agent_list();
    let by_token: BTreeMap<_, _> = declared.into_iter().filter_map(|each| Some((each.token.clone()?, each))).collect();
    let own = netns::current_cookie().context("finding out which network namespace this is")?;
    // One round for all of them, and none if there is nobody.
    let all = PortRange::inclusive(1, u16::MAX)?;
    let binders = LazyCell::new(|| Transport::ALL.map(|transport| Binders::in_block(transport, all)));
    for entry in entries.iter_mut().filter(|entry| entry.persistent) {
        if let Some(found) = entry.token.as_ref().and_then(|token| by_token.get(token)) {
            let declaration = &found.declaration;
            // The BPF programs keep only the beginning of the name.
            entry.label = Some(declaration.name.to_string());
            entry.for_whom = Some(declaration.who.to_string());
            entry.origin = Some(found.origin.clone());
            entry.description = Some(declaration.description.clone()).filter(|text| !text.is_empty());
        }
        if entry.is_here(own) && entry.bound > 0 {
            let of = |transport: Transport| {
                let here = binders[transport as usize].range(entry.ports.start()..=entry.ports.last());
                here.flat_map(|(_, each)| each.known.iter().cloned())
            };
            let mut known: Vec<Process> = entry.transports.iter().flat_map(of).collect();
            known.sort();
            known.dedup();
            entry.bound_by = known;
        }
    }
    Ok(())
}

fn sort(entries: &mut [Entry]) {
    entries.sort_by_key(|entry| (entry.netns, entry.ports, entry.transports));
}

fn state_of(maps: &Maps, r: &Reservation) -> anyhow::Result<State> {
    Ok(State {
        token: r.token,
        netns: r.netns,
        cgroup: r.cgroup,
        since: r.since,
        pid: r.pid,
        uid: r.uid,
        start: r.start,
        count: r.count,
        transports: r.transports,
        state: r.state(),
        scope: r.scope,
        flags: r.flags,
        bound: bound(maps, r)?,
        error: r.error,
        zero: 0,
        comm: r.comm,
        label: r.label,
        gid: r.gid,
        zero2: 0,
    })
}

fn bound(maps: &Maps, r: &Reservation) -> anyhow::Result<u32> {
    let (Some(ports), Some(transports)) = (r.ports(), r.transports()) else { return Ok(0) };
    let mut bound = 0;
    for transport in transports.iter() {
        for base in ports.start() / 64..=ports.last() / 64 {
            let Some(word) = maps.word(&WordKey::of(r.netns, transport, base * 64))? else { continue };
            let in_use = |bit: &u16| ports.contains(base * 64 + bit) && word.uses(usize::from(*bit)) > 0;
            bound += u32::try_from((0..64).filter(in_use).count()).unwrap_or(0);
        }
    }
    Ok(bound)
}

/// Names of network namespaces, looked up when one that is not our own turns up.
struct NamespaceNames {
    own: io::Result<u64>,
    others: Option<BTreeMap<u64, String>>,
}

impl NamespaceNames {
    fn new() -> Self {
        Self { own: netns::current_cookie(), others: None }
    }

    fn name(&mut self, cookie: u64) -> Option<String> {
        if self.own.as_ref().is_ok_and(|own| *own == cookie) {
            return Some("this".into());
        }
        self.others.get_or_insert_with(named).get(&cookie).cloned()
    }
}

/// The namespaces that `ip netns add` has made.
fn named() -> BTreeMap<u64, String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let cookie = netns::within(netns::open(entry.path()).ok()?, netns::current_cookie).ok()?.ok()?;
            Some((cookie, entry.file_name().to_string_lossy().into_owned()))
        })
        .collect()
}
