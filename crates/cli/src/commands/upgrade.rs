//! `upgrade`: load this version's programs, while the reservations stay in force.

use std::io::Write;

use anyhow::Context;
use portkeep_kernel::{BUILD, Instance};
use serde::Serialize;

use crate::{DONE, Io, args::pins::Pins};

const AFTER_HELP: &str = "\
Swaps the programs in the kernel for those of this portkeep. Reservations stay, and enforcement has no gap. Run it \
after the package was updated. If the two versions keep their state in different layouts it is refused.

Examples:
  portkeep upgrade";

/// Swap the loaded BPF programs for those of this version
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pins: Pins,
}

#[derive(Debug, Serialize)]
struct Report {
    upgraded: bool,
    build: String,
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let upgraded = Instance::upgrade(&args.pins.folder()).context("upgrading kernel enforcement")?;
    let report = Report { upgraded, build: format!("{BUILD:016x}") };
    if args.json {
        io.json(&report)?;
    } else if upgraded {
        writeln!(io.out, "upgraded to build {}", report.build)?;
    } else {
        writeln!(io.out, "build {} is up already", report.build)?;
    }
    Ok(DONE)
}
