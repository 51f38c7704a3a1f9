//! Events, reported to people: a line in the log and an event for each watcher.
//!
//! The BPF programs report ids and numbers; here they become a sentence that names which process, which ports and whose
//! they are. Users can make things happen as fast as they like, so each account has a [`Budget`], and what repeats
//! fades. Omitted events are counted.

use std::{
    collections::{HashMap, hash_map},
    time::{Duration, Instant, SystemTime},
};

use portkeep::{
    Info, Process, State,
    persistent::protocol::{Event as Told, Happening},
};
use portkeep_core::{ListMark, PortList, PortRange, wire};
use portkeep_kernel::{Event, EventKind, Maps, Reservation};
use portkeep_persist::Declared;

use super::{
    accounts::UserNames,
    budget::{Budget, LeftOut, Pace},
    examine::Refusal,
    peer::Peer,
    registry::Registry,
    subordinate::Owners,
};
use crate::process::{self, in_first_pid_namespace};

/// How long the end of a request that was refused may take to be reported.
const REFUSED_ENDS: Duration = Duration::from_secs(5);

/// The key of repeated events: the same kind, by the same account, with a command of the same name.
type Kind = (Happening, u32, String);

/// Reports what happens.
#[derive(Debug)]
pub(super) struct Happenings {
    names: UserNames,
    budget: Budget<Kind, Told>,
    /// Requests that were refused a moment ago: their end is no news.
    refused: HashMap<u32, Instant>,
    lists: Lists,
    /// Whether pids here mean what they mean to the BPF programs.
    first_pids: bool,
}

impl Happenings {
    pub(super) fn new(per_second: u32, maps: &Maps) -> Self {
        Self {
            lists: Lists::of(maps),
            names: UserNames::default(),
            budget: Budget::new(per_second),
            refused: HashMap::new(),
            first_pids: in_first_pid_namespace(),
        }
    }

    /// Whether pids here mean what they mean to the BPF programs.
    pub(super) fn first_pids(&self) -> bool {
        self.first_pids
    }

    pub(super) fn limit(&mut self, per_second: u32) {
        self.budget.limit(per_second);
    }

    /// An event of the BPF programs, logged; the event for the watchers.
    pub(super) fn event(&mut self, event: &Event, maps: &Maps, registry: &Registry, owners: &Owners) -> Option<Told> {
        let what = match event.kind {
            EventKind::Refused => Happening::Refused,
            EventKind::Granted => Happening::Granted,
            EventKind::Ended => Happening::Ended,
            EventKind::Exhausted => Happening::Exhausted,
            EventKind::Pending => return None,
        };
        if what == Happening::Ended && self.was_refused(event.id) {
            return None;
        }
        let reservation = maps.reservation(event.id).ok().flatten();
        let list = match what {
            Happening::Granted => self.lists.granted(event.id, event.ports, reservation.as_ref().and_then(ListKey::of)),
            Happening::Ended => self.lists.ended(event.id),
            Happening::Refused | Happening::Exhausted | Happening::Denied => Part::Whole,
            // Not one of the kinds above.
            _ => return None,
        };
        let ports = match list {
            Part::Whole => event.ports.into(),
            Part::Last(ports) => ports,
            // A list is one reservation: it is reported once.
            Part::Other => return None,
        };
        let declared = registry.declared(event.id);
        // An administrator's action is reported where it is done.
        if matches!(what, Happening::Granted | Happening::Ended) && (declared.is_some() || event.owner == 0) {
            return None;
        }
        // Confirmed by the agent: the process that asked is in the entry.
        let holder = reservation.as_ref().filter(|r| what == Happening::Granted && r.pid != event.pid);
        let doer = match holder {
            Some(r) => self.process(r.pid, r.uid, wire::text(&r.comm)),
            None => self.process(event.pid, event.uid, event.comm.clone()),
        };
        let hit = match what {
            // The entry may be another reservation's by now.
            Happening::Refused | Happening::Exhausted => {
                reservation.filter(|r| r.ports().is_some_and(|ports| ports.overlaps(event.ports)))
            }
            Happening::Granted => reservation,
            Happening::Ended | Happening::Denied => None,
            // Not one of the kinds above.
            _ => return None,
        };
        let info = match (declared, hit) {
            (Some(Declared { declaration, origin }), _) => Some(Info::declared(declaration, origin, State::Active)),
            (None, Some(hit)) => self.lists.whole(maps, &hit),
            (None, None) => None,
        };
        let account = owners.account(doer.uid.unwrap_or_default());
        let told = self.told(event, (what, ports), doer, info);
        self.report(account, event.untold, told)
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
        (id, reservation): (u32, &Reservation),
        maps: &Maps,
        refusal: &Refusal,
        owners: &Owners,
    ) -> Option<Told> {
        let mut info = info(maps, reservation)?;
        self.refused.retain(|_, when| when.elapsed() < REFUSED_ENDS);
        self.refused.insert(id, Instant::now());
        (info.state, info.reason) = (State::Refused, Some(refusal.to_string()));
        let doer = self.process(reservation.pid, reservation.uid, wire::text(&reservation.comm));
        let message = format!("{} was not granted {}/{}: {refusal}", named(&doer), info.ports, info.transports);
        let told = Told {
            when: SystemTime::now().into(),
            what: Happening::Denied,
            ports: info.ports.clone(),
            transports: info.transports,
            netns: reservation.netns,
            process: Some(doer),
            reservation: Some(info),
            unreported: 0,
            message,
        };
        self.report(owners.account(reservation.uid), 0, told)
    }

