//! Runs a history: every step is taken in the kernel and in the model.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::{AsRawFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use portkeep_core::{
    Align, Errno, PortRange, Token, Transport, Transports,
    persistent::Audience,
    wire::{self, AcquireRequest, AgentMark, Also, Grant, SelectRequest},
};
use portkeep_kernel::{Claimed, CreateError, Expiring, Wanted, Word, WordKey, cgroup};
use portkeep_model::{
    Access, Address, Descriptor, Model, Options, Other, Persistent, Pid, Place, Request, Reservation, Role, Select,
    SocketId, State,
};
use portkeep_testkit::{
    driven::{Answer, Command, Process},
    new_namespace,
};
use rustix::time::{ClockId, clock_gettime};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::steps::{Ask, At, How, Query, Step};
use crate::{Lab, POOL};

/// The kernel and the model disagree, or a call failed that must succeed.
pub struct Failure {
    complaint: String,
    log: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.complaint)?;
        self.log.iter().try_for_each(|line| writeln!(f, "    {line}"))
    }
}

/// Run one history. At its start and at its end nothing exists.
pub fn history(lab: &mut Lab, steps: &[Step]) -> Result<(), Failure> {
    let mut world = World::new(lab);
    let result = steps.iter().try_for_each(|step| {
        world.log.push(format!("{step:?}"));
        world.take(step)
    });
    let result = result.and_then(|()| world.finish());
    let log = std::mem::take(&mut world.log);
    // The processes end here, even after a failure.
    drop(world);
    result.map_err(|complaint| Failure { complaint, log })
}

impl Lab {
    /// Nothing reserved, nothing in use, nobody charged.
    pub fn is_vacant(&self) -> bool {
        let vacant =
            |word: &Word| word.is_vacant() && (word.heads, word.lingering, word.drawn, word.aside) == (0, 0, 0, 0);
        let counters = self.maps.counters().expect("the counters map");
        (counters.reservations, counters.ports, counters.agents, counters.ranges) == (0, 0, 0, [0; 8])
            && self.maps.ranges().next().is_none()
            && self.maps.admitted().next().is_none()
            && self.maps.reservations().next().is_none()
            && self.maps.words().flatten().all(|(_, word)| vacant(&word))
            && self.maps.quotas().flatten().all(|(_, quota)| (quota.used, quota.pending) == (0, 0))
    }
}

/// A network namespace of this history, with listeners to connect to.
struct Net {
    cookie: u64,
    handle: OwnedFd,
    listener: TcpListener,
}

/// The port of the listeners: outside of every range that histories use.
const LISTENER: u16 = 20000;
const UIDS: [u32; 3] = [0, 1000, 1001];
const MOST_PROCESSES: usize = 7;

fn net() -> Net {
    thread::spawn(|| {
        let cookie = new_namespace();
        let handle = std::fs::File::open("/proc/thread-self/ns/net").expect("the namespace's handle").into();
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, LISTENER)).expect("a listener");
        Net { cookie, handle, listener }
    })
    .join()
    .expect("a namespace")
}

struct World<'lab> {
    lab: &'lab mut Lab,
    model: Model,
    processes: BTreeMap<Pid, Process>,
    nets: [Net; 2],
    /// Every token ever granted here, in force or not.
    tokens: Vec<Token>,
    agent: Option<Process>,
    connected: BTreeSet<SocketId>,
    log: Vec<String>,
}

type Step_ = Result<(), String>;

fn same<T: PartialEq + fmt::Debug>(what: &str, kernel: T, model: T) -> Step_ {
    if kernel == model { Ok(()) } else { Err(format!("{what}: the kernel says {kernel:?}, the model {model:?}")) }
}

fn pick<T: Copy>(from: &[T], number: u8) -> Option<T> {
    (!from.is_empty()).then(|| from[usize::from(number) % from.len()])
}

impl<'lab> World<'lab> {
    fn new(lab: &'lab mut Lab) -> Self {
        let model = Model::new(lab.model.clone());
        let mut world = Self {
            lab,
            model,
            processes: BTreeMap::new(),
            nets: [net(), net()],
            tokens: Vec::new(),
            agent: None,
            connected: BTreeSet::new(),
            log: Vec::new(),
        };
        for (uid, cgroup) in [(1, 0), (1, 1), (2, 2)] {
            world.spawn(uid, cgroup, false);
        }
        world.set_agent(true);
        world
    }

