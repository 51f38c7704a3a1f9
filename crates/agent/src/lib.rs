//! The agent: what the BPF programs cannot do alone.
//!
//! Wildcard requests need no agent. A request for particular ports outside the pool is entered as pending, and then waits
//! until the agent has checked whether its ports are vacant ([`examine`]). It keeps nobody from a port meanwhile: a bind
//! wins, and the request is refused. The agent also keeps `ip_local_reserved_ports` in step ([`keeper`]), marks pool ports
//! that were in use before `up` ([`aside`]), and writes the log.
//!
//! The kernel is the database: the agent may be killed at any instant. Granted reservations stay granted, requests that need
//! it fail with ENETDOWN from the moment its sockets close, and the next one starts by putting everything right. Events
//! only say where to look; every round through the maps would find the same.
//!
//! Users decide how much there is to do, so every round of the loop does a bounded amount of each kind of work, and
//! [`pending`] requests are handled in turn by account.

#![forbid(unsafe_code)]

mod after_up;
mod aside;
mod budget;
mod connection;
mod examine;
mod happenings;
mod keeper;
mod kernel_part;
mod merge;
mod namespaces;
mod overlap;
mod peer;
mod pending;
mod policy;
mod registry;
mod requests;
mod rightful;
mod server;
mod service;
mod settle;
mod state;
mod subordinate;
mod sysctl;
mod vacancy;

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, bail};
use portkeep::{
    Info, Time,
    persistent::protocol::{Answer, Counters, Happening, Latency, QuotaUse, Reason, Reloaded, Request},
};
use portkeep_kernel::{EventKind, Instance, NOBODY, root_elsewhere};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    low_level::{pipe, unregister},
};

use vacancy::Prober;

use aside::Asides;
use connection::{Line, line_of, refusal};
use happenings::Happenings;
use keeper::Keeper;
use namespaces::Kept;
use peer::Peer;
use pending::{Queue, Waiting};
use policy::Policy;
use registry::{Changes, Desk, Registry};
use server::Server;
use service::Service;
use settle::Sweep;

pub use after_up::after_up;
pub use aside::{Aside, set_aside_used_pool_ports};
pub use keeper::{Restored, restore_all};
pub use kernel_part::KernelPart;
pub use overlap::{Overlap, leave_overlap};
pub use policy::{quota, settings};
use portkeep_observe::{accounts, process, usage};
pub use state::{RUNTIME_DIR, RuntimeDir};
pub use sysctl::ephemeral as ephemeral_ports;

/// Requests whose event was lost wait this long; they are few, since only a full ring loses one.
const TICK: Duration = Duration::from_secs(1);
/// So many events are handled before the rest gets its turn: they can come as fast as they are handled.
const EVENTS: usize = 256;
/// Ends come in bursts, and each round goes through all reservations.
const SETTLE: Duration = Duration::from_millis(50);
/// Pool ports set aside are looked at this often.
const GIVE_BACK: Duration = Duration::from_secs(3);
/// Every namespace is looked into this often: what others did to the sysctls is mended.
const EVERYWHERE: Duration = Duration::from_secs(15);
/// One kind of work that users can make more of has this long in a round, and then the others get their turn.
const SLICE: Duration = Duration::from_millis(20);
/// Between two slices of a sweep.
const PAUSE: Duration = Duration::from_millis(80);
/// Quiet namespaces are looked for this often, and forgotten after the next.
const FORGET: Duration = Duration::from_secs(60);
const QUIET: Duration = Duration::from_secs(600);

/// The files that the agent reads, and where it keeps its own.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its folder in `/run`.
    pub runtime: RuntimeDir,
    /// The configuration file.
    pub config: PathBuf,
    /// Drop-ins are read below this: `/` but for trials.
    pub root: PathBuf,
    /// Where the store is; what the configuration says if `None`.
    pub state: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            runtime: RuntimeDir::default(),
            config: portkeep_persist::config::PATH.into(),
            root: "/".into(),
            state: None,
        }
    }
}

impl Options {
    /// Everything below one folder, for trials: nothing of the machine's own is read or written.
    pub fn below(folder: &Path) -> Self {
        Self {
            runtime: RuntimeDir::at(folder),
            config: folder.join("portkeep.toml"),
            root: folder.join("root"),
            state: Some(folder.join("state")),
        }
    }
}