    /// Whether this is the end of a request that was refused: it had never been granted.
    fn was_refused(&mut self, id: u32) -> bool {
        self.refused.remove(&id).is_some_and(|when| when.elapsed() < REFUSED_ENDS)
    }

    /// An administrator created or deleted a persistent reservation.
    pub(super) fn administered(&self, what: Happening, reservation: Info, netns: u64, by: &Peer) -> Told {
        let comm = process::of(by.pid).map_or_else(String::new, |process| process.comm);
        let mut doer = self.process(by.pid, by.uid, comm);
        self.complete(&mut doer);
        let verb = if what == Happening::Ended { "is no longer reserved" } else { "is reserved" };
        let (ports, transports) = (reservation.ports.clone(), reservation.transports);
        let audience = reservation.audience.as_ref().map(|audience| format!(" for {audience}")).unwrap_or_default();
        let name = reservation.name.as_deref().unwrap_or_default();
        let message = format!("{ports}/{transports} {verb}{audience} as {name:?}, by {}", named(&doer));
        let told = Told {
            when: SystemTime::now().into(),
            what,
            ports,
            transports,
            netns,
            process: Some(doer),
            reservation: Some(reservation),
            unreported: 0,
            message,
        };
        log(&told);
        told
    }

    /// Log what may be logged now, and count the rest.
    fn report(&mut self, account: u32, more: u32, mut told: Told) -> Option<Told> {
        let pace = match told.what {
            Happening::Refused | Happening::Denied | Happening::Exhausted => Pace::Fading,
            _ => Pace::Steady,
        };
        let command = told.process.as_ref().map_or_else(String::new, |process| process.comm.clone());
        let kind = (told.what, account, command);
        told.unreported = self.budget.report(Instant::now(), (account, pace), &kind, more, told.clone())?;
        if told.unreported > 0 {
            told.message.push_str(&format!(" ({} more of the kind were not reported)", told.unreported));
        }
        Some(self.logged(told))
    }

    fn logged(&self, mut told: Told) -> Told {
        if let Some(process) = &mut told.process {
            self.complete(process);
        }
        log(&told);
        told
    }

    /// Report omitted events that are due, also if nothing of the kind came since. Returns the events for the watchers.
    pub(super) fn summarize(&mut self) -> Vec<Told> {
        let due = self.budget.due(Instant::now());
        let unknown = self.budget.unknown();
        if unknown > 0 {
            tracing::warn!(count = unknown, "more happened, by too many different commands to name them");
        }
        due.into_iter().map(|left_out| self.summary(left_out)).collect()
    }