    fn take(&mut self, step: &Step) -> Step_ {
        match step {
            Step::Spawn { uid, cgroup, privileged } => self.spawn(*uid, *cgroup, *privileged),
            Step::Fork(process) => self.fork(*process),
            Step::Exit { process, killed } => self.exit(*process, *killed),
            Step::SetUid { process, uid } => {
                let Some(pid) = self.pid(*process) else { return Ok(()) };
                let uid = UIDS[usize::from(*uid) % UIDS.len()];
                self.must(pid, &Command::SetUid(uid));
                self.model.set_uid(pid, uid);
            }
            Step::Socket { process, namespace, transport, v6, reuse_address, reuse_port } => {
                let Some(pid) = self.pid(*process) else { return Ok(()) };
                let options = Options { reuse_address: *reuse_address, reuse_port: *reuse_port };
                self.socket(pid, *namespace, *transport, *v6, options);
            }
            Step::Duplicate(at) => {
                let Some((pid, on)) = self.at(*at) else { return Ok(()) };
                let new = self.model.duplicate(pid, on).expect("the descriptor exists");
                self.must(pid, &Command::Duplicate { from: on, new });
            }
            Step::Pass { from, to } => {
                let (Some((pid, on)), Some(to)) = (self.at(*from), self.pid(*to)) else { return Ok(()) };
                let new = self.model.pass(pid, on, to).expect("the descriptor exists");
                self.processes[&pid].pass(on, &self.processes[&to], new);
            }
            Step::Close(at) => {
                let Some((pid, on)) = self.at(*at) else { return Ok(()) };
                self.must(pid, &Command::Close(on));
                self.model.close(pid, on).expect("the descriptor exists");
            }
            Step::Acquire { on, ask } => return self.acquire(*on, ask),
            Step::Granted(at) => {
                let Some((pid, on)) = self.at(*at) else { return Ok(()) };
                return self.granted(pid, on);
            }
            Step::Release { on, token, thread } => {
                let Some((pid, on)) = self.at(*on) else { return Ok(()) };
                let token = self.token(*token);
                let kernel = self.set(pid, on, wire::RELEASE, &token, *thread);
                return same("RELEASE", kernel, self.model.release(pid, on, token));
            }
            Step::Associate { on, token, thread } => {
                let Some((pid, on)) = self.at(*on) else { return Ok(()) };
                let token = self.token(*token);
                let kernel = self.set(pid, on, wire::ASSOCIATE, &token, *thread);
                return same("ASSOCIATE", kernel, self.model.associate(pid, on, token));
            }
            Step::Query { on, select } => return self.query(*on, *select),
            Step::Consume { token, by_owner, associate, how, v6, reuse_port, thread } => {
                let Some(token) = Token::new(self.token(*token)) else { return Ok(()) };
                let options = Options { reuse_address: false, reuse_port: *reuse_port };
                return self.consume(token, *by_owner, *associate, *how, *v6, options, *thread);
            }
            Step::GiveUp { token, socket } => {
                let token = self.token(*token);
                let owner =
                    Token::new(token).and_then(|token| self.model.reservations().get(&token)).map(|r| r.owner.pid);
                let Some(pid) = owner.filter(|pid| self.processes.contains_key(pid)) else { return Ok(()) };
                let descriptors: Vec<Descriptor> = self.model.processes()[&pid].descriptors.keys().copied().collect();
                let Some(on) = pick(&descriptors, *socket) else { return Ok(()) };
                let kernel = self.set(pid, on, wire::RELEASE, &token, false);
                return same("RELEASE by the owner", kernel, self.model.release(pid, on, token));
            }
            Step::Bind { on, address, port, thread } => {
                let Some((pid, on)) = self.unbound(*on) else { return Ok(()) };
                let address = self.address(pid, on, *address);
                return self.bind(pid, on, address, *port, *thread);
            }
            Step::Connect(at) => {
                let Some((pid, on)) = self.at(*at) else { return Ok(()) };
                return self.connect(pid, on);
            }
            Step::Listen(at) => return self.listen(*at),
            Step::Agent(runs) => self.set_agent(*runs),
            Step::Decide { token, confirm } => return self.decide(*token, *confirm),
            Step::End(token) => {
                let Some(token) = Token::new(self.token(*token)) else { return Ok(()) };
                let kernel = self.admin(|lab| lab.admin.end(lab.maps.id_of(token).expect("the config map"), token));
                return same("END", kernel, self.model.end(token));
            }
            Step::Create { namespace, start, count, align, both, transport, strict, ephemeral, scope, whom, also } => {
                let transports = if *both { Transports::Both } else { (*transport).into() };
                let kind = (*strict, *ephemeral);
                return self.create((*namespace, *start, *count), *align, transports, kind, (*scope, *whom, also));
            }
            Step::SetAside { namespace, transport, port } => {
                let at = Place { namespace: self.net(*namespace).cookie, transport: *transport, port: *port };
                let kernel = self.admin(|lab| lab.admin.set_aside(at.namespace, at.transport, at.port));
                return same("ASIDE", kernel, self.model.set_aside(at));
            }
            Step::GiveBack(number) => {
                let aside: Vec<Place> = self.model.aside().iter().copied().collect();
                let Some(at) = pick(&aside, *number) else { return Ok(()) };
                return self.give_back(at);
            }
            Step::Avoid { namespace, start, count } => {
                let namespace = self.net(*namespace).cookie;
                let ports = PortRange::new(*start, *count).ok();
                same("AVOID", self.admin(|lab| lab.admin.avoid(namespace, ports)), Ok(()))?;
                self.model.avoid(namespace, ports);
            }
        }
        Ok(())
    }

    // ---- the process and the object that a step means -------------------------

    fn pid(&self, number: u8) -> Option<Pid> {
        pick(&self.processes.keys().copied().collect::<Vec<_>>(), number)
    }

    /// The number is taken modulo the number of descriptors, so that the result exists.
    fn at(&self, (process, descriptor): At) -> Option<(Pid, Descriptor)> {
        let pid = self.pid(process)?;
        let descriptors: Vec<Descriptor> = self.model.processes()[&pid].descriptors.keys().copied().collect();
        Some((pid, pick(&descriptors, descriptor)?))
    }

    /// Usually a descriptor without a port, if there is one: more steps are possible with it.
    fn unbound(&self, (process, descriptor): At) -> Option<(Pid, Descriptor)> {
        let pid = self.pid(process)?;
        let descriptors = &self.model.processes()[&pid].descriptors;
        let unbound = descriptors.iter().filter(|(_, id)| self.model.sockets()[id].bound.is_none());
        let unbound: Vec<Descriptor> = unbound.map(|(number, _)| *number).collect();
        if unbound.is_empty() || descriptor < 50 {
            return self.at((process, descriptor));
        }
        Some((pid, pick(&unbound, descriptor)?))
    }

