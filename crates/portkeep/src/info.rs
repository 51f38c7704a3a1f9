//! A reservation as users see it.

use std::{
    collections::HashMap,
    fmt,
    time::{Duration, SystemTime},
};

use portkeep_core::{
    Errno, ListMark, PortList, PortRange, Scope, Time, Token, Transport, Transports,
    persistent::{Account, Audience, Declaration, Origin, Others},
    time, wire,
};
use serde::{Deserialize, Serialize};

use crate::{BoundSocket, Enforcement, Process, sys};

/// The state of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum State {
    /// Requested, and not confirmed by the agent yet. Other requests cannot have the ports. A bind of one of them still
    /// succeeds, and then the request is refused.
    Pending,
    /// In force.
    Active,
    /// Refused by the agent.
    Refused,
    /// Declared and not in force: a port is in use, or a user is not known yet. The agent tries again.
    Waiting,
    /// Declared and not in force: another declaration has the port or the name.
    Conflict,
    /// No longer in force.
    Ended,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Refused => "refused",
            Self::Waiting => "waiting",
            Self::Conflict => "conflict",
            Self::Ended => "ended",
        })
    }
}

/// One reservation, as it was at the moment of the question. Its serde form is the one JSON object of a reservation.
///
/// It comes from the BPF programs ([`list`](crate::list), [`who`](crate::who), [`lookup`](crate::lookup)), which know
/// what is in force, or from the agent ([`persistent::list`](crate::persistent::list)), which knows what is declared.
/// Members that only the other one knows are empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Info {
    /// The label of a runtime reservation, the name of a persistent one. The BPF programs keep its first 24 bytes.
    pub name: Option<String>,
    /// The description that was declared.
    pub description: Option<String>,
    /// The ports, host byte order.
    #[serde(flatten, with = "list")]
    pub ports: PortList,
    /// The blocks of `ports`, in the same order: each is a reservation in the kernel.
    pub blocks: Vec<BlockInfo>,
    /// The mark that its blocks have in the kernel, if it is a list of several.
    #[serde(skip)]
    pub list: Option<ListMark>,
    /// Its transports.
    pub transports: Transports,
    /// Its state.
    pub state: State,
    /// Why it is not in force. `None` if it is.
    pub reason: Option<String>,
    /// Why it was refused, with [`State::Refused`].
    #[serde(skip)]
    pub refused: Option<Errno>,
    /// The token. That of a runtime reservation is shown only to processes that may use it, that of a persistent one to
    /// every process. Of several blocks, that of the first.
    pub token: Option<Token>,
    /// The enforcement against outsiders, if it is in force.
    pub enforcement: Option<Enforcement>,
    /// Whether it is persistent: then it has an audience instead of a scope, and no owner process.
    pub persistent: bool,
    /// The scope of a runtime reservation: the processes that may use it.
    pub scope: Option<Scope>,
    /// With [`Scope::Cgroup`]: the path of the cgroup, if it was looked up.
    pub cgroup: Option<String>,
    /// Others that are admitted in addition to its scope (R11).
    #[serde(default)]
    pub also: Others,
    /// The audience of a persistent one. The BPF programs do not show the names of units and cgroups to everybody.
    pub audience: Option<Audience>,
    /// Whether it is strict: using its ports requires association.
    pub strict: bool,
    /// Whether it is a private ephemeral range: binds to port 0 of its scope or audience draw from it.
    pub ephemeral: bool,
    /// Whether sockets of its audience that have a port already keep it (R4).
    pub around: bool,
    /// Whether it may leave few ephemeral ports (N5).
    pub force: bool,
    /// Which file or command declared it.
    pub origin: Option<Origin>,
    /// The owner process of a runtime reservation.
    pub owner: Option<Process>,
    /// The first few processes in the cgroup of its scope, if its owner process has ended.
    pub members: Option<Vec<Process>>,
    /// When it was acquired or came into force.
    pub since: Option<Time>,
    /// The cookie of its network namespace (`SO_NETNS_COOKIE`).
    pub netns: Option<u64>,
    /// The name of that namespace in /run/netns, `this` for the caller's, if it was looked up.
    pub netns_name: Option<String>,
    /// Ports with at least one bound socket; of a reservation for both transports, TCP and UDP count separately.
    pub bound: Option<u32>,
    /// The sockets that have its ports bound, if they were looked up: one for each port and process.
    pub bound_by: Option<Vec<BoundSocket>>,
    /// The first few of the sockets that have to close before it can be in force.
    pub waits_for: Vec<BoundSocket>,
}

/// One of the blocks of a reservation. Each has a token of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockInfo {
    /// The block, host byte order.
    #[serde(flatten, with = "range")]
    pub ports: PortRange,
    /// The token for associating sockets with this block, if it is shown.
    pub token: Option<Token>,
}

/// Ports as JSON has them, in three keys: `ports` as text, and `start` and `count` of the first block.
pub(crate) mod list {
    use portkeep_core::PortList;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct List {
        ports: PortList,
        start: u16,
        count: u16,
    }

