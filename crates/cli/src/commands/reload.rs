//! `reload`: the agent reads its files again.

use std::io::Write;

use portkeep::persistent::protocol::Reloaded;

use crate::{DONE, FAILED, Io, commands::persist};

const AFTER_HELP: &str = "\
The agent reads /etc/portkeep/portkeep.toml and the files of ports.d again. New reservations come into \
force, removed ones end, and unchanged ones are not touched. A mistake in a file is reported on standard error and fails \
the command, but all that is valid is applied. `portkeep check` finds mistakes before. Requires an administrator.

Examples:
  portkeep reload
  portkeep check && portkeep reload";

/// Make the agent read the configuration and drop-ins again
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let reloaded = persist::connect(None)?.reload()?;
    if args.json {
        io.json(&reloaded)?;
    } else {
        reloaded.complaints.iter().for_each(|complaint| io.warning(complaint));
        reloaded.errors.iter().for_each(|error| io.error(error));
        let Reloaded { added, changed, removed, waiting, .. } = reloaded;
        let see = if waiting > 0 { " (see `portkeep persist list`)" } else { "" };
        writeln!(io.out, "reloaded: {added} added, {changed} changed, {removed} removed; {waiting} not in force{see}")?;
    }
    Ok(if reloaded.errors.is_empty() { DONE } else { FAILED })
}
