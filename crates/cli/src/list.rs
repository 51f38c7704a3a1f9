//! `list`: all reservations.

use std::io::Write;

use anyhow::bail;

use crate::{
    DONE, Io,
    entry::{self, Entry},
    level::served_here,
    pins::{Pins, Seen},
    table, waiting, when,
};

const AFTER_HELP: &str = "\
Root sees all network namespaces; other users see only their own. Tokens are only shown to those who may use them. \
BOUND counts the ports of the block that have a socket, TCP and UDP apart.

For a persistent reservation, OWNER shows whom it is for. The last column shows the file or command that declared it (if \
an agent runs) and the processes that have its ports bound. Declarations that are not in force are reported on standard \
error; `portkeep persist list` shows them too.

Examples:
  portkeep list
  portkeep list --json | jq -r '.[] | select(.uid == 1000) | .ports'";

/// List reservations and who holds them
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// One JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pins: Pins,
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let entries = entries(&args.pins)?;
    if args.json {
        io.json(&entries)?;
    } else {
        write(&entries, &mut io.out)?;
    }
    for waiting in waiting::list() {
        io.warning(waiting);
    }
    Ok(DONE)
}

/// All that can be seen: of the whole machine with root, else of this network namespace.
pub(crate) fn entries(pins: &Pins) -> anyhow::Result<Vec<Entry>> {
    let mut entries = match pins.look() {
        Seen::Up(instance) => entry::all(&instance)?,
        _ if served_here()?.is_some() => entry::here()?,
        Seen::NotUp => bail!("kernel enforcement is not up, so nothing is reserved"),
        Seen::Hidden(reason) => bail!("kernel enforcement does not serve this cgroup, and {reason}"),
        Seen::Unusable(error) => return Err(error.into()),
    };
    entry::complete(&mut entries)?;
    Ok(entries)
}

fn write(entries: &[Entry], out: &mut dyn Write) -> anyhow::Result<()> {
    let header = ["PORTS", "PROTO", "OWNER", "UID", "SCOPE", "BOUND", "SINCE", "NETNS", "LABEL", "TOKEN", "COMMAND"];
    let mut rows = vec![header.map(String::from)];
    rows.extend(entries.iter().map(row));
    table::write(&rows, out)
}

/// A whole shell script can be an argument.
fn short(command: &str) -> String {
    const ENOUGH: usize = 60;
    match command.char_indices().nth(ENOUGH) {
        Some((at, _)) => format!("{}...", &command[..at]),
        None => command.to_owned(),
    }
}

fn row(entry: &Entry) -> [String; 11] {
    let dash = || "-".to_owned();
    let scope = if entry.persistent { "persistent" } else { &entry.scope };
    let owner = if entry.persistent { entry.owner() } else { format!("{} ({})", entry.pid, entry.comm) };
    [
        entry.ports.to_string(),
        entry.transports.to_string(),
        owner,
        if entry.persistent { dash() } else { entry.uid.to_string() },
        format!("{scope}{}", entry.terms()),
        entry.bound.to_string(),
        when::ago(entry.since_ns),
        entry.netns_name.clone().unwrap_or_else(|| entry.netns.to_string()),
        entry.label.clone().unwrap_or_else(dash),
        entry.token.clone().unwrap_or_else(dash),
        last(entry).unwrap_or_else(dash),
    ]
}

/// The command of a process; of a persistent reservation, where it comes from and who is there.
fn last(entry: &Entry) -> Option<String> {
    if !entry.persistent {
        return entry.command.as_deref().map(short);
    }
    let origin = entry.origin.as_ref().map(|origin| format!("from {origin}"));
    let bound: Vec<String> = entry.bound_by.iter().map(ToString::to_string).collect();
    let bound = (!bound.is_empty()).then(|| format!("bound by {}", bound.join(", ")));
    let parts: Vec<String> = origin.into_iter().chain(bound).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}