    fn summary(&self, LeftOut { what: (what, ..), last, count }: LeftOut<Kind, Told>) -> Told {
        let verb = match what {
            Happening::Refused => "was refused",
            Happening::Granted => "reserved ports",
            Happening::Denied => "was not granted ports",
            Happening::Exhausted => "found its private ephemeral range used up",
            _ => "ended reservations",
        };
        let times = if count == 1 { "once".into() } else { format!("{count} times") };
        let name = doer(last.process.as_ref());
        let message = format!("{name} {verb} {times} more, the last time: {}", last.message);
        self.logged(Told { unreported: count - 1, message, ..last })
    }

    /// A process as the BPF programs report it.
    fn process(&self, pid: u32, uid: u32, comm: String) -> Process {
        Process { pid, comm, uid: Some(uid), user: self.names.of(uid), ..Process::default() }
    }

    /// Add facts about a process that still runs.
    fn complete(&self, process: &mut Process) {
        if process.unit.is_some() || !self.first_pids || process.pid == 0 {
            return;
        }
        if let Some(found) = process::of(process.pid) {
            (process.command, process.unit) = (found.command, found.unit);
        }
    }

    fn told(
        &self,
        event: &Event,
        (what, ports): (Happening, PortList),
        process: Process,
        reservation: Option<Info>,
    ) -> Told {
        let transports = event.transports;
        let process = Some(process).filter(|process| process.pid != 0 || !process.comm.is_empty());
        let who = doer(process.as_ref());
        let message = match what {
            Happening::Refused => {
                // The reservation may have ended meanwhile.
                let whose = reservation.as_ref().map_or_else(|| "a reservation that has ended".into(), described);
                format!("{who} was refused {}/{transports}: reserved for {whose}", ports.start())
            }
            Happening::Exhausted => format!(
                "{who} got no port for a bind to port 0: all of its private ephemeral range, {ports}/{transports}, are in use"
            ),
            Happening::Granted => {
                let name = reservation.as_ref().and_then(|reservation| reservation.name.as_ref());
                let named = name.map_or_else(String::new, |name| format!(" as {name:?}"));
                format!("{who} reserved {ports}/{transports}{named}")
            }
            _ => {
                let by_owner = process.as_ref().is_some_and(|process| process.pid == event.owner);
                let by = if by_owner { String::new() } else { format!(", ended by {who}") };
                format!("{ports}/{transports} of pid {} is free again{by}", event.owner)
            }
        };
        let reservation = match what {
            // The entry is another's by now, or free.
            Happening::Ended => {
                let mut ended = Info::of_ports(ports.clone(), transports, State::Ended);
                ended.owner = process.clone().filter(|process| process.pid == event.owner);
                Some(ended)
            }
            _ => reservation,
        };
        let when = portkeep::wall_clock(Duration::from_nanos(event.when));
        Told { when, what, ports, transports, netns: event.netns, process, reservation, unreported: 0, message }
    }
}

/// A reservation of the BPF programs.
fn info(maps: &Maps, reservation: &Reservation) -> Option<Info> {
    Info::from_wire(&maps.state(reservation).ok()?)
}

/// The blocks of one list of a program have this in common, and no others have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ListKey {
    mark: ListMark,
    netns: u64,
    owner: u32,
}

impl ListKey {
    fn of(reservation: &Reservation) -> Option<Self> {
        let mark = ListMark::of(&reservation.label)?;
        Some(Self { mark, netns: reservation.netns, owner: reservation.pid })
    }
}

/// The part of its reservation that an event about a block is about.
enum Part {
    /// All of it.
    Whole,
    /// The last block of a list with these ports that was missing, or remained.
    Last(PortList),
    /// Another block of a list.
    Other,
}

/// The lists in force: the BPF programs report each block, people hear of each list.
#[derive(Debug, Default)]
struct Lists {
    by_block: HashMap<u32, ListKey>,
    /// Blocks that the agent has confirmed. Their reservation may have ended when the event of it is read.
    confirmed: HashMap<u32, ListKey>,
    lists: HashMap<ListKey, List>,
}