/// Run the agent in the foreground until SIGTERM or SIGINT, on the BPF programs
/// pinned in `folder`. Granted reservations stay granted. SIGHUP makes it read its files again.
pub fn run_in_foreground(folder: &Path, options: &Options) -> anyhow::Result<()> {
    let signals = Signals::register()?;
    let instance = Instance::open(folder)?;
    let mut kernel = KernelPart::of_instance(&instance)?;
    Agent::start(&mut kernel, options).and_then(|agent| agent.run(&signals.stop, &signals.reload))
}

/// Signals as descriptors to poll, for as long as this lives.
#[derive(Debug)]
struct Signals {
    stop: UnixStream,
    reload: UnixStream,
    registered: [signal_hook::SigId; 3],
}

impl Signals {
    fn register() -> io::Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        let (reload, reloaded) = UnixStream::pair()?;
        let registered = [
            pipe::register(SIGTERM, stopped.try_clone()?)?,
            pipe::register(SIGINT, stopped)?,
            pipe::register(SIGHUP, reloaded)?,
        ];
        Ok(Self { stop, reload, registered })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for signal in self.registered {
            unregister(signal);
        }
    }
}

/// When something is to be done next.
#[derive(Debug)]
struct Timers {
    tick: Instant,
    give_back: Instant,
    everywhere: Instant,
    forget: Instant,
    slice: Instant,
}

/// True once `period` has passed since the last time.
fn due(last: &mut Instant, period: Duration) -> bool {
    let due = last.elapsed() >= period;
    if due {
        *last = Instant::now();
    }
    due
}

/// The reason why a sleep ended.
enum Woken {
    Stop,
    Reload,
    Other,
}

/// A complaint on one line.
fn one_line(diagnostic: &portkeep_persist::Diagnostic) -> String {
    diagnostic.to_string().lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

fn lines(diagnostics: &[portkeep_persist::Diagnostic]) -> String {
    diagnostics.iter().map(one_line).collect::<Vec<_>>().join("\n")
}

/// Take out what a signal put in.
fn drain(reload: impl AsFd) {
    let mut bytes = [0; 64];
    // One signal is as good as many.
    let _ = rustix::io::read(reload, &mut bytes);
}

/// A running agent. Dropped, it no longer is: its sockets close.
#[derive(Debug)]
pub struct Agent<'k> {
    kernel: &'k mut KernelPart,
    keeper: Keeper,
    prober: Prober,
    policy: Policy,
    registry: Registry,
    /// Cookie of the agent's own namespace, the one that persistent reservations are for.
    netns: u64,
    server: Server,
    happenings: Happenings,
    /// How long requests for particular ports waited.
    latency: Latency,
    started: Time,
    service: Service,
    /// Namespaces with entries of ours. Their reservations keep them alive anyhow; kept open so that the entries can
    /// be taken out when the last process has left.
    kept: Kept,
    /// Namespaces whose entries are to be put right, with processes or threads that are probably in them.
    unsettled: BTreeMap<u64, Vec<u32>>,
    settled: Instant,
    pending: Queue,
    sweep: Sweep,
    asides: Asides,
    /// The answer to those who ask for the list, and the version of the registry it is of.
    listed: Option<(u64, Line)>,
    timers: Timers,
    /// The last reason why something was put off, reported once.
    put_off: String,
    _reader: OwnedFd,
    beacon: Option<OwnedFd>,
    _only: File,
}

