//! `list`: all reservations.

use std::io::Write;

use anyhow::bail;

use crate::{
    DONE, Io,
    entry::{self, Entry},
    level::served_here,
    pins::{Pins, Seen},
    when,
};

const AFTER_HELP: &str = "\
Root sees all network namespaces, everybody else sees the own one. Tokens are only shown to those who may use them. \
BOUND counts the ports of the block that have a socket, TCP and UDP apart.

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
        table(&entries, &mut io.out)?;
    }
    Ok(DONE)
}

/// All that can be seen: of the whole machine with root, else of this network namespace.
pub(crate) fn entries(pins: &Pins) -> anyhow::Result<Vec<Entry>> {
    match pins.look() {
        Seen::Up(instance) => entry::all(&instance),
        _ if served_here()?.is_some() => entry::here(),
        Seen::NotUp => bail!("the kernel part is not up, so nothing is reserved"),
        Seen::Hidden(reason) => bail!("the kernel part does not serve this cgroup, and {reason}"),
        Seen::Unusable(error) => Err(error.into()),
    }
}

fn table(entries: &[Entry], out: &mut dyn Write) -> anyhow::Result<()> {
    let header = ["PORTS", "PROTO", "OWNER", "UID", "SCOPE", "BOUND", "SINCE", "NETNS", "LABEL", "TOKEN", "COMMAND"];
    let mut rows = vec![header.map(String::from)];
    rows.extend(entries.iter().map(row));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 11] = std::array::from_fn(width);
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
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
    [
        entry.ports.to_string(),
        entry.transports.to_string(),
        format!("{} ({})", entry.pid, entry.comm),
        entry.uid.to_string(),
        if entry.strict { format!("{}, strict", entry.scope) } else { entry.scope.to_owned() },
        entry.bound.to_string(),
        when::ago(entry.since_ns),
        entry.netns_name.clone().unwrap_or_else(|| entry.netns.to_string()),
        entry.label.clone().unwrap_or_else(dash),
        entry.token.clone().unwrap_or_else(dash),
        entry.command.as_deref().map_or_else(dash, short),
    ]
}