    /// Usually a token in force, otherwise an ended or an invalid one.
    fn token(&self, number: u8) -> u64 {
        let live: Vec<Token> = self.model.reservations().keys().copied().collect();
        match number {
            0 => 0,
            1 => 0x1234_5678_9abc_def0,
            2..50 => pick(&self.tokens, number).map_or(7, Token::get),
            _ => pick(&live, number).or(self.tokens.last().copied()).map_or(7, Token::get),
        }
    }

    fn net(&self, number: u8) -> &Net {
        &self.nets[usize::from(number) % 2]
    }

    fn id(&self, pid: Pid, on: Descriptor) -> SocketId {
        self.model.processes()[&pid].descriptors[&on]
    }

    // ---- calls --------------------------------------------------------------

    fn perform(&mut self, pid: Pid, command: &Command) -> Result<Answer, Errno> {
        let answer = self.processes[&pid].perform(command);
        let shown = answer.as_ref().map(|answer| (answer.number, answer.reuse_address));
        self.log.push(format!("  {pid}: {command:?} -> {shown:?}"));
        answer
    }

    fn must(&mut self, pid: Pid, command: &Command) {
        self.perform(pid, command).unwrap_or_else(|errno| panic!("{command:?} failed: {errno}"));
    }

    fn set<T: IntoBytes + Immutable>(
        &mut self,
        pid: Pid,
        on: u32,
        option: i32,
        value: &T,
        thread: bool,
    ) -> Result<(), Errno> {
        let value = value.as_bytes().to_vec();
        self.perform(pid, &Command::Set { on, option, value, thread }).map(drop)
    }

    fn get<T: FromBytes + IntoBytes>(&mut self, pid: Pid, on: u32, option: i32) -> Result<T, Errno> {
        let answer = self.perform(pid, &Command::Get { on, option, size: size_of::<T>() })?;
        Ok(T::read_from_bytes(&answer.bytes).unwrap_or_else(|_| panic!("{} bytes", answer.bytes.len())))
    }

    fn admin(&self, call: impl FnOnce(&Lab) -> Result<(), portkeep_kernel::AdminError>) -> Result<(), Errno> {
        call(self.lab).map_err(|error| error.errno().unwrap_or_else(|| panic!("{error:?}")))
    }

    // ---- processes ------------------------------------------------------------

    /// The cgroups of a process in the n-th of the three cgroups for processes.
    fn cgroup_path(&self, number: u8) -> Vec<u64> {
        let ids: Vec<u64> = self.lab.cgroups.iter().map(|(_, id)| *id).collect();
        match number % 3 {
            0 => ids[..2].to_vec(),
            below => vec![ids[0], ids[1], ids[usize::from(below) + 1]],
        }
    }

    fn start(&self, cgroup: u8) -> Process {
        self.lab.nurseries[usize::from(cgroup % 3)].fork().expect("a process")
    }

    fn spawn(&mut self, uid: u8, cgroup: u8, privileged: bool) {
        if self.processes.len() >= MOST_PROCESSES {
            return;
        }
        let process = self.start(cgroup);
        let (pid, uid) = (process.pid(), UIDS[usize::from(uid) % UIDS.len()]);
        self.processes.insert(pid, process);
        self.must(pid, &Command::SetUid(uid));
        if !privileged {
            self.must(pid, &Command::DropPrivilege);
        }
        self.model.spawn(pid, uid, self.cgroup_path(cgroup), privileged);
    }

    fn fork(&mut self, number: u8) {
        let Some(pid) = self.pid(number).filter(|_| self.processes.len() < MOST_PROCESSES) else { return };
        let child = self.processes[&pid].fork().expect("a child");
        self.log.push(format!("  {pid}: fork -> {}", child.pid()));
        self.model.fork(pid, child.pid());
        self.processes.insert(child.pid(), child);
    }

    fn exit(&mut self, number: u8, killed: bool) {
        let Some(pid) = self.pid(number) else { return };
        let process = self.processes.remove(&pid).expect("it is there");
        if killed {
            drop(process)
        } else {
            process.exit()
        }
        self.log.push(format!("  {pid}: gone"));
        self.model.exit(pid);
    }

    fn socket(&mut self, pid: Pid, namespace: u8, transport: Transport, v6: bool, options: Options) -> Descriptor {
        let net = self.net(namespace);
        let path = format!("/proc/{}/fd/{}", std::process::id(), net.handle.as_raw_fd());
        let new = self.model.socket(pid, net.cookie, Some(transport), v6, options);
        let Options { reuse_address, reuse_port } = options;
        let tcp = transport == Transport::Tcp;
        self.must(pid, &Command::Socket { new, namespace: path, tcp, v6, reuse_address, reuse_port });
        new
    }

    // ---- reservations -----------------------------------------------------------

