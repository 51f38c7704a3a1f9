//! `reload`: the agent reads its files again.

use std::io::Write;

use crate::{DONE, Io, persist};

const AFTER_HELP: &str = "\
The agent reads /etc/portkeep/portkeep.toml and the files of ports.d again. New reservations come into \
force, removed ones end, and unchanged ones are not touched. Errors in a file are reported on standard error and do not \
fail the reload: valid entries are applied. Run `portkeep check` first. Requires an administrator.

Examples:
  portkeep reload
  portkeep check && portkeep reload";

/// Make the agent read its configuration and the drop-ins again
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let reloaded = persist::connect(None)?.reload()?;
    if args.json {
        io.json(&reloaded)?;
        return Ok(DONE);
    }
    for complaint in &reloaded.complaints {
        let _ = writeln!(io.err, "{complaint}");
    }
    let (added, removed, waiting) = (reloaded.added, reloaded.removed, reloaded.waiting);
    let see = if waiting > 0 { " (see `portkeep persist list`)" } else { "" };
    writeln!(io.out, "reloaded: {added} added, {removed} removed; {waiting} not in force{see}")?;
    Ok(DONE)
}
