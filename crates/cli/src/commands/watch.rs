//! `watch`: events, as they happen, and earlier events from the journal.

use std::{
    collections::HashSet,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};
use clap::ValueEnum;
use portkeep::{
    Process, Time, Transports,
    persistent::protocol::{Event, EventKind},
};
use serde_json::Value;

use crate::{
    DONE, FAILED, Io,
    args::filter::{Filter, Selection},
    commands::persist,
    render::local_time::local,
    waiting,
};

const AFTER_HELP: &str = "\
Prints a line when a reservation comes into force, is denied or ends, and when a bind of an outsider is refused: the \
process, and the owner of the port that it wanted. Repeated events are limited and counted (`events.per_second` in \
portkeep.toml(5)). The command ends, with status 1, when the agent ends. Requires an administrator.

--since first shows the events in the journal since a time, written as for journalctl(1): `today`, `1 hour ago`, `2026-11-25 \
09:30`. --uid and --unit select events by the process that caused them, or by the owner of the reservation.

Examples:
  portkeep watch
  portkeep watch 8443 --what refused
  portkeep watch --since today --no-follow --unit nginx.service
  portkeep watch --json | jq -r 'select(.what == \"refused\") | .process.command'";

/// Follow events
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Only these kinds: granted, denied, ended, refused, exhausted
    #[arg(long, value_name = "KINDS", value_delimiter = ',', hide_possible_values = true)]
    what: Vec<Kind>,
    /// Show events since this time first, from the journal
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    since: Option<String>,
    /// Only what the journal has
    #[arg(long, requires = "since")]
    no_follow: bool,
    /// A JSON object in each line
    #[arg(long)]
    json: bool,
}

/// The kinds of events, as arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Granted,
    Denied,
    Ended,
    Refused,
    Exhausted,
}

impl Kind {
    const fn is(self, what: EventKind) -> bool {
        matches!(
            (self, what),
            (Self::Granted, EventKind::Granted)
                | (Self::Denied, EventKind::Denied)
                | (Self::Ended, EventKind::Ended)
                | (Self::Refused, EventKind::Refused)
                | (Self::Exhausted, EventKind::Exhausted)
        )
    }
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let selection = args.filter.resolve(waiting::ask().declared())?;
    // Connected before the journal is read, so that nothing is missed in between.
    let live = match args.no_follow {
        true => None,
        false => Some(persist::connect(None).and_then(|agent| Ok(agent.watch()?))),
    };
    let (mut shown, mut selected) = (HashSet::new(), 0);
    if let Some(since) = &args.since {
        for (event, label) in history(since)? {
            if args.selects(&selection, &event, label.as_deref()) {
                args.show(&event, io)?;
                selected += 1;
            }
            shown.insert((event.when, event.message));
        }
        if selected == 0 && args.no_follow {
            io.note(format_args!("no entries since {since}"));
        }
    }
    let Some(live) = live else { return Ok(DONE) };
    for event in live? {
        let event = event?;
        let again = shown.remove(&(event.when, event.message.clone()));
        if !again && args.selects(&selection, &event, None) {
            args.show(&event, io)?;
        }
    }
    io.note("the agent has ended");
    Ok(FAILED)
}

impl Args {
    fn selects(&self, selection: &Selection, event: &Event, label: Option<&str>) -> bool {
        (self.what.is_empty() || self.what.iter().any(|kind| kind.is(event.what))) && selection.has_event(event, label)
    }

    fn show(&self, event: &Event, io: &mut Io<'_>) -> anyhow::Result<()> {
        if self.json {
            return io.json(event);
        }
        // One write: other processes may write to the same stream.
        io.out.write_all(format!("{} {}\n", local(event.when), event.message).as_bytes())?;
        Ok(io.out.flush()?)
    }
}

