//! The event loop: what the agent does, and when.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, bail};
use portkeep::{
    Time,
    persistent::protocol::{Latency, socket_in},
};
use portkeep_core::Transport;
use portkeep_kernel::RingEventKind;
use portkeep_observe::sockets::Listing;
use portkeep_persist::Diagnostic;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{
    connection::Line,
    event_log::EventLog,
    namespaces::OpenNamespaces,
    options::Options,
    pending::Queue,
    policy::Policy,
    programs::{self, Programs},
    registry::{Registry, Tools},
    reserved_ports::{ReservedPorts, restore_all},
    server::Server,
    service::Service,
    set_aside::GiveBack,
    sweep::Sweep,
    vacancy::Prober,
};

/// A request whose event was lost waits this long. There are few of them, since only a full ring loses events.
const TICK: Duration = Duration::from_secs(1);
/// So many events are handled in a round. New events can come as fast as they are handled, and the other work needs its
/// turn.
const EVENTS: usize = 256;
/// Ends come in bursts, and each round reads all reservations.
const SETTLE: Duration = Duration::from_millis(50);
/// How often pool ports that are set aside are checked.
const GIVE_BACK: Duration = Duration::from_secs(3);
/// How often every namespace is checked, to correct changes that others made to the sysctls.
const EVERYWHERE: Duration = Duration::from_secs(15);
/// In a round, one kind of work that users can cause may last this long. Then other work gets its turn.
pub(super) const SLICE: Duration = Duration::from_millis(20);
/// The pause between two slices of a sweep.
const PAUSE: Duration = Duration::from_millis(80);
/// How often quiet namespaces are looked for.
const FORGET: Duration = Duration::from_secs(60);
const QUIET: Duration = Duration::from_secs(600);

/// Bounds of the distribution of waiting times, in seconds.
const LATENCY_BOUNDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

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

/// Why a sleep ended.
enum Woken {
    Stop,
    Reload,
    Other,
}

/// Read what a signal handler wrote.
fn drain(reload: impl AsFd) {
    let mut bytes = [0; 64];
    // Several signals have the same effect as one.
    let _ = rustix::io::read(reload, &mut bytes);
}

/// A running agent. When it is dropped, its sockets close, and it is no longer the agent.
#[derive(Debug)]
pub struct Agent<'k> {
    pub(super) programs: &'k mut Programs,
    pub(super) reserved_ports: ReservedPorts,
    pub(super) prober: Prober,
    pub(super) policy: Policy,
    pub(super) registry: Registry,
    /// Cookie of the agent's own namespace, where persistent reservations are in force.
    pub(super) netns: u64,
    pub(super) server: Server,
    pub(super) event_log: EventLog,
    /// How long requests for particular ports waited.
    pub(super) latency: Latency,
    pub(super) started: Time,
    pub(super) service: Service,
    /// Namespaces with entries of ours. Their reservations keep them alive anyway. They are kept open so that the
    /// entries can be removed after the last process has left.
    pub(super) open_namespaces: OpenNamespaces,
    /// Namespaces whose entries have to be put right, with processes or threads that are probably in them.
    pub(super) unsettled: BTreeMap<u64, Vec<u32>>,
    settled: Instant,
    pub(super) pending: Queue,
    pub(super) sweep: Sweep,
    give_back: GiveBack,
    /// The answer to requests for the list, and the version of the registry that it shows.
    pub(super) listed: Option<(u64, Line)>,
    timers: Timers,
    /// The last reason why work was put off, reported once.
    put_off: String,
    _reader: OwnedFd,
    beacon: Option<OwnedFd>,
    _only: File,
}

