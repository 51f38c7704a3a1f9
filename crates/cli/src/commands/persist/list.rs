//! `persist list`.

use std::io::{Write, stdout};

use portkeep::{Info, State};

use super::view;
use crate::{
    DONE, Io,
    args::sources::Places,
    render::table::{self, Look},
    reservations,
};

const AFTER_HELP: &str = "\
STATE is `in force`; `waits` if it cannot be in force yet (the next line has the reason; the agent tries again); or \
`conflict` if another declaration has the port or the name. FROM is the file and line, or the command's user.

Examples:
  portkeep persist list
  portkeep persist list --json | jq -r '.[] | select(.state != \"active\") | .name'";

/// List what is declared, in force or not
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    /// One JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    places: Places,
}

pub(super) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let declared = view::look(&args.places, io)?.declared;
    if args.json {
        io.json(&declared)?;
        return Ok(DONE);
    }
    let mut rows = vec![["NAME", "PORTS", "PROTO", "FOR", "STATE", "FROM"].map(String::from)];
    rows.extend(declared.iter().map(row));
    let (widths, colour) = (table::widths(&rows), table::has_colour(&stdout()));
    writeln!(io.out, "{}", Look::Header.if_colour(colour).of(&table::line(&rows[0], &widths)))?;
    for (row, info) in rows[1..].iter().zip(&declared) {
        let look = if info.state == State::Active { Look::Plain } else { Look::Special };
        writeln!(io.out, "{}", look.if_colour(colour).of(&table::line(row, &widths)))?;
        if let Some(reason) = &info.reason {
            writeln!(io.out, "    {reason}")?;
        }
    }
    Ok(DONE)
}

fn row(info: &Info) -> [String; 6] {
    [
        info.name.clone().unwrap_or_default(),
        info.ports.to_string(),
        info.transports.to_string(),
        format!("{}{}", reservations::owner(info), reservations::terms(info)),
        view::word(info.state),
        info.origin.as_ref().map(ToString::to_string).unwrap_or_default(),
    ]
}
