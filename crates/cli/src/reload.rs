//! `reload`: the agent reads its files again.

use std::io::Write;

use crate::{DONE, Io, persist};

const AFTER_HELP: &str = "\
The agent reads /etc/portkeep/portkeep.toml and the files of ports.d again: what is new comes into force, what is gone \
ends, what is the same is not touched. What is wrong with a file is told on standard error, and is no failure: all \
that is right stands. Look before with `portkeep check`. Takes an administrator.

Examples:
  portkeep reload
  portkeep check && portkeep reload";

/// Let the agent read its configuration and the drop-ins again
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
    writeln!(io.out, "read again: {added} came into force, {removed} ended, {waiting} not in force")?;
    Ok(DONE)
}