    pub(crate) fn serialize<S: Serializer>(ports: &PortList, serializer: S) -> Result<S::Ok, S::Error> {
        let first = ports.first();
        List { ports: ports.clone(), start: first.start(), count: first.count() }.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PortList, D::Error> {
        List::deserialize(deserializer).map(|list| list.ports)
    }
}

/// The same for one block.
mod range {
    use portkeep_core::PortRange;
    use serde::{Deserializer, Serializer, de::Error};

    // serde requires a reference.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub(super) fn serialize<S: Serializer>(block: &PortRange, serializer: S) -> Result<S::Ok, S::Error> {
        super::list::serialize(&(*block).into(), serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PortRange, D::Error> {
        super::list::deserialize(deserializer)?.as_block().ok_or_else(|| D::Error::custom("several blocks"))
    }
}

impl Info {
    /// Ports of which nothing else is known.
    pub fn of_ports(ports: impl Into<PortList>, transports: Transports, state: State) -> Self {
        let ports: PortList = ports.into();
        let blocks = ports.blocks().iter().map(|block| BlockInfo { ports: *block, token: None }).collect();
        Self {
            blocks,
            list: None,
            name: None,
            description: None,
            ports,
            transports,
            state,
            reason: None,
            refused: None,
            token: None,
            enforcement: None,
            persistent: false,
            scope: None,
            cgroup: None,
            also: Others::default(),
            audience: None,
            strict: false,
            ephemeral: false,
            around: false,
            force: false,
            origin: None,
            owner: None,
            members: None,
            since: None,
            netns: None,
            netns_name: None,
            bound: None,
            bound_by: None,
            waits_for: Vec::new(),
        }
    }

    /// Enter the tokens of its blocks, in their order.
    pub fn set_tokens(&mut self, tokens: impl IntoIterator<Item = Option<Token>>) {
        for (block, token) in self.blocks.iter_mut().zip(tokens) {
            block.token = token;
        }
        self.token = self.blocks.first().and_then(|block| block.token);
    }

    /// Join the blocks of each list, since they are one reservation (rule L2). A reservation that belongs to no list
    /// stays as it is. The order is that of the first blocks.
    pub fn join(found: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut joined: Vec<Self> = Vec::new();
        let mut lists = HashMap::new();
        for info in found {
            let Some(mark) = info.list else {
                joined.push(info);
                continue;
            };
            let owner = info.owner.as_ref().map(|owner| owner.pid);
            let place = *lists.entry((mark, info.netns, info.transports.bits(), owner)).or_insert(joined.len());
            match joined.get_mut(place) {
                Some(list) => list.add(info),
                None => joined.push(info),
            }
        }
        joined
    }

    /// The reservation that these blocks are together. `None` if there are no blocks.
    pub(crate) fn of_blocks(blocks: impl IntoIterator<Item = Self>) -> Option<Self> {
        blocks.into_iter().reduce(|mut one, other| {
            one.add(other);
            one
        })
    }

    /// Another block of the same list.
    fn add(&mut self, other: Self) {
        let all: Vec<PortRange> = self.blocks.iter().chain(&other.blocks).map(|block| block.ports).collect();
        // Blocks in the kernel never overlap, so these always form a list, unless they are too many to be of one list.
        let Ok(ports) = PortList::new(all) else { return };
        self.ports = ports;
        self.blocks.extend(other.blocks);
        self.blocks.sort_by_key(|block| block.ports);
        self.token = self.blocks[0].token;
        self.since = self.since.into_iter().chain(other.since).min();
        self.bound = self.bound.into_iter().chain(other.bound).reduce(|one, more| one + more);
        if other.state != State::Active {
            (self.state, self.reason, self.refused) = (other.state, other.reason, other.refused);
            self.enforcement = other.enforcement;
        }
    }

    /// One that is held without kernel enforcement, by this process.
    pub(crate) fn held(ports: PortRange, transports: Transports, label: &str) -> Self {
        let label_field = wire::label(label);
        let comm = std::fs::read_to_string("/proc/self/comm").unwrap_or_default().trim_end().to_owned();
        Self {
            name: Some(wire::text(&label_field)).filter(|label| !label.is_empty()),
            list: ListMark::of(&label_field),
            enforcement: Some(Enforcement::Held),
            scope: Some(Scope::Process),
            owner: Some(Process { pid: std::process::id(), comm, uid: Some(sys::real_uid()), ..Process::default() }),
            since: Some(SystemTime::now().into()),
            ..Self::of_ports(ports, transports, State::Active)
        }
    }

    /// One that is declared.
    pub fn declared(declaration: &Declaration, origin: &Origin, state: State) -> Self {
        let description = Some(declaration.description.clone());
        Self {
            name: Some(declaration.name.to_string()),
            description: description.filter(|text| !text.is_empty()),
            enforcement: (state == State::Active).then_some(Enforcement::Kernel),
            persistent: true,
            audience: Some(declaration.audience.clone()),
            strict: declaration.strict,
            ephemeral: declaration.ephemeral,
            around: declaration.around,
            force: declaration.force,
            origin: Some(origin.clone()),
            ..Self::of_ports(declaration.ports.clone(), declaration.transports, state)
        }
    }

