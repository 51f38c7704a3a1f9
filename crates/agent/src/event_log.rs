//! The event log: for each event a line in the log, and an event for each watcher.
//!
//! The BPF programs report ids and numbers. Here they become a sentence that names the process, the ports and their
//! owner. Users can cause events as fast as they like, so each account has a [`Budget`], and repeated events fade.
//! Omitted events are counted.

use std::time::{Duration, Instant, SystemTime};

use portkeep::{
    Info, Process, State,
    persistent::protocol::{self, EventKind},
};
use portkeep_core::{PortList, wire};
use portkeep_kernel::{self as kernel, Maps, Reservation};
use portkeep_persist::Declared;

use portkeep_observe::{
    accounts::known_user,
    process::{self, in_first_pid_namespace},
    subordinate::Owners,
};

use super::{
    budget::{Budget, LeftOut, Pace},
    event_lists::{Holder, ListKey, Lists, Part, info},
    examine::Refusal,
    offenders::Offenders,
    peer::Peer,
    registry::Registry,
};

/// The kind of event. The public type may get more kinds; with this one the compiler reports a kind that is not
/// handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum What {
    Granted,
    Denied,
    Ended,
    Refused,
    Exhausted,
}

impl What {
    fn kind(self) -> EventKind {
        match self {
            Self::Granted => EventKind::Granted,
            Self::Denied => EventKind::Denied,
            Self::Ended => EventKind::Ended,
            Self::Refused => EventKind::Refused,
            Self::Exhausted => EventKind::Exhausted,
        }
    }

    /// Whether a process did not get what it requested.
    fn is_complaint(self) -> bool {
        match self {
            Self::Refused | Self::Denied | Self::Exhausted => true,
            Self::Granted | Self::Ended => false,
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Granted => "reserved ports",
            Self::Denied => "was not granted ports",
            Self::Ended => "ended reservations",
            Self::Refused => "was refused",
            Self::Exhausted => "found its private ephemeral range used up",
        }
    }
}

/// How many characters of a command line are reported: events are remembered.
const COMMAND: usize = 1024;

/// The key of repeated events: the same kind, by the same account, with a command of the same name, and refusals in the
/// same cgroup.
type Repeated = (What, u32, String, u64);

/// Reports events.
#[derive(Debug)]
pub(super) struct EventLog {
    budget: Budget<Repeated, protocol::Event>,
    offenders: Offenders<Repeated>,
    lists: Lists,
    /// Whether pids here are the same as those of the BPF programs.
    first_pids: bool,
}

impl EventLog {
    pub(super) fn new(per_second: u32, maps: &Maps) -> Self {
        Self {
            lists: Lists::of(maps),
            offenders: Offenders::new(maps),
            budget: Budget::new(per_second),
            first_pids: in_first_pid_namespace(),
        }
    }

    /// Whether pids here are the same as those of the BPF programs.
    pub(super) fn first_pids(&self) -> bool {
        self.first_pids
    }

    pub(super) fn limit(&mut self, per_second: u32) {
        self.budget.limit(per_second);
    }

