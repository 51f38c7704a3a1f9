//! `persist show`.

use std::io::Write;

use portkeep::{
    Transport,
    persistent::{Entry, Name, Origin},
};
use serde::Serialize;

use super::view::{self, Flat};
use crate::{
    DONE, Io, NOTHING,
    pins::Pins,
    process::{Binders, Process},
    sources::Sources,
};

const AFTER_HELP: &str = "\
Only root can see which processes of other users have a port bound.

Examples:
  portkeep persist show tomcat
  portkeep persist show tomcat --json | jq -r '.bound[].by[].pid'

Exit status: 3 if there is no such reservation";

/// Show everything about one of them
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Its name
    name: Name,
    /// One JSON array; more than one element if the name is declared more than once
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pins: Pins,
    #[command(flatten)]
    sources: Sources,
}

/// A port that somebody has bound.
#[derive(Debug, Serialize)]
struct Bound {
    port: u16,
    transport: Transport,
    /// Those that can be seen from here.
    by: Vec<Process>,
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    entry: Flat<'a>,
    bound: Vec<Bound>,
}

pub(super) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let entries = view::look(&args.pins, &args.sources, io)?.entries;
    let found: Vec<&Entry> = entries.iter().filter(|entry| entry.declaration.name == args.name).collect();
    if args.json {
        let shown = found.iter().map(|entry| Shown { entry: Flat::from(*entry), bound: bound(entry) });
        io.json(&shown.collect::<Vec<_>>())?;
    } else {
        for entry in &found {
            write(entry, &mut io.out)?;
        }
    }
    if found.is_empty() {
        io.error(format_args!("there is no persistent reservation {}", args.name));
        return Ok(NOTHING);
    }
    Ok(DONE)
}

fn bound(entry: &Entry) -> Vec<Bound> {
    let declaration = &entry.declaration;
    let of = |transport| {
        let binders = Binders::in_block(transport, declaration.ports);
        binders.into_iter().map(move |(port, binders)| Bound { port, transport, by: binders.known })
    };
    declaration.transports.iter().flat_map(of).collect()
}

fn write(entry: &Entry, out: &mut dyn Write) -> anyhow::Result<()> {
    let declaration = &entry.declaration;
    writeln!(out, "{} {}/{}", declaration.name, declaration.ports, declaration.transports)?;
    let mut line = |name: &str, value: &str| writeln!(out, "  {name:<12} {value}");
    line("for", &declaration.who.to_string())?;
    let reason = view::reason(&entry.standing).map_or_else(String::new, |reason| format!(": {reason}"));
    line("state", &format!("{}{reason}", view::word(&entry.standing)))?;
    if !declaration.description.is_empty() {
        line("description", &declaration.description)?;
    }
    line("from", &entry.origin.to_string())?;
    if let Origin::Store { since, .. } | Origin::Active { since, .. } = entry.origin {
        let since = std::time::UNIX_EPOCH + std::time::Duration::from_secs(since);
        line("created", &humantime::format_rfc3339_seconds(since).to_string())?;
    }
    if declaration.strict {
        line("strict", "associated sockets only")?;
    }
    if declaration.ephemeral {
        line("ephemeral", "binds to port 0 of those it is for draw from it")?;
    }
    if declaration.around {
        line("around", "sockets of those it is for may have been there before it")?;
    }
    if let Some(token) = &entry.token {
        line("token", token)?;
    }
    let bound = bound(entry);
    if bound.is_empty() {
        line("bound by", "no process")?;
    }
    for (index, Bound { port, transport, by }) in bound.iter().enumerate() {
        let who: Vec<String> = by
            .iter()
            .map(|process| match &process.unit {
                Some(unit) => format!("{process} of {unit}"),
                None => process.to_string(),
            })
            .collect();
        let who = if who.is_empty() { "a process that cannot be seen from here".into() } else { who.join(", ") };
        line(if index == 0 { "bound by" } else { "" }, &format!("{who}: {port}/{transport}"))?;
    }
    Ok(())
}
