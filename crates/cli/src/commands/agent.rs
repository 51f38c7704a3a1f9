//! `agent`: run the agent, which does what kernel enforcement cannot do alone.

use std::io::IsTerminal;

use anyhow::Context;
use rustix::process::{Resource, getrlimit, setrlimit};
use tracing_subscriber::{filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{DONE, Io, agent, args::sources::Sources, commands::up, level::Place};

const AFTER_HELP: &str = "\
The agent keeps in force what drop-in files and `persist add` declare, checks whether ports outside the pool are \
vacant before they are reserved, keeps net.ipv4.ip_local_reserved_ports in step, and reports events. Requests \
without a port need no agent. It can be stopped and started at any time: what is reserved stays reserved. SIGHUP makes \
it read its files again.

Examples:
  portkeep agent                          in the foreground, until SIGTERM or SIGINT
  portkeep agent --up                     the same, and bring kernel enforcement up if it is not
  PORTKEEP_LOG=debug portkeep agent       with more detail";

/// Run the agent, for declared and for particular ports
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Bring kernel enforcement up first, as the configuration says, if it is not up
    #[arg(long)]
    up: bool,
    #[command(flatten)]
    sources: Sources,
    #[command(flatten)]
    place: Place,
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let config = args.sources.config()?;
    start_log(io);
    raise_file_limit();
    if args.up {
        let instance =
            up::by_configuration(&args.place, &args.sources.load()?).context("bringing kernel enforcement up")?;
        let how = if instance.is_newly_up() { "brought up" } else { "up already" };
        tracing::info!(pins = %instance.folder().display(), "kernel enforcement is {how}");
    }
    // This reports more than opening the instance: whether it is up elsewhere, or only root can see it.
    args.place.pins.open()?;
    let options = agent::Options { config, root: args.sources.root().to_owned(), ..agent::Options::default() };
    agent::run_in_foreground(&args.place.pins.folder(), &options)?;
    Ok(DONE)
}

/// Raise the limit of open files to its maximum. The agent keeps a descriptor for each namespace that it has entries
/// in, and for each connection.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

/// If standard error goes to the journal, log to the journal, with fields. Otherwise log as text.
fn start_log(io: &mut Io<'_>) {
    let filter = level(io);
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let registry = tracing_subscriber::registry().with(filter);
    // The error is ignored: a program that runs this in-process may have a subscriber of its own.
    let _ = match tracing_journald::layer() {
        Ok(journal) if in_journal => registry.with(journal).try_init(),
        _ => {
            let text = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
            let text = text.with_ansi(std::io::stderr().is_terminal());
            if in_journal { registry.with(text.without_time()).try_init() } else { registry.with(text).try_init() }
        }
    };
}

/// The least important messages that are logged.
fn level(io: &mut Io<'_>) -> LevelFilter {
    let Ok(name) = std::env::var("PORTKEEP_LOG") else { return LevelFilter::INFO };
    name.parse().unwrap_or_else(|_| {
        io.warning(format_args!(
            "PORTKEEP_LOG: {name:?} is no level; they are error, warn, info and debug. info is used"
        ));
        LevelFilter::INFO
    })
}