    /// Log an event of the BPF programs. Returns the event for the watchers.
    pub(super) fn event(
        &mut self,
        event: &kernel::RingEvent,
        maps: &Maps,
        registry: &Registry,
        owners: &Owners,
    ) -> Option<protocol::Event> {
        let what = match event.kind {
            kernel::RingEventKind::Refused => What::Refused,
            kernel::RingEventKind::Granted => What::Granted,
            kernel::RingEventKind::Ended => What::Ended,
            kernel::RingEventKind::Exhausted => What::Exhausted,
            kernel::RingEventKind::Pending => {
                self.lists.requested(event.id);
                return None;
            }
        };
        let reservation = maps.reservation(event.id).ok().flatten();
        let ended = self.lists.holder(event.id, event.into()).filter(|_| what == What::Ended);
        let list = match what {
            What::Granted => self.lists.granted(event.id, event.into(), reservation.as_ref()),
            What::Ended => self.lists.ended(event.id, event.into()),
            What::Refused | What::Exhausted | What::Denied => Part::Whole,
        };
        let ports = match list {
            Part::Whole => event.ports.into(),
            Part::Last(ports) => ports,
            Part::Other => return None,
        };
        let declared = registry.declared(event.id);
        // An administrator's action is reported by the command.
        if matches!(what, What::Granted | What::Ended) && (declared.is_some() || event.owner == 0) {
            return None;
        }
        // The agent has confirmed it: the process that requested it is in the entry.
        let holder = reservation.as_ref().filter(|r| what == What::Granted && r.pid != event.pid);
        let mut doer = match holder {
            Some(r) => self.process(r.pid, r.uid, wire::text(&r.comm)),
            None => self.process(event.pid, event.uid, event.comm.clone()),
        };
        let hit = match what {
            // The entry may belong to another reservation by now.
            What::Refused | What::Exhausted => {
                reservation.filter(|r| r.ports().is_some_and(|ports| ports.overlaps(event.ports)))
            }
            What::Granted => reservation,
            What::Ended | What::Denied => None,
        };
        let info = match (declared, hit) {
            (Some(Declared { declaration, origin }), _) => Some(Info::declared(declaration, origin, State::Active)),
            (None, Some(hit)) => self.lists.whole(maps, &hit),
            (None, None) => None,
        };
        let account = owners.account(doer.uid.unwrap_or_default());
        let cgroup = if what == What::Refused { event.cgroup } else { 0 };
        let key = (what, account, doer.comm.clone(), cgroup);
        let mut more = 0;
        if what == What::Refused {
            more = self.offenders.event(event.pid, event.when, event.untold, &key);
            self.recognize(&mut doer, &key);
        }
        let reported = self.describe(event, (what, ports), doer, info, ended);
        self.report(&key, more, reported)
    }

    /// Add the facts about a process that may have ended when its refusals are reported.
    fn recognize(&self, process: &mut Process, key: &Repeated) {
        let last = self.budget.last(key);
        // Each look costs a little, and users can cause any number of events.
        let may_look = last.is_some() || self.budget.can_remember(key.1);
        if let Some(last) = last.and_then(|last| last.process.as_ref()) {
            process.unit.clone_from(&last.unit);
            if last.pid == process.pid {
                process.command.clone_from(&last.command);
            }
        }
        if process.unit.is_none() && may_look {
            self.complete(process);
        }
    }

    /// The agent has confirmed a request.
    pub(super) fn confirmed(&mut self, id: u32, reservation: &Reservation) {
        match ListKey::of(reservation) {
            Some(key) => _ = self.lists.confirmed.insert(id, key),
            None => _ = self.lists.confirmed.remove(&id),
        }
    }

    /// A request for particular ports that was not granted.
    pub(super) fn denied(
        &mut self,
        reservation: &Reservation,
        maps: &Maps,
        refusal: &Refusal,
        owners: &Owners,
    ) -> Option<protocol::Event> {
        let mut info = info(maps, reservation)?;
        (info.state, info.reason) = (State::Refused, Some(refusal.to_string()));
        let doer = self.process(reservation.pid, reservation.uid, wire::text(&reservation.comm));
        let message = format!("{} was not granted {}/{}: {refusal}", named(&doer), info.ports, info.transports);
        let reported = protocol::Event {
            when: SystemTime::now().into(),
            what: What::Denied.kind(),
            ports: info.ports.clone(),
            transports: info.transports,
            netns: reservation.netns,
            process: Some(doer),
            reservation: Some(info),
            unreported: 0,
            message,
        };
        let command = reported.process.as_ref().map_or_else(String::new, |process| process.comm.clone());
        self.report(&(What::Denied, owners.account(reservation.uid), command, 0), 0, reported)
    }

