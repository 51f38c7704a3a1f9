//! `agent`: look after what the kernel part cannot do alone.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::{DONE, Io, agent, pins::Pins};

const AFTER_HELP: &str = "\
The agent looks whether ports outside the pool are vacant before they are reserved, keeps \
net.ipv4.ip_local_reserved_ports in step, and logs what happens. Requests without a port need no agent. It can be \
stopped and started at any time: what is reserved stays reserved.

Examples:
  portkeep agent                          in the foreground, until SIGTERM or SIGINT
  PORTKEEP_LOG=debug portkeep agent       with more to read";

/// Confirm reservations outside the pool, and log what happens
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    pins: Pins,
}

pub(crate) fn run(args: Args, _io: &mut Io<'_>) -> anyhow::Result<u8> {
    let filter = EnvFilter::try_from_env("PORTKEEP_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // Under systemd the journal has the time already.
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // Ignored: whoever runs this in-process may have a subscriber of their own.
    let log = log.with_ansi(std::io::stderr().is_terminal());
    let _ = if in_journal { log.without_time().try_init() } else { log.try_init() };
    agent::run_in_foreground(&args.pins.folder())?;
    Ok(DONE)
}