impl<'k> Agent<'k> {
    /// Put everything right that changed while no agent ran, and be the agent from then on. This process has to be in a
    /// cgroup where the control codes are served.
    pub fn start(programs: &'k mut Programs, options: &Options) -> anyhow::Result<Self> {
        let Options { runtime, config, root, state } = options;
        let Some(only) = runtime.become_agent().context("becoming the agent")? else {
            bail!("another agent is running");
        };
        let policy = Policy::load(config.clone(), root.clone(), programs.config).map_err(|wrong| {
            anyhow::anyhow!("{}", wrong.iter().map(Diagnostic::on_one_line).collect::<Vec<_>>().join("\n"))
        })?;
        let state = state.clone().unwrap_or_else(|| policy.config().state_dir(root));
        let folder = runtime.folder()?;
        let now = Instant::now();
        // Made before the maps are read and before the first round, so that no event is missed in between.
        let reader = programs.reader()?;
        let mut agent = Self {
            reserved_ports: ReservedPorts { runtime: runtime.clone(), pool: programs::pool(&programs.config) },
            prober: Prober::marked(programs.config.secret),
            registry: Registry::open(&state, folder, root.clone()),
            netns: portkeep_kernel::netns::current_cookie().context("asking for the cookie of this namespace")?,
            server: Server::listen(socket_in(folder)).context("listening on the agent's socket")?,
            event_log: EventLog::new(policy.config().events.per_second, &programs.maps),
            latency: Latency::with_bounds(&LATENCY_BOUNDS),
            started: SystemTime::now().into(),
            service: Service::new(),
            policy,
            open_namespaces: OpenNamespaces::default(),
            unsettled: BTreeMap::new(),
            settled: now,
            pending: Queue::default(),
            sweep: Sweep::begin(true),
            give_back: GiveBack::default(),
            listed: None,
            timers: Timers { tick: now, give_back: now, everywhere: now, forget: now, slice: now },
            put_off: String::new(),
            _reader: reader,
            beacon: None,
            _only: only,
            programs,
        };
        agent.apply_configuration()?;
        // A bind to port 0 finds out whether the kernel lists bound sockets. If it came later, it could get a port of a
        // pending request.
        let _ = Listing::of(Transport::Tcp);
        // At the start, do only the work that services require when they start. How long the rest takes depends on
        // users, so the loop does it.
        let reloaded = agent.load_declarations()?;
        agent.settle()?;
        // Last: when a process sees the beacon, it expects an answer.
        agent.beacon = Some(agent.programs.beacon()?);
        let (persistent, waiting) = (agent.registry.in_force(), reloaded.waiting);
        tracing::info!(persistent, waiting, "the agent is running");
        agent.service.ready();
        Ok(agent)
    }

    /// Serve until `stop` can be read, or the BPF programs are taken down. When `reload` can be read, read the files
    /// again.
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
                    if let Err(error) = self.reload() {
                        tracing::error!(error = format!("{error:#}"), "cannot read everything again");
                    }
                }
                Woken::Other => {}
            }
            for _ in 0..EVENTS {
                let Some(event) = self.programs.events.next_event() else { break };
                let report = self.event_log.event(&event, &self.programs.maps, &self.registry, self.policy.owners());
                if let Some(report) = report {
                    self.server.publish(&report);
                }
                match event.kind {
                    RingEventKind::Pending => self.queue_pending(&event)?,
                    RingEventKind::Ended | RingEventKind::Granted => {
                        self.unsettle(event.netns, &[event.tid, event.pid])
                    }
                    RingEventKind::Refused | RingEventKind::Exhausted => {}
                }
            }
            self.handle_pending()?;
            self.serve();
            if due(&mut self.timers.tick, TICK) {
                if !self.programs.is_up() {
                    // The maps exist as long as we have them open, but no other process uses them.
                    restore_all(&self.reserved_ports.runtime)?;
                    bail!("kernel enforcement has been taken down");
                }
                for event in self.event_log.summarize(&self.programs.maps) {
                    self.server.publish(&event);
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
                let begun = self.give_back.begin(&self.programs.maps);
                self.or_later(begun);
                let retried = self.retry_declarations();
                self.or_later(retried);
            }
            if self.is_sweeping() && due(&mut self.timers.slice, PAUSE) {
                let swept = self.sweep_on();
                self.or_later(swept);
                let given_back = self.give_back.go_on(&self.programs.admin, &self.prober, SLICE);
                self.or_later(given_back);
            }
            if due(&mut self.timers.forget, FORGET) {
                self.programs.maps.forget_quiet_namespaces(&self.programs.admin, QUIET.as_nanos() as u64)?;
            }
        }
    }

    /// If a periodic task fails once, the agent continues: descriptors or memory may have run out for a moment.
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
        !self.sweep.is_over() || !self.give_back.is_over()
    }

    /// How long no work is due.
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
        let events = self.programs.events.as_fd();
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

    pub(super) fn registry(&mut self) -> (&mut Registry, Tools<'_>) {
        let tools = Tools {
            programs: self.programs,
            reserved_ports: &self.reserved_ports,
            prober: &self.prober,
            netns: self.netns,
            draining: self.registry.draining(),
        };
        (&mut self.registry, tools)
    }
}