    fn request(&self, ask: &Ask) -> AcquireRequest {
        let mut wire = AcquireRequest {
            start: ask.start,
            count: ask.count,
            flags: u32::from(ask.both) * wire::BOTH
                + u32::from(ask.strict) * wire::STRICT
                + u32::from(ask.ephemeral) * wire::EPHEMERAL,
            scope: ask.scope.into(),
            align: ask.align,
            ..AcquireRequest::default()
        };
        if ask.scope == 2 {
            // 0 is the cgroup of the caller, 1 to 4 are the four that exist, and the rest does not exist.
            let ids: Vec<u64> = self.lab.cgroups.iter().map(|(_, id)| *id).collect();
            wire.cgroup = match ask.cgroup {
                0 => 0,
                number => ids.get(usize::from(number) - 1).copied().unwrap_or(1 << 40),
            };
        }
        wire.label[..ask.label.len()].copy_from_slice(ask.label.as_bytes());
        wire.also = uids(&ask.also).len() as u16;
        wire
    }

    fn acquire(&mut self, on: At, ask: &Ask) -> Step_ {
        let Some((pid, on)) = self.at(on) else { return Ok(()) };
        let wire = self.request(ask);
        let also: Vec<Also> =
            uids(&ask.also).into_iter().map(|id| Also { kind: wire::SCOPE_USER.into(), id, name: [0; 128] }).collect();
        self.read_closed_lately();
        let value = [wire.as_bytes(), also.as_bytes()].concat();
        let set = Command::Set { on, option: wire::ACQUIRE, value, thread: ask.thread };
        let kernel = self.perform(pid, &set).map(drop);
        let granted = matches!(kernel, Ok(()) | Err(Errno::EINPROGRESS));
        let token = match granted {
            true => self.get::<Grant>(pid, on, wire::GRANTED).map_err(|e| format!("ACQUIRE, then GRANTED: {e}"))?.token,
            // Any value: it is used only if the two disagree.
            false => {
                static UNUSED: AtomicU64 = AtomicU64::new(1 << 60);
                UNUSED.fetch_add(1, Ordering::Relaxed)
            }
        };
        let token = Token::new(token).ok_or("a token of 0 was granted")?;
        if granted && self.tokens.contains(&token) {
            return Err(format!("R8: {token} came twice"));
        }
        self.forget_refused(pid, on);
        let model = Request::from_wire(&wire, &also).and_then(|request| self.model.acquire(pid, on, &request, token));
        same("ACQUIRE", kernel, model)?;
        if granted {
            self.tokens.push(token);
            self.granted(pid, on)?;
        }
        Ok(())
    }

    /// A socket's next reservation may get the entry of a refused one. The kernel chooses which one.
    fn forget_refused(&mut self, pid: Pid, on: Descriptor) {
        let id = self.id(pid, on);
        let owned = self.model.reservations().iter().filter(|(_, r)| r.owner.socket == id);
        let owned: Vec<Token> = owned.map(|(token, _)| *token).collect();
        for token in owned {
            let entry = self.lab.maps.id_of(token).and_then(|id| self.lab.maps.reservation(id)).expect("the maps");
            if entry.and_then(|entry| entry.token()) != Some(token) {
                // False if the reservation was not refused: then the two disagree from here on.
                self.model.forget_refused(token);
            }
        }
    }

    /// The model has no clock, but the kernel forgets after one to two periods.
    fn read_closed_lately(&mut self) {
        let mut places = BTreeSet::new();
        for net in &self.nets {
            for transport in Transport::ALL {
                for first in [POOL.0, POOL.0 + POOL.1 - 1].map(|port| port & !63) {
                    let key = WordKey::of(net.cookie, transport, first);
                    let Some(word) = self.lab.maps.word(&key).expect("the words map") else { continue };
                    let lately = in_force(&word.left);
                    let ports = (0..64).filter(|bit| lately >> bit & 1 == 1).map(|bit| first + bit);
                    places.extend(ports.map(|port| Place { namespace: net.cookie, transport, port }));
                }
            }
        }
        self.model.set_closed_lately(places);
    }

    fn granted(&mut self, pid: Pid, on: Descriptor) -> Step_ {
        let kernel = self.get::<Grant>(pid, on, wire::GRANTED);
        let model = self.model.granted(pid, on).map(|(token, reservation)| {
            let (state, error) = wire_state(reservation.state);
            let (start, count) = (reservation.block.start(), reservation.block.count());
            Grant { token: token.get(), start, count, transports: reservation.transports.bits(), state, error }
        });
        same("GRANTED", kernel, model)
    }

    fn query(&mut self, on: At, query: Query) -> Step_ {
        let Some((pid, on)) = self.at(on) else { return Ok(()) };
        let select = match query {
            Query::Token(number) => Select::Token(self.token(number)),
            Query::Port(transport, port) => Select::Port(transport, port),
            Query::Next(transport, port) => Select::Next(transport, port),
            Query::Associated => Select::Associated,
            Query::Indexes => return self.indexes(pid, on),
        };
        let kernel = self.state(pid, on, select)?;
        self.model.select(pid, on, select).expect("a TCP or UDP socket");
        let model = self.model.state(pid, on).map(|(token, reservation)| self.shown(token, reservation));
        same(&format!("STATE of {select:?}"), kernel, model)?;

        let version: wire::Version = self.get(pid, on, wire::VERSION).map_err(|errno| format!("VERSION: {errno}"))?;
        let model = self.model.version();
        same(
            "VERSION",
            (version.agent, version.reservations, version.ports),
            (model.agent.into(), model.reservations, model.ports),
        )
    }