#[derive(Debug, Default)]
struct List {
    /// All blocks that were granted.
    blocks: Vec<PortRange>,
    /// Of those that have not ended.
    ids: Vec<u32>,
    /// Once they are all there.
    ports: Option<PortList>,
}

impl Lists {
    fn of(maps: &Maps) -> Self {
        let mut lists = Self::default();
        let in_force = maps.reservations().flatten().filter(|(_, reservation)| reservation.state() == wire::ACTIVE);
        for (id, reservation) in in_force {
            if let Some(ports) = reservation.ports() {
                let _ = lists.granted(id, ports, ListKey::of(&reservation));
            }
        }
        lists
    }

    /// A block came into force.
    fn granted(&mut self, id: u32, ports: PortRange, list: Option<ListKey>) -> Part {
        // Its end may have been missed.
        let _ = self.ended(id);
        let Some(key) = list.or(self.confirmed.remove(&id)) else { return Part::Whole };
        let list = self.lists.entry(key).or_default();
        self.by_block.insert(id, key);
        list.ids.push(id);
        list.blocks.push(ports);
        if list.ports.is_some() || list.blocks.len() < key.mark.blocks() {
            return Part::Other;
        }
        list.ports = PortList::new(list.blocks.iter().copied()).ok();
        list.ports.clone().map_or(Part::Other, Part::Last)
    }

    /// A block has ended. One of a list that never was complete is no news.
    fn ended(&mut self, id: u32) -> Part {
        let Some(key) = self.by_block.remove(&id) else { return Part::Whole };
        let hash_map::Entry::Occupied(mut entry) = self.lists.entry(key) else { return Part::Other };
        entry.get_mut().ids.retain(|other| *other != id);
        if !entry.get().ids.is_empty() {
            return Part::Other;
        }
        entry.remove().ports.map_or(Part::Other, Part::Last)
    }

    /// A reservation of the BPF programs, with the other blocks of its list.
    fn whole(&self, maps: &Maps, reservation: &Reservation) -> Option<Info> {
        let block = info(maps, reservation)?;
        let list = ListKey::of(reservation).and_then(|key| Some((key, self.lists.get(&key)?)));
        let Some((key, list)) = list else { return Some(block) };
        let blocks = list.ids.iter().filter_map(|id| maps.reservation(*id).ok()?);
        let its = blocks.filter(|reservation| ListKey::of(reservation) == Some(key));
        Info::join(its.filter_map(|reservation| info(maps, &reservation))).pop().or(Some(block))
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

/// "unit tomcat.service by /etc/portkeep/ports.d/tomcat.toml:3", or whose runtime reservation it is.
fn described(info: &Info) -> String {
    let label = info.name.as_ref().map_or_else(String::new, |name| format!(" as {name:?}"));
    match (&info.owner, &info.audience, &info.origin) {
        (_, Some(audience), Some(origin)) => format!("{audience} by {origin}"),
        (_, Some(audience), None) => format!("{audience}{label}"),
        (Some(owner), None, _) => format!("{owner}{label}"),
        (None, None, _) => format!("a service or cgroup{label}"),
    }
}

/// One line, with the parts as fields for who reads with a program.
fn log(told: &Told) {
    let process = told.process.clone().unwrap_or_default();
    let reservation = told.reservation.as_ref().filter(|info| info.state != State::Ended).map(described);
    let label = told.reservation.as_ref().and_then(|info| info.name.as_deref());
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                what = %told.what,
                process = process.pid,
                command = process.comm,
                uid = process.uid.unwrap_or_default(),
                unit = process.unit,
                ports = %told.ports,
                transports = %told.transports,
                netns = told.netns,
                reservation,
                label,
                "{}",
                told.message
            )
        };
    }
    match told.what {
        Happening::Refused | Happening::Denied | Happening::Exhausted => line!(warn),
        _ => line!(info),
    }
}
