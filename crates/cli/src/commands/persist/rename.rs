//! `persist rename`.

use std::io::Write;

use portkeep::persistent::{Change, Name};

use super::agent::{changed, connect};
use crate::{DONE, Io, reservations};

const AFTER_HELP: &str = "\
For a reservation that a command created. Its ports and its token stay, and outsiders cannot bind them meanwhile. To \
rename one that a file declares, change the file and run `portkeep reload`.

Examples:
  portkeep persist rename tomcat tomcat9

Exit status: 3 if there is no such reservation";

/// Give a persistent reservation another name
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Its name
    #[arg(value_name = "OLD")]
    old: Name,
    /// Its name from now on
    #[arg(value_name = "NEW")]
    new: Name,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let change = Change { name: Some(args.new.clone()), ..Change::default() };
    let info = changed(&mut connect(None)?, &args.old, &change)?;
    if args.json {
        io.json(&info)?;
        return Ok(DONE);
    }
    let (ports, transports, whom) = (&info.ports, info.transports, reservations::owner(&info));
    writeln!(io.out, "{} is {} now: {ports}/{transports} for {whom}", args.old, args.new)?;
    Ok(DONE)
}