    /// The reservations that a socket owns, in any order.
    fn indexes(&mut self, pid: Pid, on: Descriptor) -> Step_ {
        let (mut kernel, mut model) = (BTreeSet::new(), BTreeSet::new());
        for index in 0.. {
            match self.state(pid, on, Select::Index(index))? {
                Ok(shown) => kernel.insert(shown),
                Err(Errno::ENOENT) => break,
                Err(errno) => return Err(format!("STATE of index {index}: {errno}")),
            };
        }
        for index in 0.. {
            self.model.select(pid, on, Select::Index(index)).expect("a TCP or UDP socket");
            let Ok((token, reservation)) = self.model.state(pid, on) else { break };
            model.insert(self.shown(token, reservation));
        }
        same("what the socket owns", kernel, model)
    }

    fn state(&mut self, pid: Pid, on: Descriptor, select: Select) -> Result<Result<SeenState, Errno>, String> {
        let select = match select {
            Select::Token(token) => SelectRequest { by: wire::BY_TOKEN, token, ..Default::default() },
            Select::Port(transport, port) => {
                SelectRequest { by: wire::BY_PORT, transport: transport.bit(), port, ..Default::default() }
            }
            Select::Next(transport, port) => {
                SelectRequest { by: wire::BY_NEXT, transport: transport.bit(), port, ..Default::default() }
            }
            Select::Index(port) => SelectRequest { by: wire::BY_INDEX, port, ..Default::default() },
            Select::Associated => SelectRequest { by: wire::BY_ASSOCIATED, ..Default::default() },
        };
        self.set(pid, on, wire::SELECT, &select, false).map_err(|errno| format!("SELECT: {errno}"))?;
        let size = size_of::<wire::State>() + wire::ALSO_MAX * size_of::<Also>();
        let answer = self.perform(pid, &Command::Get { on, option: wire::STATE, size });
        let answer = answer.map(|answer| {
            let (state, rest) = wire::State::read_from_prefix(&answer.bytes).expect("a whole state");
            let also = <[Also]>::ref_from_bytes(rest).expect("whole others").to_vec();
            // A refused request admits nobody any more. (A contested one is reported as refused, but still has its
            // others.)
            if state.state == wire::REFUSED {
                return (state, Vec::new());
            }
            assert_eq!(also.len(), usize::from(state.also));
            (state, also)
        });
        Ok(answer.map(|(state, also)| SeenState {
            token: state.token,
            netns: state.netns,
            cgroup: if u16::from(state.scope) == wire::SCOPE_CGROUP { state.cgroup } else { 0 },
            owner: (state.pid, state.uid),
            block: (state.start, state.count, state.transports),
            state: (state.state, state.error),
            scope: state.scope.into(),
            flags: u32::from(state.flags) & (wire::STRICT | wire::EPHEMERAL | wire::PERSISTENT),
            // Binds of ports that were not granted are not compared.
            bound: if state.state == wire::REFUSED { 0 } else { state.bound },
            label: wire::text(&state.label),
            also: also.iter().map(|also| also.id).collect(),
        }))
    }

    fn shown(&self, token: Option<Token>, reservation: &Reservation) -> SeenState {
        let (scope, cgroup) = match reservation.access {
            Access::Process => (wire::SCOPE_PROCESS, 0),
            Access::User => (wire::SCOPE_USER, 0),
            // A persistent reservation records its cgroup by name.
            Access::Cgroup(id) => (wire::SCOPE_CGROUP, if reservation.persistent { 0 } else { id }),
            Access::Administrators => (wire::SCOPE_ADMIN, 0),
        };
        SeenState {
            token: token.map_or(0, Token::get),
            netns: reservation.namespace,
            cgroup,
            owner: (reservation.owner.pid, reservation.owner.uid),
            block: (reservation.block.start(), reservation.block.count(), reservation.transports.bits()),
            state: wire_state(reservation.state),
            scope,
            flags: u32::from(reservation.strict) * wire::STRICT
                + u32::from(reservation.ephemeral) * wire::EPHEMERAL
                + u32::from(reservation.persistent) * wire::PERSISTENT,
            bound: if wire_state(reservation.state).0 == wire::REFUSED {
                0
            } else {
                self.model.bound_ports(reservation)
            },
            label: reservation.label.clone(),
            also: match wire_state(reservation.state).0 {
                wire::REFUSED => Vec::new(),
                _ => reservation.also.iter().map(uid_of).collect(),
            },
        }
    }

    // ---- binds --------------------------------------------------------------------

    #[allow(clippy::too_many_arguments, reason = "they are the fields of one step")]
    fn consume(
        &mut self,
        token: Token,
        by_owner: bool,
        associate: bool,
        how: How,
        v6: bool,
        options: Options,
        thread: bool,
    ) -> Step_ {
        let Some(reservation) = self.model.reservations().get(&token).cloned() else { return Ok(()) };
        let owner = Some(reservation.owner.pid).filter(|pid| by_owner && self.processes.contains_key(pid));
        let Some(pid) = owner.or_else(|| self.pid(self.tokens.len() as u8)) else { return Ok(()) };
        let namespace = u8::from(self.nets[1].cookie == reservation.namespace);
        // For `both`, either one.
        let transports: Vec<Transport> = reservation.transports.iter().collect();
        let transport = transports[self.tokens.len() % transports.len()];
        let on = self.socket(pid, namespace, transport, v6, options);
        if associate {
            let kernel = self.set(pid, on, wire::ASSOCIATE, &token.get(), thread);
            same("ASSOCIATE of a new socket", kernel, self.model.associate(pid, on, token.get()))?;
        }
        let any = if v6 { Address::V6Any } else { Address::V4Any };
        match how {
            How::Draw => self.bind(pid, on, any, 0, thread),
            How::Connect => self.connect(pid, on),
            How::Explicit(offset) => {
                let offset = u16::from(offset) % (reservation.block.count() + 1);
                let address = self.address(pid, on, offset as u8);
                self.bind(pid, on, address, reservation.block.start() + offset, thread)
            }
            How::Fail if v6 => self.bind(pid, on, Address::V6Loopback, 0, thread),
            How::Fail => self.bind(pid, on, Address::V4Elsewhere, 0, thread),
        }
    }