    /// The declaration of one that is declared; `None` of any other.
    pub fn declaration(&self) -> Option<Declaration> {
        Some(Declaration {
            name: self.name.as_deref()?.parse().ok()?,
            ports: self.ports.clone(),
            transports: self.transports,
            audience: self.audience.clone()?,
            strict: self.strict,
            ephemeral: self.ephemeral,
            around: self.around,
            force: self.force,
            description: self.description.clone().unwrap_or_default(),
        })
    }

    /// From the answer to a query. `None` if the answer is not valid. BPF programs of this ABI give no such answer.
    pub fn from_wire(state: &wire::State, also: &[wire::Also]) -> Option<Self> {
        let persistent = u32::from(state.flags) & wire::PERSISTENT != 0;
        let id = |id: &u32| Ok::<_, std::convert::Infallible>(Account::Id(*id));
        let Ok(also) = Others::from_wire(also).try_map(id, id);
        let scope = Audience::from_wire(state.scope, state.uid, state.gid).map(|scope| {
            let Ok(scope) = scope.try_map(id, id);
            scope
        });
        // A persistent one has the first of its audience in the fields of the scope.
        let audience =
            scope.and_then(|scope| Audience::any_of(std::iter::once(scope).chain(also.iter().cloned())).ok());
        let refused = (state.error != 0).then_some(Errno(i32::from(state.error)));
        let owner =
            Process { pid: state.pid, comm: wire::text(&state.comm), uid: Some(state.uid), ..Process::default() };
        let stands = match state.state {
            wire::PENDING => State::Pending,
            wire::ACTIVE => State::Active,
            wire::REFUSED => State::Refused,
            _ => return None,
        };
        let mut info = Self {
            list: ListMark::of(&state.label),
            name: Some(wire::text(&state.label)).filter(|label| !label.is_empty()),
            reason: refused.map(|errno| errno.to_string()),
            refused,
            enforcement: (stands == State::Active).then_some(Enforcement::Kernel),
            persistent,
            scope: if persistent { None } else { Some(Scope::from_wire(state.scope, state.cgroup)?) },
            audience: audience.filter(|_| persistent),
            also: if persistent { Others::default() } else { also },
            strict: u32::from(state.flags) & wire::STRICT != 0,
            ephemeral: u32::from(state.flags) & wire::EPHEMERAL != 0,
            owner: (!persistent).then_some(owner),
            since: Some(sys::wall_clock(Duration::from_nanos(state.since))),
            netns: Some(state.netns),
            bound: Some(state.bound),
            ..Self::of_ports(
                PortRange::new(state.start, state.count).ok()?,
                Transports::from_bits(state.transports)?,
                stands,
            )
        };
        info.set_tokens([Token::new(state.token)]);
        Some(info)
    }

    /// All users, groups and units that may use its ports, as far as they are named.
    pub fn named(&self) -> impl Iterator<Item = &Audience> {
        self.audience.iter().flat_map(Audience::each).chain(self.also.iter())
    }

    /// Whether the agent is checking whether a declaration can come into force. It checks again and again, and reports
    /// the reason of the last refusal; the ports are not reserved.
    pub fn is_checked(&self) -> bool {
        self.persistent && self.state == State::Pending
    }

    /// Whether it has this port (host byte order).
    pub fn has(&self, transport: Transport, port: u16) -> bool {
        self.transports.contains(transport) && self.ports.contains(port)
    }

    /// How long ago it was acquired or came into force.
    pub fn age(&self) -> Option<Duration> {
        Some(self.since?.age_at(SystemTime::now()))
    }

    /// The first port and transport that this reservation shares with a block.
    pub(crate) fn overlap(&self, ports: PortRange, transports: Transports) -> Option<(u16, Transport)> {
        let transport = transports.iter().find(|transport| self.transports.contains(*transport))?;
        Some((self.ports.common(&ports.into())?.start(), transport))
    }
}

/// "61004-61007/tcp, pid 812 (nginx), reserved 3m ago".
impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}, {}", self.ports, self.transports, Owner(self))
    }
}

/// The owner part of a sentence about a reservation.
pub(crate) struct Owner<'a>(pub(crate) &'a Info);

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(info) = self;
        let name = info.name.as_deref().unwrap_or_default();
        let Some(owner) = &info.owner else {
            return write!(f, "the persistent reservation `{name}`; see `portkeep persist show {name}`");
        };
        owner.fmt(f)?;
        if !name.is_empty() {
            write!(f, " as `{name}`")?;
        }
        match info.age() {
            Some(age) => {
                let verb = if info.state == State::Pending { "requested" } else { "reserved" };
                write!(f, ", {verb} {}", time::ago(age))
            }
            None => Ok(()),
        }
    }
}
