//! Events, reported to people: a line in the log and an event for each watcher.
//!
//! The BPF programs report ids and numbers; here they become a sentence that names which process, which ports and whose
//! they are. Users can make things happen as fast as they like, so each account has a [`Budget`], and what repeats
//! fades. Omitted events are counted.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use portkeep::persistent::protocol::{Event as Told, Happening};
use portkeep_core::wire;
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
use crate::{
    process::{Process, in_first_pid_namespace},
    when,
};

/// How long the end of a request that was refused may take to be reported.
const REFUSED_ENDS: Duration = Duration::from_secs(5);

/// The key of repeated events: the same kind, by the same account, with a command of the same name.
type Kind = (Happening, u32, String);

/// Reports what happens.
#[derive(Debug)]
pub(super) struct Happenings {
    names: UserNames,
    budget: Budget<Kind, (Doer, Told)>,
    /// Requests that were refused a moment ago: their end is no news.
    refused: HashMap<u32, Instant>,
    /// Whether pids here mean what they mean to the BPF programs.
    first_pids: bool,
}

/// Which process did it.
#[derive(Clone, Debug)]
struct Doer {
    pid: u32,
    uid: u32,
    command: String,
    /// Its unit or cgroup, if it still runs.
    unit: Option<String>,
}

impl Happenings {
    pub(super) fn new(per_second: u32) -> Self {
        Self {
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
            _ => return None,
        };
        if what == Happening::Ended && self.was_refused(event.id) {
            return None;
        }
        let declared = registry.declared(event.id);
        // An administrator's action is reported where it is done.
        if matches!(what, Happening::Granted | Happening::Ended) && (declared.is_some() || event.owner == 0) {
            return None;
        }
        let reservation = maps.reservation(event.id).ok().flatten();
        // Confirmed by the agent: the process that asked is in the entry.
        let holder = reservation.as_ref().filter(|r| what == Happening::Granted && r.pid != event.pid);
        let doer = match holder {
            Some(r) => Doer { pid: r.pid, uid: r.uid, command: wire::text(&r.comm), unit: None },
            None => Doer { pid: event.pid, uid: event.uid, command: event.comm.clone(), unit: None },
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
        let told = self.told(event, what, &doer, hit.as_ref(), declared);
        self.report(owners.account(doer.uid), event.untold, doer, told)
    }

    /// A request for particular ports that was not granted.
    pub(super) fn denied(
        &mut self,
        id: u32,
        reservation: &Reservation,
        refusal: &Refusal,
        owners: &Owners,
    ) -> Option<Told> {
        let (ports, transports) = (reservation.ports()?, reservation.transports()?);
        self.refused.retain(|_, when| when.elapsed() < REFUSED_ENDS);
        self.refused.insert(id, Instant::now());
        let doer =
            Doer { pid: reservation.pid, uid: reservation.uid, command: wire::text(&reservation.comm), unit: None };
        let message = format!("{} was not granted {ports}/{transports}: {refusal}", self.name(&doer));
        let told = Told {
            netns: reservation.netns,
            name: label(reservation),
            message,
            ..self.blank(Happening::Denied, &doer, (ports, transports))
        };
        self.report(owners.account(doer.uid), 0, doer, told)
    }

    /// Whether this is the end of a request that was refused: it had never been granted.
    fn was_refused(&mut self, id: u32) -> bool {
        self.refused.remove(&id).is_some_and(|when| when.elapsed() < REFUSED_ENDS)
    }

    /// An administrator created or deleted a persistent reservation.
    pub(super) fn administered(&self, what: Happening, declared: &Declared, netns: u64, by: &Peer) -> Told {
        let Declared { declaration, origin } = declared;
        let (ports, transports, who) = (declaration.ports, declaration.transports, &declaration.who);
        let process = Process::of(by.pid);
        let command = process.as_ref().map_or_else(String::new, |process| process.comm.clone());
        let doer = Doer { pid: by.pid, uid: by.uid, command, unit: process.and_then(|process| process.unit) };
        let verb = if what == Happening::Ended { "is no longer reserved" } else { "is reserved" };
        let name = self.name(&doer);
        let told = Told {
            netns,
            unit: doer.unit.clone(),
            reservation: Some(format!("{who} by {origin}")),
            name: Some(declaration.name.to_string()),
            message: format!("{ports}/{transports} {verb} for {who} as {:?}, by {name}", declaration.name.as_str()),
            ..self.blank(what, &doer, (ports, transports))
        };
        log(&told);
        told
    }

    /// Log what may be logged now, and count the rest.
    fn report(&mut self, account: u32, more: u32, doer: Doer, mut told: Told) -> Option<Told> {
        let pace = match told.what {
            Happening::Refused | Happening::Denied | Happening::Exhausted => Pace::Fading,
            _ => Pace::Steady,
        };
        let kind = (told.what, account, doer.command.clone());
        let now = Instant::now();
        told.untold = self.budget.report(now, (account, pace), &kind, more, (doer.clone(), told.clone()))?;
        if told.untold > 0 {
            told.message.push_str(&format!(" ({} more of the kind were not reported)", told.untold));
        }
        told.unit = self.unit_of(&doer);
        log(&told);
        Some(told)
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

    fn summary(&self, LeftOut { what: (what, ..), last: (doer, last), count }: LeftOut<Kind, (Doer, Told)>) -> Told {
        let verb = match what {
            Happening::Refused => "was refused",
            Happening::Granted => "reserved ports",
            Happening::Denied => "was not granted ports",
            Happening::Exhausted => "found its private ephemeral range used up",
            _ => "ended reservations",
        };
        let times = if count == 1 { "once".into() } else { format!("{count} times") };
        let name = self.name(&doer);
        let message = format!("{name} {verb} {times} more, the last time: {}", last.message);
        let told = Told { untold: count - 1, unit: self.unit_of(&doer), message, ..last };
        log(&told);
        told
    }

    fn unit_of(&self, doer: &Doer) -> Option<String> {
        if doer.unit.is_some() || !self.first_pids || doer.pid == 0 {
            return doer.unit.clone();
        }
        Process::of(doer.pid).and_then(|process| process.unit)
    }

    fn told(
        &self,
        event: &Event,
        what: Happening,
        doer: &Doer,
        hit: Option<&Reservation>,
        declared: Option<&Declared>,
    ) -> Told {
        let (ports, transports) = (event.ports, event.transports);
        let reservation = whose(hit, declared);
        let name = declared.map(|declared| declared.declaration.name.to_string()).or_else(|| label(hit?));
        let who = self.name(doer);
        let message = match what {
            Happening::Refused => {
                // The reservation may have ended meanwhile.
                let whose = reservation.clone().unwrap_or_else(|| "a reservation that has ended".into());
                format!("{who} was refused {}/{transports}: reserved for {whose}", ports.start())
            }
            Happening::Exhausted => format!(
                "{who} got no port for a bind to port 0: all of its private ephemeral range, {ports}/{transports}, are in use"
            ),
            Happening::Granted => {
                let named = name.as_ref().map_or_else(String::new, |name| format!(" as {name:?}"));
                format!("{who} reserved {ports}/{transports}{named}")
            }
            _ => {
                let by = if doer.pid == event.owner { String::new() } else { format!(", ended by {who}") };
                format!("{ports}/{transports} of pid {} is free again{by}", event.owner)
            }
        };
        Told {
            when: when::rfc3339(event.when),
            netns: event.netns,
            reservation,
            name,
            owner: event.owner,
            message,
            ..self.blank(what, doer, (ports, transports))
        }
    }

    fn blank(
        &self,
        what: Happening,
        doer: &Doer,
        (ports, transports): (portkeep::PortRange, portkeep::Transports),
    ) -> Told {
        Told {
            when: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
            what,
            ports,
            transports,
            netns: 0,
            pid: doer.pid,
            command: doer.command.clone(),
            uid: doer.uid,
            user: self.names.of(doer.uid),
            unit: None,
            reservation: None,
            name: None,
            owner: 0,
            untold: 0,
            message: String::new(),
        }
    }

    /// "nginx (pid 812, www-data)".
    fn name(&self, doer: &Doer) -> String {
        if doer.pid == 0 && doer.command.is_empty() {
            return "an administrator".into();
        }
        let user = self.names.of(doer.uid).unwrap_or_else(|| format!("uid {}", doer.uid));
        format!("{} (pid {}, {user})", doer.command, doer.pid)
    }
}

/// "unit tomcat.service by /etc/portkeep/ports.d/tomcat.toml:3", or whose runtime reservation it is.
fn whose(hit: Option<&Reservation>, declared: Option<&Declared>) -> Option<String> {
    if let Some(Declared { declaration, origin }) = declared {
        return Some(format!("{} by {origin}", declaration.who));
    }
    let hit = hit?;
    let label = label(hit).map_or_else(String::new, |label| format!(" as {label:?}"));
    if hit.is_persistent() {
        return Some(format!("{}{label}", hit.scope()));
    }
    Some(format!("pid {} ({}){label}", hit.pid, wire::text(&hit.comm)))
}

fn label(reservation: &Reservation) -> Option<String> {
    Some(wire::text(&reservation.label)).filter(|label| !label.is_empty())
}

/// One line, with the parts as fields for who reads with a program.
fn log(told: &Told) {
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                process = told.pid,
                command = told.command,
                uid = told.uid,
                unit = told.unit,
                ports = %told.ports,
                transports = %told.transports,
                netns = told.netns,
                reservation = told.reservation,
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