    /// An address of the socket's family.
    fn address(&self, pid: Pid, on: Descriptor, number: u8) -> Address {
        let choices: &[Address] = if self.model.sockets()[&self.id(pid, on)].v6 {
            &[Address::V6Any, Address::V6Any, Address::V6Loopback, Address::V6Mapped]
        } else {
            &[Address::V4Any, Address::V4Any, Address::V4Loopback, Address::V4Loopback, Address::V4Elsewhere]
        };
        choices[usize::from(number) % choices.len()]
    }

    fn bind(&mut self, pid: Pid, on: Descriptor, address: Address, port: u16, thread: bool) -> Step_ {
        let to = SocketAddr::new(ip(address), port);
        let kernel = self.perform(pid, &Command::Bind { on, to, thread });
        let automatic = kernel.as_ref().map_or(0, |answer| answer.number as u16);
        let model = self.model.bind(pid, on, address, port, automatic);
        same(&format!("bind to {to}"), kernel.clone().map(|answer| answer.number as u16), model)?;
        self.compare_reuse(pid, on, &kernel)
    }

    /// A9 changes an option of the program's socket; nothing else may.
    fn compare_reuse(&self, pid: Pid, on: Descriptor, kernel: &Result<Answer, Errno>) -> Step_ {
        let Ok(answer) = kernel else { return Ok(()) };
        same("SO_REUSEADDR", answer.reuse_address, self.model.sockets()[&self.id(pid, on)].options.reuse_address)
    }

    fn connect(&mut self, pid: Pid, on: Descriptor) -> Step_ {
        let id = self.id(pid, on);
        let socket = &self.model.sockets()[&id];
        let tcp = socket.transport == Some(Transport::Tcp);
        // The kernel allows one TCP connection between two ports, and one for each socket.
        let rival = |other: &SocketId| *other != id && self.model.sockets()[other].place() == socket.place();
        let shared = socket.place().is_some() && self.model.sockets().keys().any(rival);
        if tcp && (shared || socket.listens || self.connected.contains(&id)) {
            return Ok(());
        }
        let ip = match socket.bound {
            Some(bound) if bound.address == Address::V6Mapped => Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(),
            _ if socket.v6 => IpAddr::from(Ipv6Addr::LOCALHOST),
            _ => IpAddr::from(Ipv4Addr::LOCALHOST),
        };
        let namespace = socket.namespace;
        let to = SocketAddr::new(ip, LISTENER);
        let kernel = self.perform(pid, &Command::Connect { on, to });
        let automatic = kernel.as_ref().map_or(0, |answer| answer.number as u16);
        let model = self.model.connect(pid, on, LISTENER, automatic);
        same("connect", kernel.clone().map(|answer| answer.number as u16), model)?;
        if tcp && kernel.is_ok() {
            self.connected.insert(id);
            // The other end is not needed, but it must not fill the queue.
            let net = self.nets.iter().find(|net| net.cookie == namespace).expect("one of the two");
            drop(net.listener.accept().expect("the connection that was just made"));
        }
        self.compare_reuse(pid, on, &kernel)
    }

    fn listen(&mut self, on: At) -> Step_ {
        let Some((pid, on)) = self.at(on) else { return Ok(()) };
        let id = self.id(pid, on);
        if self.model.sockets()[&id].transport != Some(Transport::Tcp) || self.connected.contains(&id) {
            return Ok(());
        }
        let kernel = self.perform(pid, &Command::Listen(on));
        let automatic = kernel.as_ref().map_or(0, |answer| answer.number as u16);
        let model = self.model.listen(pid, on, automatic);
        same("listen", kernel.clone().map(|answer| answer.number as u16), model)?;
        self.compare_reuse(pid, on, &kernel)
    }

    // ---- the agent ------------------------------------------------------------------

    fn set_agent(&mut self, runs: bool) {
        if runs == self.agent.is_some() {
            return;
        }
        if let Some(process) = self.agent.take() {
            self.model.exit(process.pid());
            return;
        }
        let process = self.start(0);
        let pid = process.pid();
        self.model.spawn(pid, 0, self.cgroup_path(0), true);
        // For this one call it is an ordinary process.
        self.processes.insert(pid, process);
        let beacon = self.socket(pid, 0, Transport::Udp, false, Options::default());
        let mark = AgentMark { secret: self.lab.secret, role: wire::AGENT_BEACON, zero: 0 };
        self.set(pid, beacon, wire::AGENT, &mark, false).expect("the secret is right");
        self.model.mark(pid, beacon, Role::Beacon).expect("the beacon is new");
        self.agent = self.processes.remove(&pid);
    }