impl<'k> Agent<'k> {
    /// Put everything right that happened while no agent ran, and be the agent
    /// from then on. This process has to be in a cgroup where the control codes are served.
    pub fn start(kernel: &'k mut KernelPart, options: &Options) -> anyhow::Result<Self> {
        let Options { runtime, config, root, state } = options;
        let Some(only) = runtime.become_agent().context("becoming the agent")? else {
            bail!("another agent is running");
        };
        let policy = Policy::load(config.clone(), root.clone(), kernel.config)
            .map_err(|wrong| anyhow::anyhow!("{}", lines(&wrong)))?;
        let state = state.clone().unwrap_or_else(|| policy.config().state_dir());
        let folder = runtime.folder()?;
        let now = Instant::now();
        let mut agent = Self {
            keeper: Keeper { runtime: runtime.clone(), pool: kernel_part::pool(&kernel.config) },
            prober: Prober::marked(kernel.config.secret),
            registry: Registry::open(&state, folder, root.clone()),
            netns: portkeep_kernel::netns::current_cookie().context("asking for the cookie of this namespace")?,
            server: Server::listen(server::path_in(folder)).context("listening on the agent's socket")?,
            happenings: Happenings::new(policy.config().events.per_second, &kernel.maps),
            latency: requests::no_latency(),
            started: SystemTime::now().into(),
            service: Service::new(),
            policy,
            kept: Kept::default(),
            unsettled: BTreeMap::new(),
            settled: now,
            pending: Queue::default(),
            sweep: Sweep::begin(true),
            asides: Asides::default(),
            listed: None,
            timers: Timers { tick: now, give_back: now, everywhere: now, forget: now, slice: now },
            put_off: String::new(),
            // Before the first round, so that nothing is missed between the two.
            _reader: kernel.reader()?,
            beacon: None,
            _only: only,
            kernel,
        };
        agent.apply_configuration()?;
        // Only what services that are about to start rely on. How long the rest takes is up to users: it is done in the loop.
        let reloaded = agent.load_declarations()?;
        agent.settle()?;
        // Last: a process that sees the beacon may rely on being answered.
        agent.beacon = Some(agent.kernel.beacon()?);
        let (persistent, waiting) = (agent.registry.in_force(), reloaded.waiting);
        tracing::info!(persistent, waiting, "the agent is running");
        agent.service.ready();
        Ok(agent)
    }

    /// Serve until `stop` can be read, or the BPF programs are taken down; read the files again when `reload` can be read.
    pub fn run(mut self, stop: impl AsFd, reload: impl AsFd) -> anyhow::Result<()> {
        loop {
            match self.wait(stop.as_fd(), reload.as_fd())? {
                Woken::Stop => {
                    tracing::info!("the agent stops; what is granted stays granted");
                    self.service.stopping();
                    return Ok(());
                }
                Woken::Reload => {
                    drain(&reload);
                    self.reload()?;
                }
                Woken::Other => {}
            }
            for _ in 0..EVENTS {
                let Some(event) = self.kernel.events.next_event() else { break };
                let told = self.happenings.event(&event, &self.kernel.maps, &self.registry, self.policy.owners());
                if let Some(told) = told {
                    self.server.publish(&told);
                }
                match event.kind {
                    EventKind::Pending => self.queue_pending(event.id, vec![event.tid, event.pid])?,
                    EventKind::Ended | EventKind::Granted => self.unsettle(event.netns, &[event.tid, event.pid]),
                    EventKind::Refused | EventKind::Exhausted => {}
                }
            }
            self.handle_pending()?;
            self.serve();
            if due(&mut self.timers.tick, TICK) {
                if !self.kernel.is_up() {
                    // Its maps live on as long as we have them open; nobody else looks at them.
                    keeper::restore_all(&self.keeper.runtime)?;
                    bail!("kernel enforcement has been taken down");
                }
                for told in self.happenings.summarize() {
                    self.server.publish(&told);
                }
                self.queue_all_pending()?;
                self.service.alive();
            }
            if due(&mut self.timers.everywhere, EVERYWHERE) && self.sweep.is_over() {
                self.sweep = Sweep::begin(false);
            }
            if !self.unsettled.is_empty() && due(&mut self.settled, SETTLE) {
                self.settle()?;
            }
            if due(&mut self.timers.give_back, GIVE_BACK) {
                let begun = self.asides.begin(&self.kernel.maps);
                self.or_later(begun);
                let retried = self.retry_declarations();
                self.or_later(retried);
            }
            if self.is_sweeping() && due(&mut self.timers.slice, PAUSE) {
                let swept = self.sweep_on();
                self.or_later(swept);
                let given_back = self.asides.go_on(&self.kernel.admin, &self.prober, SLICE);
                self.or_later(given_back);
            }
            if due(&mut self.timers.forget, FORGET) {
                self.kernel.maps.forget_quiet_namespaces(&self.kernel.admin, QUIET.as_nanos() as u64)?;
            }
        }
    }

    /// A periodic task that fails once need not end the agent: descriptors or memory may have run out.
    fn or_later(&mut self, done: anyhow::Result<()>) {
        if let Err(error) = done {
            let error = format!("{error:#}");
            if self.put_off != error {
                tracing::warn!(error, "put off");
                self.put_off = error;
            }
        }
    }

    fn is_sweeping(&self) -> bool {
        !self.sweep.is_over() || !self.asides.is_over()
    }

