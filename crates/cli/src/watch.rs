//! `watch`: what happens, as it happens.

use std::io::Write;

use crate::{DONE, Io, persist};

const AFTER_HELP: &str = "\
Tells each reservation that comes into force, is denied or ends, and each bind of an outsider that was refused: which \
process it was, and whose port it wanted. It ends when the agent does. A process that tries again and again is told \
once in a while, with the number of its refusals since. Takes an administrator.

Examples:
  portkeep watch
  portkeep watch --json | jq -r 'select(.what == \"refused\") | .command'";

/// Tell what happens from now on
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
    Ok(DONE)
}