    /// The agent confirms a request whose ports are vacant. The model knows the sockets, as sock_diag would show them.
    fn decide(&mut self, token: u8, confirm: bool) -> Step_ {
        let pending =
            self.model.reservations().iter().filter(|(_, r)| matches!(r.state, State::Pending | State::Contested));
        let pending: Vec<Token> = pending.map(|(token, _)| *token).collect();
        let Some(token) = pick(&pending, token).or_else(|| Token::new(self.token(token))) else { return Ok(()) };
        let bound: BTreeSet<Place> = self.model.sockets().values().filter_map(|socket| socket.place()).collect();
        let vacant = self.model.reservations().get(&token).is_none_or(|r| !r.places().any(|at| bound.contains(&at)));
        let id = self.lab.maps.id_of(token).expect("the config map");
        if confirm && vacant {
            let kernel = self.admin(|lab| lab.admin.confirm(id, token));
            return same("CONFIRM", kernel, self.model.confirm(token));
        }
        let kernel = self.admin(|lab| lab.admin.refuse(id, token, Errno::EADDRINUSE));
        same("REFUSE", kernel, self.model.refuse(token, Errno::EADDRINUSE))
    }

    fn create(
        &mut self,
        (namespace, start, count): (u8, u16, u16),
        align: u8,
        transports: Transports,
        (strict, ephemeral): (bool, bool),
        (scope, whom, also): (u8, u8, &[u8]),
    ) -> Step_ {
        let netns = self.net(namespace).cookie;
        let uid = UIDS[usize::from(whom) % UIDS.len()];
        let (audience, access, uid) = match scope % 3 {
            0 => (Audience::User(uid), Access::User, uid),
            1 => (Audience::Administrators, Access::Administrators, 0),
            _ => {
                // Not the root: a path to the root has no names.
                let (folder, id) = &self.lab.cgroups[1 + usize::from(whom) % (self.lab.cgroups.len() - 1)];
                let root = cgroup::root().expect("there is one");
                let path = folder.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
                (Audience::Cgroup(path), Access::Cgroup(*id), 0)
            }
        };
        let align = if start == 0 { Align::new(1 << align).expect("a power of two") } else { Align::ANY };
        // Only a user, a group or a unit can be one of several. The first in order is the scope.
        let mut all = if matches!(audience, Audience::User(_)) { uids(also) } else { Vec::new() };
        all.retain(|other| *other != uid);
        all.push(uid);
        all.sort_unstable();
        let (uid, also) = (all[0], &all[1..]);
        let audience = match audience {
            Audience::User(_) => Audience::any_of(all.iter().map(|uid| Audience::User(*uid))).expect("few, each once"),
            other => other,
        };
        let wanted = Wanted { start, count, align, transports, audience, strict, ephemeral, label: String::new() };
        let also = also.iter().copied().map(Other::User).collect();
        self.read_closed_lately();
        let Lab { admin, maps, .. } = &mut *self.lab;
        let kernel = match Claimed::claim(admin, maps, netns, &[wanted]) {
            Ok(claimed) => {
                // It stays pending.
                let (_, token, ports) = claimed.blocks()[0];
                Ok((ports.start(), token))
            }
            Err(CreateError::Admin(error)) => Err(error.errno().ok_or_else(|| error.to_string())?),
            Err(error) => return Err(error.to_string()),
        };
        let token = kernel.map_or(Token::new(u64::MAX).expect("not 0"), |(_, token)| token);
        let ask = Persistent { start, count, align, transports, access, also, uid, strict, ephemeral };
        let model = self.model.create_persistent(netns, &ask, token);
        if kernel.is_ok() {
            self.tokens.push(token);
        }
        let model = model.map(|()| (self.model.reservations()[&token].block.start(), token));
        same("CREATE", kernel, model)
    }

    fn give_back(&mut self, at: Place) -> Step_ {
        let kernel = self.admin(|lab| lab.admin.give_back(at.namespace, at.transport, at.port));
        same("UNASIDE", kernel, self.model.give_back(at))
    }

    // ---- the end -----------------------------------------------------------------------

    /// The maps contain what the model contains. When all processes have ended, they contain nothing.
    fn finish(&mut self) -> Step_ {
        self.log.push("the end".into());
        self.compare_contents()?;
        for at in self.model.aside().clone() {
            self.give_back(at)?;
        }
        let persistent = self.model.reservations().iter().filter(|(_, r)| r.persistent);
        for token in persistent.map(|(token, _)| *token).collect::<Vec<_>>() {
            let kernel = self.admin(|lab| lab.admin.end(lab.maps.id_of(token).expect("the config map"), token));
            same("END of a persistent one", kernel, self.model.end(token))?;
        }
        self.lab.maps.sweep_persistent(&self.lab.admin).expect("sweeping");
        self.set_agent(false);
        while !self.processes.is_empty() {
            self.exit(0, true);
            self.compare_counters()?;
        }
        same("ports left over in the model", self.model.reserved().len(), 0)?;
        self.compare_contents()?;
        // Words stay until they are removed. This is done only sometimes, because it waits for all CPUs.
        self.lab.histories += 1;
        if self.lab.histories.is_multiple_of(16) {
            self.lab.maps.forget_quiet_namespaces(&self.lab.admin, 0).expect("sweeping");
            same("words left after sweeping", self.lab.maps.words().count(), 0)?;
            same("spaces left after sweeping", self.lab.maps.spaces().count(), 0)?;
        }
        Ok(())
    }

    fn compare_counters(&self) -> Step_ {
        let counters = self.lab.maps.counters().expect("the counters map");
        let version = self.model.version();
        same("counters", (counters.reservations, counters.ports), (version.reservations, version.ports))?;
        same("agents", counters.agents != 0, version.agent)
    }

