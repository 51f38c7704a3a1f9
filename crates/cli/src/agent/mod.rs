//! The agent: what the kernel part cannot do alone.
//!
//! Wildcard requests need no agent. A request for specific ports outside the
//! pool is claimed by the kernel at once, so that no newcomer can bind them, and
//! then waits until somebody has looked whether they are vacant: that is the
//! agent ([`examine`]). It also keeps `ip_local_reserved_ports` in step
//! ([`keeper`]), gives pool ports back that were in use before `up`
//! ([`aside`]), and writes the log.
//!
//! The kernel is the database: the agent may be killed at any instant. What is
//! granted stays granted, requests that need it fail with ENETDOWN from the moment its
//! sockets close, and the next one starts by putting everything right.
//! Events only say where to look; every round through the maps would find the same.

mod aside;
mod examine;
mod keeper;
mod kernel_part;
mod log;
mod merge;
mod namespaces;
mod port_set;
mod state;
mod sysctl;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use portkeep_core::wire;
use portkeep_kernel::{EventKind, Instance, MapAccessError};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    low_level::{pipe, unregister},
};

use crate::vacancy::Prober;

use aside::Round;
use examine::{Refusal, examine};
use keeper::Keeper;
use log::Log;
use namespaces::Kept;
use port_set::PortSet;

pub use aside::{Aside, set_aside_used_pool_ports};
pub use keeper::{Restored, restore_all};
pub use kernel_part::KernelPart;
pub use state::{RUNTIME_DIR, RuntimeDir};

/// Requests whose event was lost wait this long; they are few, since only a full ring loses one.
const TICK: Duration = Duration::from_secs(1);
/// Ends come in bursts, and each round goes through all reservations.
const SETTLE: Duration = Duration::from_millis(50);
/// Pool ports set aside are looked at this often.
const GIVE_BACK: Duration = Duration::from_secs(3);
/// Every namespace is looked into this often: what others did to the sysctls is mended.
const EVERYWHERE: Duration = Duration::from_secs(15);
/// Quiet namespaces are looked for this often, and forgotten after the next.
const FORGET: Duration = Duration::from_secs(60);
const QUIET: Duration = Duration::from_secs(600);

/// Run the agent in the foreground until SIGTERM or SIGINT, on the kernel part
/// pinned in `folder`. What is granted stays granted.
pub fn run_in_foreground(folder: &Path) -> anyhow::Result<()> {
    let (stop, signalled) = UnixStream::pair()?;
    let registered = [pipe::register(SIGTERM, signalled.try_clone()?)?, pipe::register(SIGINT, signalled)?];
    let instance = Instance::open(folder)?;
    let mut kernel = KernelPart::of_instance(&instance)?;
    let result = Agent::start(&mut kernel, &RuntimeDir::default()).and_then(|agent| agent.run(&stop));
    for signal in registered {
        unregister(signal);
    }
    result
}

/// When something is to be done next.
#[derive(Debug)]
struct Timers {
    tick: Instant,
    give_back: Instant,
    everywhere: Instant,
    forget: Instant,
}

/// True once `period` has passed since the last time.
fn due(last: &mut Instant, period: Duration) -> bool {
    let due = last.elapsed() >= period;
    if due {
        *last = Instant::now();
    }
    due
}

/// A running agent. Dropped, it no longer is: its sockets close.
#[derive(Debug)]
pub struct Agent<'k> {
    kernel: &'k mut KernelPart,
    keeper: Keeper,
    prober: Prober,
    log: Log,
    /// Namespaces with entries of ours. Their reservations keep them alive anyhow; kept open so that the entries can
    /// be taken out when the last process has left.
    kept: Kept,
    /// Namespaces whose entries are to be put right, and since when.
    unsettled: BTreeSet<u64>,
    settled: Instant,
    timers: Timers,
    _reader: OwnedFd,
    beacon: Option<OwnedFd>,
    _only: File,
}