    /// How long nothing has to be done.
    fn pause(&self) -> Duration {
        if !self.pending.is_empty() || self.server.is_busy() {
            Duration::ZERO
        } else if !self.unsettled.is_empty() || self.is_sweeping() {
            SETTLE
        } else {
            TICK
        }
    }

    /// Sleep until something happens.
    fn wait(&self, stop: BorrowedFd<'_>, reload: BorrowedFd<'_>) -> io::Result<Woken> {
        let longest = self.pause();
        let timeout = Timespec { tv_sec: longest.as_secs() as i64, tv_nsec: longest.subsec_nanos().into() };
        let events = self.kernel.events.as_fd();
        let mut fds: Vec<PollFd<'_>> =
            [stop, reload, events].into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        fds.extend(self.server.descriptors().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) if !fds[0].revents().is_empty() => Ok(Woken::Stop),
            Ok(_) if !fds[1].revents().is_empty() => Ok(Woken::Reload),
            Ok(_) | Err(Errno::INTR) => Ok(Woken::Other),
            Err(error) => Err(error.into()),
        }
    }

    fn desk(&mut self) -> (&mut Registry, Desk<'_>) {
        let desk = Desk { kernel: self.kernel, keeper: &self.keeper, prober: &self.prober, netns: self.netns };
        (&mut self.registry, desk)
    }

    /// Put the configuration into effect; returns what could not be.
    fn apply_configuration(&mut self) -> anyhow::Result<Vec<String>> {
        let complaints = self.policy.apply(&mut self.kernel.maps, &self.kernel.admin)?;
        let before = kernel_part::pool(&self.kernel.config);
        self.kernel.config = self.kernel.maps.config()?;
        self.keeper.pool = kernel_part::pool(&self.kernel.config);
        self.happenings.limit(self.policy.config().events.per_second);
        if let Some(pool) = self.keeper.pool
            && self.kernel.config.home != 0
        {
            self.kernel.maps.make_words(self.kernel.config.home, pool)?;
        }
        if before != self.keeper.pool {
            self.sweep = Sweep::begin(true);
        }
        complaints.iter().for_each(|complaint| tracing::warn!("{complaint}"));
        Ok(complaints)
    }

    /// Read the drop-ins and bring the BPF programs in line with them and the stores.
    fn load_declarations(&mut self) -> anyhow::Result<Reloaded> {
        let (registry, mut desk) = self.desk();
        let (changes, wrong) = registry.load(&mut desk)?;
        let conflicts = registry.conflicts();
        let mut errors = registry.complaints();
        for diagnostic in wrong.iter().chain(&conflicts) {
            tracing::warn!("{}", one_line(diagnostic));
        }
        errors.extend(wrong.iter().map(one_line));
        let complaints = conflicts.iter().map(one_line).collect();
        self.unsettle(self.netns, &[]);
        let Changes { added, changed, removed, waiting } = changes;
        Ok(Reloaded { added, changed, removed, waiting, errors, complaints })
    }

    /// Read everything again. An error in the configuration leaves it as it was.
    fn reload(&mut self) -> anyhow::Result<Reloaded> {
        self.service.reloading();
        let (mut complaints, mut errors) = match self.policy.reload() {
            Ok(()) => (self.apply_configuration()?, Vec::new()),
            Err(wrong) => {
                tracing::warn!("the configuration stays as it was: {}", lines(&wrong));
                (Vec::new(), wrong.iter().map(one_line).collect())
            }
        };
        let mut reloaded = self.load_declarations()?;
        errors.append(&mut reloaded.errors);
        complaints.append(&mut reloaded.complaints);
        let Reloaded { added, changed, removed, waiting, .. } = reloaded;
        tracing::info!(added, changed, removed, waiting, "reloaded");
        self.service.ready();
        Ok(Reloaded { complaints, errors, ..reloaded })
    }

    fn retry_declarations(&mut self) -> anyhow::Result<()> {
        let (registry, mut desk) = self.desk();
        let begun = registry.retry(&mut desk)?;
        if begun > 0 {
            tracing::info!(begun, "what waited is in force now");
            self.unsettle(self.netns, &[]);
        }
        Ok(())
    }

    /// Answer those who are connected.
    fn serve(&mut self) {
        for (number, peer, request) in self.server.hear(self.policy.owners()) {
            if self.server.is_deserted(number) {
                tracing::debug!(process = peer.pid, uid = peer.uid, "the client of a request has gone; it is dropped");
            } else if request == Request::List {
                let list = self.list();
                self.server.say_line(number, list);
            } else {
                let answer = self.answer(peer, request);
                self.server.answer(number, &answer);
            }
        }
        self.server.say();
    }

    /// The list as it is sent, made once for each change.
    fn list(&mut self) -> Line {
        let version = self.registry.version();
        match &self.listed {
            Some((of, line)) if *of == version => line.clone(),
            _ => {
                let line = line_of(&Answer::List(self.registry.list()));
                self.listed = Some((version, line.clone()));
                line
            }
        }
    }

    fn tell_of(&mut self, what: Happening, reservation: Info, by: &Peer) {
        let told = self.happenings.administered(what, reservation, self.netns, by);
        self.server.publish(&told);
    }

    fn counters(&self) -> anyhow::Result<Counters> {
        let maps = &self.kernel.maps;
        let (counters, config) = (maps.counters()?, maps.config()?);
        let mut quotas = Vec::new();
        for item in maps.quotas() {
            let (account, quota) = item?;
            if account == NOBODY || quota.used == 0 && quota.pending == 0 {
                continue;
            }
            let uid = u32::try_from(account).ok();
            let default = match uid {
                Some(0) => u32::MAX,
                Some(_) => config.quota,
                None => config.quota_elsewhere,
            };
            let limit = if quota.limit == 0 { default } else { quota.limit };
            quotas.push(QuotaUse {
                account: match uid {
                    Some(uid) => format!("user {}", accounts::user_name(uid)),
                    None => format!("root of the network namespace {}", account & !root_elsewhere(0)),
                },
                uid,
                used: quota.used,
                limit: Some(limit).filter(|limit| *limit != u32::MAX),
                pending: quota.pending,
            });
        }
        quotas.sort_by(|one: &QuotaUse, other| one.account.cmp(&other.account));
        Ok(Counters {
            since: self.started,
            reservations: counters.reservations,
            ports: counters.ports,
            refused: counters.refused,
            pending: quotas.iter().map(|quota| quota.pending).sum(),
            latency: self.latency.clone(),
            quotas,
        })
    }

    fn answer(&mut self, peer: Peer, request: Request) -> Answer {
        if matches!(request, Request::Watch | Request::Counters) && self.policy.is_watcher(&peer) {
            return match request {
                Request::Watch => Answer::Watching,
                _ => match self.counters() {
                    Ok(counters) => Answer::Counters(Box::new(counters)),
                    Err(error) => refusal(Reason::Failed, format!("{error:#}")),
                },
            };
        }
        if !self.policy.is_administrator(&peer) {
            let message = "only an administrator may do this: root with its capabilities, or a member of the group that \
                           `administrators` names in portkeep.toml";
            return refusal(Reason::NotAllowed, message);
        }
        let netns = self.netns;
        match request {
            Request::Reload => match self.reload() {
                Ok(reloaded) => Answer::Reloaded(reloaded),
                Err(error) => refusal(Reason::Failed, format!("{error:#}")),
            },
            Request::Create { proposal, kept } => {
                let (registry, mut desk) = self.desk();
                let created = registry.create(&mut desk, &proposal, kept, peer.uid);
                self.unsettle(netns, &[]);
                match created {
                    Ok(created) => {
                        self.tell_of(Happening::Granted, created.clone(), &peer);
                        Answer::Created(Box::new(created))
                    }
                    Err(refused) => Answer::Refused(refused),
                }
            }
            Request::Delete(which) => {
                let (registry, mut desk) = self.desk();
                let deleted = registry.delete(&mut desk, &which);
                self.unsettle(netns, &[]);
                match deleted {
                    Ok(deleted) => {
                        self.tell_of(Happening::Ended, deleted.clone(), &peer);
                        Answer::Deleted(Box::new(deleted))
                    }
                    Err(refused) => Answer::Refused(refused),
                }
            }
            Request::Change { name, change } => {
                let (registry, mut desk) = self.desk();
                let changed = registry.change(&mut desk, &name, &change);
                self.unsettle(netns, &[]);
                match changed {
                    Ok(changed) => Answer::Changed(Box::new(changed)),
                    Err(refused) => Answer::Refused(refused),
                }
            }
            other => refusal(Reason::Malformed, format!("{other:?} is not known to this agent")),
        }
    }
}