    fn compare_contents(&self) -> Step_ {
        self.compare_counters()?;
        // Iterating over a map takes milliseconds, because this includes its empty buckets.
        let maps = &self.lab.maps;
        let in_kernel: BTreeMap<u64, (u64, u16, u16, u8, u8)> = maps
            .reservations()
            .map(|item| item.expect("the reservations map").1)
            .map(|r| (r.token, (r.netns, r.start, r.count, r.transports, r.state())))
            .collect();
        let in_model: BTreeMap<u64, (u64, u16, u16, u8, u8)> = self
            .model
            .reservations()
            .iter()
            .map(|(token, r)| {
                let block: PortRange = r.block;
                let state = if r.state == State::Contested { wire::PENDING } else { wire_state(r.state).0 };
                (token.get(), (r.namespace, block.start(), block.count(), r.transports.bits(), state))
            })
            .collect();
        same("reservations", in_kernel, in_model)?;

        for (account, quota) in maps.quotas().map(|item| item.expect("the quotas map")) {
            let uid = u32::try_from(account).map_err(|_| format!("account {account:#x} is no uid"))?;
            // Requests of root are not limited, and not counted.
            let pending = if uid == 0 { 0 } else { self.model.pending_of(uid) };
            let model = (self.model.ports_of(uid), pending);
            same(&format!("ports and requests of uid {uid}"), (quota.used, quota.pending), model)?;
        }
        self.compare_words()
    }

    fn compare_words(&self) -> Step_ {
        let reserved = self.model.reserved();
        let mut seen = BTreeSet::new();
        for (key, word) in self.lab.maps.words().map(|item| item.expect("the words map")) {
            let transport = Transport::ALL.into_iter().find(|t| u16::from(t.bit()) == key.transport);
            let transport = transport.ok_or_else(|| format!("a word of no transport: {key:?}"))?;
            let first = Place { namespace: key.netns, transport, port: key.word * 64 };
            let reaches_in = self.model.block_at(first).is_some_and(|(_, r)| r.block.start() < first.port);
            same(&format!("a block reaches into {key:?}"), word.lead != 0, reaches_in)?;
            for bit in 0..64u16 {
                let place = Place { namespace: key.netns, transport, port: key.word * 64 + bit };
                let is = |bits: u64| bits >> bit & 1 == 1;
                let kernel =
                    (is(word.reserved), is(word.lingering), is(word.aside), usize::from(word.uses(bit.into())));
                let model = (
                    reserved.contains(&place),
                    self.model.lingers(place),
                    self.model.aside().contains(&place),
                    self.model.users(place),
                );
                same(&format!("{place:?} (reserved, lingering, aside, uses)"), kernel, model)?;
                let head = self.model.block_at(place).is_some_and(|(_, r)| r.block.start() == place.port);
                same(&format!("{place:?} is a head"), is(word.heads), head)?;
                // The mark of a failed draw has no meaning once its block has ended.
                if self.model.block_at(place).is_some() {
                    same(&format!("{place:?} is drawn"), is(word.drawn), self.model.is_hinted(place))?;
                }
                seen.insert(place);
            }
        }
        match reserved.difference(&seen).next() {
            Some(place) => Err(format!(
                "{place:?} is reserved in the model and has no word {:?}",
                WordKey::of(place.namespace, place.transport, place.port)
            )),
            None => Ok(()),
        }
    }
}

/// The answer of STATE, as far as the model knows it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct SeenState {
    token: u64,
    netns: u64,
    cgroup: u64,
    owner: (u32, u32),
    block: (u16, u16, u8),
    state: (u8, u16),
    scope: u16,
    flags: u32,
    bound: u32,
    label: String,
    also: Vec<u32>,
}

/// The uids of these numbers, each once.
fn uids(numbers: &[u8]) -> Vec<u32> {
    let uids: BTreeSet<u32> = numbers.iter().map(|number| UIDS[usize::from(*number) % UIDS.len()]).collect();
    uids.into_iter().collect()
}

fn uid_of(other: &Other) -> u32 {
    match other {
        Other::User(uid) => *uid,
        Other::Group(_) | Other::Unit(_) => unreachable!("histories let users in only"),
    }
}

fn wire_state(state: State) -> (u8, u16) {
    match state {
        State::Pending => (wire::PENDING, 0),
        State::Contested => (wire::REFUSED, Errno::EADDRINUSE.0 as u16),
        State::Active => (wire::ACTIVE, 0),
        State::Refused(errno) => (wire::REFUSED, errno.0 as u16),
    }
}

/// Which bits of a word that expires are still valid, as the programs see it.
fn in_force(expiring: &Expiring) -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let now = ((now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64) >> 36) + 1;
    match now.checked_sub(expiring.period) {
        _ if expiring.period == 0 => 0,
        Some(0) => expiring.ports[0] | expiring.ports[1],
        Some(1) => expiring.ports[(expiring.period & 1) as usize],
        Some(_) | None => 0,
    }
}

fn ip(address: Address) -> IpAddr {
    match address {
        Address::V4Any => Ipv4Addr::UNSPECIFIED.into(),
        Address::V4Loopback => Ipv4Addr::LOCALHOST.into(),
        // TEST-NET-1 of RFC 5737: no interface has it.
        Address::V4Elsewhere => Ipv4Addr::new(192, 0, 2, 1).into(),
        Address::V6Any => Ipv6Addr::UNSPECIFIED.into(),
        Address::V6Loopback | Address::V6Connected => Ipv6Addr::LOCALHOST.into(),
        Address::V6Mapped => Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(),
    }
}
