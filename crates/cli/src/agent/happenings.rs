//! What happens, told to people: a line in the log and an event for each that watches.
//!
//! The kernel part tells ids and numbers; here they become a sentence that names
//! who, what, and whose. Refusals come as fast as somebody tries. Each process
//! is told of a few times a second by the kernel part; here all of them together
//! are held to what the configuration allows, and the rest are counted.

use std::time::{Duration, Instant};

use portkeep::persistent::protocol::{Event as Told, Happening};
use portkeep_core::wire;
use portkeep_kernel::{Event, EventKind, Maps, Reservation};
use portkeep_persist::Declared;

use super::{accounts::UserNames, examine::Refusal, registry::Registry};
use crate::{process::Process, when};

const SECOND: Duration = Duration::from_secs(1);

/// Tells what happens.
#[derive(Debug)]
pub(super) struct Happenings {
    names: UserNames,
    per_second: u32,
    second: Instant,
    told: u32,
    untold: u32,
}

/// Who did it.
struct Doer {
    pid: u32,
    uid: u32,
    command: String,
}

impl Happenings {
    pub(super) fn new(per_second: u32) -> Self {
        Self { names: UserNames::default(), per_second, second: Instant::now(), told: 0, untold: 0 }
    }

    pub(super) fn limit(&mut self, per_second: u32) {
        self.per_second = per_second;
    }

    /// An event of the kernel part, logged; what watchers are to be told of it.
    pub(super) fn event(&mut self, event: &Event, maps: &Maps, registry: &Registry) -> Option<Told> {
        let reservation = maps.reservation(event.id).ok().flatten();
        let declared = registry.declared(event.id);
        let doer = Doer { pid: event.pid, uid: event.uid, command: event.comm.clone() };
        let told = match event.kind {
            EventKind::Refused => {
                if !self.may_tell(event.untold) {
                    return None;
                }
                // The entry may be another reservation's by now.
                let hit = reservation.filter(|r| r.ports().is_some_and(|ports| ports.overlaps(event.ports)));
                self.told(event, Happening::Refused, &doer, hit.as_ref(), declared)
            }
            // What an administrator does is told by who asked for it.
            EventKind::Granted | EventKind::Ended if declared.is_some() || event.owner == 0 => return None,
            EventKind::Granted => {
                // Confirmed by the agent: the one that matters is in the books.
                let holder = reservation.as_ref().filter(|r| r.pid != event.pid);
                let doer = holder.map_or(doer, |r| Doer { pid: r.pid, uid: r.uid, command: wire::text(&r.comm) });
                self.told(event, Happening::Granted, &doer, reservation.as_ref(), None)
            }
            EventKind::Ended => self.told(event, Happening::Ended, &doer, None, None),
            _ => return None,
        };
        log(&told);
        Some(told)
    }

    /// A request for particular ports that was not granted.
    pub(super) fn denied(&self, reservation: &Reservation, refusal: &Refusal) -> Option<Told> {
        let (ports, transports) = (reservation.ports()?, reservation.transports()?);
        let doer = Doer { pid: reservation.pid, uid: reservation.uid, command: wire::text(&reservation.comm) };
        let message = format!("{} was not granted {ports}/{transports}: {refusal}", self.name(&doer));
        let told = Told {
            ports,
            transports,
            netns: reservation.netns,
            name: label(reservation),
            message,
            ..self.blank(Happening::Denied, &doer, (ports, transports))
        };
        log(&told);
        Some(told)
    }

    /// An administrator created or deleted a persistent reservation, or a file did.
    pub(super) fn administered(&self, what: Happening, declared: &Declared, netns: u64, by_uid: u32) -> Told {
        let Declared { declaration, origin } = declared;
        let (ports, transports, who) = (declaration.ports, declaration.transports, &declaration.who);
        let doer = Doer { pid: 0, uid: by_uid, command: String::new() };
        let verb = if what == Happening::Ended { "is no longer reserved" } else { "is reserved" };
        let told = Told {
            netns,
            reservation: Some(format!("{who} by {origin}")),
            name: Some(declaration.name.to_string()),
            message: format!("{ports}/{transports} {verb} for {who} as {:?}, by {origin}", declaration.name.as_str()),
            ..self.blank(what, &doer, (ports, transports))
        };
        log(&told);
        told
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
        let mut message = match what {
            Happening::Refused => {
                let reason = reservation.clone().map_or_else(
                    || "nobody has reserved this port of the pool".into(),
                    |whose| format!("reserved for {whose}"),
                );
                format!("{who} was refused {}/{transports}: {reason}", ports.start())
            }
            Happening::Granted => {
                let named = name.as_ref().map_or_else(String::new, |name| format!(" as {name:?}"));
                format!("{who} reserved {ports}/{transports}{named}")
            }
            _ => {
                let by = if doer.pid == event.owner { String::new() } else { format!(", ended by {who}") };
                format!("{ports}/{transports} of pid {} is free again{by}", event.owner)
            }
        };
        if event.untold > 0 {
            message.push_str(&format!(" ({} more tries of it were not told)", event.untold));
        }
        Told {
            when: when::rfc3339(event.when),
            netns: event.netns,
            unit: Process::of(doer.pid).and_then(|process| process.unit),
            reservation,
            name,
            owner: event.owner,
            untold: event.untold,
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
            command: printable(&doer.command),
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
        let user = self.names.of(doer.uid).unwrap_or_else(|| format!("uid {}", doer.uid));
        format!("{} (pid {}, {user})", printable(&doer.command), doer.pid)
    }

    fn may_tell(&mut self, untold: u32) -> bool {
        if self.second.elapsed() >= SECOND {
            self.summarize();
            self.second = Instant::now();
            self.told = 0;
        }
        if self.told >= self.per_second {
            self.untold = self.untold.saturating_add(untold).saturating_add(1);
            return false;
        }
        self.told += 1;
        true
    }

    /// Say how many refusals were not told one by one, if their second is over.
    pub(super) fn summarize(&mut self) {
        if self.untold > 0 && self.second.elapsed() >= SECOND {
            tracing::warn!(count = self.untold, "refused, more of the kind");
            self.untold = 0;
        }
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
    Some(format!("pid {} ({}){label}", hit.pid, printable(&wire::text(&hit.comm))))
}

fn label(reservation: &Reservation) -> Option<String> {
    Some(printable(&wire::text(&reservation.label))).filter(|label| !label.is_empty())
}

/// A terminal and a log are no place for the control characters somebody may have put into a name.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
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
        Happening::Refused | Happening::Denied => line!(warn),
        _ => line!(info),
    }
}
