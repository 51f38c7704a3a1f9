//! `persist list`.

use std::io::Write;

use portkeep::persistent::Entry;

use super::view::{self, Flat};
use crate::{DONE, Io, pins::Pins, sources::Sources, table};

const AFTER_HELP: &str = "\
STATE is `in force`; `waits` if something is in its way (the next line says what; the agent tries again); or \
`conflict` if another declaration has the port or the name. FROM is the file and line, or the command's user.

Examples:
  portkeep persist list
  portkeep persist list --json | jq -r '.[] | select(.state != \"active\") | .name'";

/// List what is declared, in force or not
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// One JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pins: Pins,
    #[command(flatten)]
    sources: Sources,
}

pub(super) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let entries = view::look(&args.pins, &args.sources, io)?.entries;
    if args.json {
        io.json(&entries.iter().map(Flat::from).collect::<Vec<_>>())?;
        return Ok(DONE);
    }
    let mut rows = vec![["NAME", "PORTS", "PROTO", "FOR", "STATE", "FROM"].map(String::from)];
    rows.extend(entries.iter().map(row));
    let widths = table::widths(&rows);
    writeln!(io.out, "{}", table::line(&rows[0], &widths))?;
    for (row, entry) in rows[1..].iter().zip(&entries) {
        writeln!(io.out, "{}", table::line(row, &widths))?;
        if let Some(reason) = view::reason(&entry.standing) {
            writeln!(io.out, "    {reason}")?;
        }
    }
    Ok(DONE)
}

fn row(entry: &Entry) -> [String; 6] {
    let declaration = &entry.declaration;
    let strict = if declaration.strict { ", strict" } else { "" };
    let ephemeral = if declaration.ephemeral { ", ephemeral" } else { "" };
    [
        declaration.name.to_string(),
        declaration.ports.to_string(),
        declaration.transports.to_string(),
        format!("{}{strict}{ephemeral}", declaration.who),
        view::word(&entry.standing).into(),
        entry.origin.to_string(),
    ]
}