    /// An administrator created or deleted a persistent reservation.
    pub(super) fn administered(&self, what: What, reservation: Info, netns: u64, by: &Peer) -> protocol::Event {
        let comm = process::of(by.pid).map_or_else(String::new, |process| process.comm);
        let mut doer = self.process(by.pid, by.uid, comm);
        self.complete(&mut doer);
        let verb = if what == What::Ended { "is no longer reserved" } else { "is reserved" };
        let (ports, transports) = (reservation.ports.clone(), reservation.transports);
        let audience = reservation.audience.as_ref().map(|audience| format!(" for {audience}")).unwrap_or_default();
        let name = reservation.name.as_deref().unwrap_or_default();
        let message = format!("{ports}/{transports} {verb}{audience} as {name:?}, by {}", named(&doer));
        let reported = protocol::Event {
            when: SystemTime::now().into(),
            what: what.kind(),
            ports,
            transports,
            netns,
            process: Some(doer),
            reservation: Some(reservation),
            unreported: 0,
            message,
        };
        log(what, &reported);
        reported
    }

    /// Log what may be logged now, and count the rest.
    fn report(&mut self, key: &Repeated, more: u32, mut reported: protocol::Event) -> Option<protocol::Event> {
        let (what, account, ..) = *key;
        let pace = if what.is_complaint() { Pace::Fading } else { Pace::Steady };
        reported.unreported = self.budget.report(Instant::now(), (account, pace), key, more, reported.clone())?;
        if reported.unreported > 0 {
            reported.message.push_str(&format!(" ({} more of the kind were not reported)", reported.unreported));
        }
        Some(self.logged(what, reported))
    }

    fn logged(&self, what: What, mut reported: protocol::Event) -> protocol::Event {
        if let Some(process) = &mut reported.process {
            self.complete(process);
        }
        log(what, &reported);
        reported
    }

    /// Report omitted events that are due, even if no event of the kind came since. Returns the events for the
    /// watchers.
    pub(super) fn summarize(&mut self, maps: &Maps) -> Vec<protocol::Event> {
        let now = Instant::now();
        match self.offenders.read(maps) {
            Ok(counted) => counted.iter().for_each(|(key, more)| self.budget.add(now, key.as_ref(), *more)),
            Err(error) => tracing::warn!(%error, "cannot count the refusals that were not reported"),
        }
        let due = self.budget.due(now);
        let unknown = self.budget.unknown();
        if unknown > 0 {
            tracing::warn!(count = unknown, "more happened, by too many different commands to name them");
        }
        due.into_iter().map(|left_out| self.summary(left_out)).collect()
    }

    fn summary(
        &self,
        LeftOut { what: (what, ..), last, count }: LeftOut<Repeated, protocol::Event>,
    ) -> protocol::Event {
        let times = if count == 1 { "once".into() } else { format!("{count} times") };
        let name = doer(last.process.as_ref());
        let message = format!("{name} {} {times} more, the last time: {}", what.verb(), last.message);
        self.logged(what, protocol::Event { unreported: count - 1, message, ..last })
    }

    /// A process as the BPF programs report it.
    fn process(&self, pid: u32, uid: u32, comm: String) -> Process {
        Process { pid, comm, uid: Some(uid), user: known_user(uid), ..Process::default() }
    }

    /// Add the facts about a process that is still running.
    fn complete(&self, process: &mut Process) {
        if process.unit.is_some() && process.command.is_some() || !self.first_pids || process.pid == 0 {
            return;
        }
        if let Some(found) = process::of(process.pid) {
            process.unit = process.unit.take().or(found.unit);
            process.command = found.command.map(|mut command| {
                if let Some((end, _)) = command.char_indices().nth(COMMAND) {
                    command.truncate(end);
                    command.push_str("...");
                }
                command
            });
        }
    }

