//! `watch`: what happens, as it happens.

use std::io::Write;

use crate::{FAILED, Io, persist};

const AFTER_HELP: &str = "\
Prints a line when a reservation comes into force, is denied or ends, and when a bind of an outsider is refused: the \
process, and the owner of the port that it wanted. Repeated events are limited and counted (`events.per_second` in \
portkeep.toml(5)). The command ends, with status 1, when the agent ends. Requires an administrator.

Examples:
  portkeep watch
  portkeep watch --json | jq -r 'select(.what == \"refused\") | .process.command'";

/// Follow events
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// A JSON object in each line
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    for event in persist::connect(None)?.watch()? {
        let event = event?;
        if args.json {
            io.json(&event)?;
        } else {
            writeln!(io.out, "{} {}", event.when, event.message)?;
            io.out.flush()?;
        }
    }
    io.note("the agent has ended");
    Ok(FAILED)
}