impl<'k> Agent<'k> {
    /// Put everything right that happened while no agent ran, and be the agent
    /// from then on. This process has to be in a cgroup where the control codes are served.
    pub fn start(kernel: &'k mut KernelPart, runtime: &RuntimeDir) -> anyhow::Result<Self> {
        let Some(only) = runtime.become_agent().context("becoming the agent")? else {
            bail!("another agent is running");
        };
        let now = Instant::now();
        let mut agent = Self {
            keeper: Keeper { runtime: runtime.clone(), pool: kernel_part::pool(&kernel.config) },
            prober: Prober::marked(kernel.config.secret),
            log: Log::new(),
            kept: Kept::default(),
            unsettled: BTreeSet::new(),
            settled: now,
            timers: Timers { tick: now, give_back: now, everywhere: now, forget: now },
            // Before the first round, so that nothing is missed between the two.
            _reader: kernel.reader()?,
            beacon: None,
            _only: only,
            kernel,
        };
        agent.round().set_aside(&agent.kernel.config);
        agent.settle_everywhere()?;
        agent.handle_all_pending()?;
        agent.give_back()?;
        // Last: who sees the beacon may rely on being answered.
        agent.beacon = Some(agent.kernel.beacon()?);
        tracing::info!("the agent is running");
        Ok(agent)
    }

    /// Serve until `stop` can be read, or the kernel part is taken down.
    pub fn run(mut self, stop: impl AsFd) -> anyhow::Result<()> {
        loop {
            let stopped = self.wait(stop.as_fd())?;
            if stopped {
                tracing::info!("the agent stops; what is granted stays granted");
                return Ok(());
            }
            while let Some(event) = self.kernel.events.next_event() {
                self.log.event(&event, &self.kernel.maps);
                match event.kind {
                    EventKind::Pending => self.handle_pending(event.id, &[event.tid, event.pid])?,
                    EventKind::Ended => {
                        self.unsettled.insert(event.netns);
                    }
                    _ => {}
                }
            }
            if due(&mut self.timers.tick, TICK) {
                if !self.kernel.is_up() {
                    // Its maps live on as long as we have them open; nobody else looks at them.
                    keeper::restore_all(&self.keeper.runtime)?;
                    bail!("the kernel part has been taken down");
                }
                self.log.summarize();
                self.handle_all_pending()?;
            }
            if due(&mut self.timers.everywhere, EVERYWHERE) {
                self.settle_everywhere()?;
            } else if !self.unsettled.is_empty() && due(&mut self.settled, SETTLE) {
                self.settle()?;
            }
            if due(&mut self.timers.give_back, GIVE_BACK) {
                self.give_back()?;
            }
            if due(&mut self.timers.forget, FORGET) {
                self.kernel.maps.forget_quiet_namespaces(QUIET.as_nanos() as u64)?;
            }
        }
    }

    /// Sleep until something happens; true if it is the end.
    fn wait(&self, stop: impl AsFd) -> io::Result<bool> {
        let longest = if self.unsettled.is_empty() { TICK } else { SETTLE };
        let timeout = Timespec { tv_sec: longest.as_secs() as i64, tv_nsec: longest.subsec_nanos().into() };
        let mut fds = [PollFd::new(&stop, PollFlags::IN), PollFd::new(&self.kernel.events, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(!fds[0].revents().is_empty()),
            Err(error) => Err(error.into()),
        }
    }

    fn round(&self) -> Round<'_> {
        Round { maps: &self.kernel.maps, admin: &self.kernel.admin, prober: &self.prober }
    }

    fn give_back(&self) -> anyhow::Result<()> {
        self.round().give_back().map(drop)
    }

    fn handle_all_pending(&mut self) -> anyhow::Result<()> {
        let pending: Vec<(u32, u32)> = self
            .kernel
            .maps
            .reservations()
            .filter_map(|item| match item {
                Ok((id, reservation)) => (reservation.state() == wire::PENDING).then_some(Ok((id, reservation.pid))),
                Err(error) => Some(Err(error)),
            })
            .collect::<Result<_, _>>()?;
        pending.into_iter().try_for_each(|(id, pid)| self.handle_pending(id, &[pid]))
    }

