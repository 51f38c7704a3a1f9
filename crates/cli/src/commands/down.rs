//! `down`: take kernel enforcement away.

use std::io::Write;

use anyhow::Context;
use portkeep::persistent::protocol::Reason;
use portkeep_kernel::{Instance, InstanceError};
use serde::Serialize;

use crate::{
    DONE, Io, agent,
    args::pins::{Pins, Seen},
    exit::refused,
};

const AFTER_HELP: &str = "\
All reservations end. Sockets keep what they have bound, and nothing of Portkeep stays behind in the kernel.

Examples:
  portkeep down";

/// Take kernel enforcement away, and all reservations with it
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
    was_up: bool,
    reservations_ended: u32,
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let down = match args.pins.look() {
        Seen::Hidden(reason) => return Err(refused(Reason::NotAllowed, reason)),
        Seen::NotUp => args.pins.not_elsewhere().map(|()| Instance::down(&args.pins.folder()))?,
        // Even if it seems not to be up, an `up` that was killed can have left remains.
        _ => Instance::down(&args.pins.folder()),
    };
    let report = match down {
        Ok(report) => Report { was_up: true, reservations_ended: report.reservations },
        // Nothing is left to do.
        Err(InstanceError::NotUp(_)) => Report { was_up: false, reservations_ended: 0 },
        Err(error) => return Err(error).context("taking kernel enforcement away"),
    };
    // The entries of `up` and the agent in the sysctl are for reservations that no longer exist.
    if report.was_up
        && let Some(complaint) = agent::leave_overlap()
    {
        io.warning(complaint);
    }
    if args.json {
        io.json(&report)?;
    } else if report.was_up {
        let s = if report.reservations_ended == 1 { "" } else { "s" };
        writeln!(io.out, "down; {} reservation{s} ended", report.reservations_ended)?;
    } else {
        writeln!(io.out, "was not up")?;
    }
    Ok(DONE)
}