/// The events that the journal has, with the names of the reservations that they are about.
fn history(since: &str) -> anyhow::Result<Vec<(Event, Option<String>)>> {
    let mut journal = Command::new("journalctl")
        .args(["--output=json", "--no-pager", "--quiet", "--identifier=portkeep"])
        .arg(format!("--since={since}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("reading the journal with journalctl(1), for --since")?;
    let mut found = Vec::new();
    for line in BufReader::new(journal.stdout.take().context("no output of journalctl")?).lines() {
        found.extend(serde_json::from_str(&line?).ok().as_ref().and_then(event));
    }
    let ended = journal.wait_with_output().context("waiting for journalctl")?;
    if !ended.status.success() {
        bail!("journalctl, for --since: {}", String::from_utf8_lossy(&ended.stderr).trim());
    }
    Ok(found)
}

/// The event in an entry of the journal, with the name of its reservation; `None` if it is something else.
fn event(entry: &Value) -> Option<(Event, Option<String>)> {
    let text = |key: &str| match &entry[key] {
        Value::String(text) => Some(text.clone()),
        // A text that is not plain is an array of bytes.
        Value::Array(bytes) => {
            let bytes = bytes.iter().map(|byte| byte.as_u64().and_then(|byte| u8::try_from(byte).ok()));
            Some(String::from_utf8_lossy(&bytes.collect::<Option<Vec<u8>>>()?).into_owned())
        }
        _ => None,
    };
    let microseconds: u64 = text("__REALTIME_TIMESTAMP")?.parse().ok()?;
    let transports = [Transports::Tcp, Transports::Udp, Transports::Both];
    let transports = transports.into_iter().find(|each| Some(each.to_string()) == text("F_TRANSPORTS"))?;
    let process = text("F_COMMAND").filter(|command| !command.is_empty()).map(|comm| Process {
        pid: text("F_PROCESS").and_then(|pid| pid.parse().ok()).unwrap_or_default(),
        comm,
        uid: text("F_UID").and_then(|uid| uid.parse().ok()),
        unit: text("F_UNIT"),
        ..Process::default()
    });
    let event = Event {
        when: Time::from_unix(microseconds / 1_000_000),
        what: serde_json::from_value(Value::String(text("F_WHAT")?)).ok()?,
        ports: text("F_PORTS")?.parse().ok()?,
        transports,
        netns: text("F_NETNS")?.parse().ok()?,
        process,
        reservation: None,
        unreported: 0,
        message: text("MESSAGE")?,
    };
    Some((event, text("F_LABEL")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_entry_of_the_journal_is_an_event() {
        let entry = json!({
            "__REALTIME_TIMESTAMP": "1764063000123456", "PRIORITY": "4", "SYSLOG_IDENTIFIER": "portkeep",
            "MESSAGE": "python3 (pid 812, bob) was refused 8443/tcp: reserved for unit nginx.service by /etc/x.toml:1",
            "F_WHAT": "refused", "F_PORTS": "8443", "F_TRANSPORTS": "tcp", "F_NETNS": "1", "F_PROCESS": "812",
            "F_COMMAND": "python3", "F_UID": "1000", "F_UNIT": "session-1.scope", "F_LABEL": "web",
        });
        let (found, label) = event(&entry).unwrap();
        assert_eq!((found.what, found.ports.start(), label.as_deref()), (EventKind::Refused, 8443, Some("web")));
        assert_eq!(found.when.to_string(), "2025-11-25T09:30:00Z");
        let process = found.process.clone().unwrap();
        assert_eq!((process.pid, process.uid, process.unit.as_deref()), (812, Some(1000), Some("session-1.scope")));
        assert!(Kind::Refused.is(found.what) && !Kind::Ended.is(found.what));

        let mut bytes = entry.clone();
        bytes["MESSAGE"] = json!([104, 105, 27]);
        assert_eq!(event(&bytes).unwrap().0.message, "hi\u{1b}");
        let mut other = entry;
        other.as_object_mut().unwrap().remove("F_WHAT");
        assert_eq!(event(&other), None, "the agent says other things, too");
    }
}