    /// Grant or refuse one claimed block. Whoever asked may be gone by now, or at any moment.
    fn handle_pending(&mut self, id: u32, hints: &[u32]) -> anyhow::Result<()> {
        let Some(reservation) = self.kernel.maps.reservation(id)? else { return Ok(()) };
        let (Some(token), Some(ports), Some(transports)) =
            (reservation.token(), reservation.ports(), reservation.transports())
        else {
            return Ok(());
        };
        if reservation.state() != wire::PENDING {
            return Ok(());
        }
        let judged = match self.kept.get(reservation.netns, hints) {
            Some(namespace) => examine(&reservation, (ports, transports), namespace, &self.keeper, &self.prober),
            None => Err(Refusal::Unknown(io::ErrorKind::NotFound.into())),
        };
        let done = match &judged {
            Ok(()) => self.kernel.admin.confirm(id, token),
            Err(refusal) => {
                let (process, uid, netns) = (reservation.pid, reservation.uid, reservation.netns);
                let (command, errno) = (wire::text(&reservation.comm), refusal.errno());
                tracing::warn!(process, command, uid, %transports, %ports, netns, %errno, reason = %refusal, "not granted");
                self.kernel.admin.refuse(id, token, errno)
            }
        };
        if judged.is_err() || done.is_err() {
            self.unsettled.insert(reservation.netns);
        }
        match done {
            // The owner's socket was closed, or the administrator ended it.
            Err(error) if error.errno() == Some(portkeep_core::Errno::ENOENT) => Ok(()),
            other => Ok(other?),
        }
    }

    /// What has to be in the sysctl of each namespace: blocks in force and blocks that wait, outside the pool.
    fn wanted(&self) -> Result<BTreeMap<u64, PortSet>, MapAccessError> {
        let mut wanted = BTreeMap::<u64, PortSet>::new();
        for item in self.kernel.maps.reservations() {
            let (_, reservation) = item?;
            let Some(ports) = reservation.ports() else { continue };
            let in_pool = self.keeper.pool.is_some_and(|p| p.contains(ports.start()) && p.contains(ports.last()));
            if reservation.state() != wire::REFUSED && !in_pool {
                wanted.entry(reservation.netns).or_default().insert(ports);
            }
        }
        for ports in wanted.values_mut() {
            *ports = self.keeper.outside_pool(std::mem::take(ports));
        }
        Ok(wanted)
    }

    /// Put the sysctls right where something has ended.
    fn settle(&mut self) -> anyhow::Result<()> {
        let wanted = self.wanted()?;
        for netns in std::mem::take(&mut self.unsettled) {
            self.settle_one(netns, wanted.get(&netns));
        }
        Ok(())
    }

    fn settle_one(&mut self, netns: u64, wanted: Option<&PortSet>) {
        // A wildcard reservation's namespace is none we have to do with, and finding it costs a walk through /proc.
        let ours = self.kept.contains(netns)
            || wanted.is_some()
            || self.keeper.remembered().is_ok_and(|remembered| remembered.contains(&netns));
        if !ours {
            return;
        }
        let nothing = PortSet::default();
        let Some(namespace) = self.kept.get(netns, &[]) else { return };
        match namespace.within(|| self.keeper.settle_here(netns, wanted.unwrap_or(&nothing))) {
            Ok(()) if wanted.is_some() => {}
            // Not ours to keep alive any longer.
            Ok(()) => self.kept.let_go(netns),
            Err(error) => {
                tracing::warn!(netns, %error, "cannot put ip_local_reserved_ports right");
                self.kept.let_go(netns);
            }
        }
    }

    /// Put the sysctls right in every namespace that can be seen or that we remember.
    fn settle_everywhere(&mut self) -> anyhow::Result<()> {
        let wanted = self.wanted()?;
        self.unsettled.clear();
        let mut left: BTreeSet<u64> =
            wanted.keys().copied().chain(self.keeper.remembered()?).chain(self.kept.cookies()).collect();
        for namespace in namespaces::visible() {
            left.remove(&namespace.cookie);
            let nothing = PortSet::default();
            let blocks = wanted.get(&namespace.cookie);
            let settled = namespace.within(|| self.keeper.settle_here(namespace.cookie, blocks.unwrap_or(&nothing)));
            if let Err(error) = settled {
                tracing::warn!(netns = namespace.cookie, %error, "cannot put ip_local_reserved_ports right");
            } else if blocks.is_some() {
                self.kept.keep(namespace);
            } else {
                self.kept.let_go(namespace.cookie);
            }
        }
        for netns in left {
            self.settle_one(netns, wanted.get(&netns));
        }
        Ok(())
    }
}