    fn describe(
        &self,
        event: &kernel::RingEvent,
        (what, ports): (What, PortList),
        process: Process,
        reservation: Option<Info>,
        ended: Option<Holder>,
    ) -> protocol::Event {
        let transports = event.transports;
        let process = Some(process).filter(|process| process.pid != 0 || !process.comm.is_empty());
        let who = doer(process.as_ref());
        let by_owner = process.as_ref().is_some_and(|process| process.pid == event.owner);
        let owner = ended.map(|ended| self.process(event.owner, ended.uid, wire::text(&ended.comm)));
        let owner = owner.or_else(|| process.clone().filter(|_| by_owner));
        let label = ended.map(|ended| wire::text(&ended.label)).filter(|label| !label.is_empty());
        let message = match what {
            What::Refused => {
                // The reservation may have ended meanwhile.
                let whose = reservation.as_ref().map_or_else(|| "a reservation that has ended".into(), described);
                format!("{who} was refused {}/{transports}: reserved for {whose}", ports.start())
            }
            What::Exhausted => format!(
                "{who} got no port for a bind to port 0: all of its private ephemeral range, {ports}/{transports}, are in use"
            ),
            What::Granted => {
                let name = reservation.as_ref().and_then(|reservation| reservation.name.as_ref());
                let named = name.map_or_else(String::new, |name| format!(" as {name:?}"));
                format!("{who} reserved {ports}/{transports}{named}")
            }
            What::Ended | What::Denied => {
                let by = if by_owner { String::new() } else { format!(", ended by {who}") };
                let whose = owner.as_ref().map_or_else(|| format!("pid {}", event.owner), named);
                let label = label.as_ref().map_or_else(String::new, |label| format!(" as {label:?}"));
                format!("{ports}/{transports} of {whose}{label} is free again{by}")
            }
        };
        let reservation = match what {
            // The entry belongs to another reservation by now, or is free.
            What::Ended => {
                let mut ended = Info::of_ports(ports.clone(), transports, State::Ended);
                (ended.owner, ended.name) = (owner, label);
                Some(ended)
            }
            What::Granted | What::Denied | What::Refused | What::Exhausted => reservation,
        };
        let when = portkeep::wall_clock(Duration::from_nanos(event.when));
        protocol::Event {
            when,
            what: what.kind(),
            ports,
            transports,
            netns: event.netns,
            process,
            reservation,
            unreported: 0,
            message,
        }
    }
}

/// "nginx (pid 812, www-data)".
fn named(process: &Process) -> String {
    let user = process.user.clone().or_else(|| process.uid.map(|uid| format!("uid {uid}"))).unwrap_or_default();
    format!("{} (pid {}, {user})", process.comm, process.pid)
}

fn doer(process: Option<&Process>) -> String {
    process.map_or_else(|| "an administrator".into(), named)
}

/// "unit tomcat.service by /etc/portkeep/ports.d/tomcat.toml:3", or the owner of a runtime reservation.
fn described(info: &Info) -> String {
    let label = info.name.as_ref().map_or_else(String::new, |name| format!(" as {name:?}"));
    match (&info.owner, &info.audience, &info.origin) {
        (_, Some(audience), Some(origin)) => format!("{audience} by {origin}"),
        (_, Some(audience), None) => format!("{audience}{label}"),
        (Some(owner), None, _) => format!("{owner}{label}"),
        (None, None, _) => format!("a service or cgroup{label}"),
    }
}

/// One line, with its parts as fields for programs that read the log.
fn log(what: What, reported: &protocol::Event) {
    let process = reported.process.clone().unwrap_or_default();
    let reservation = reported.reservation.as_ref().filter(|info| info.state != State::Ended).map(described);
    let label = reported.reservation.as_ref().and_then(|info| info.name.as_deref());
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                what = %reported.what,
                process = process.pid,
                command = process.comm,
                uid = process.uid.unwrap_or_default(),
                unit = process.unit,
                ports = %reported.ports,
                transports = %reported.transports,
                netns = reported.netns,
                reservation,
                label,
                "{}",
                reported.message
            )
        };
    }
    if what.is_complaint() { line!(warn) } else { line!(info) }
}
