//! `acquire`: ports on several hosts for a script, until its standard input ends.

use std::{io, sync::mpsc, thread};

use anyhow::Context;
use portkeep_cli::Exit;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{
    ask::Ask,
    config::Config,
    view::{self, JobState},
};

const AFTER_HELP: &str = "\
Prints the ports on one line, `20000-20007 tcp train42` (ports, transport, name), when the kernel of each host \
enforces them. The job ends when standard input ends, or on SIGINT, SIGTERM or SIGHUP. It fails if the job is over \
before, by `release`. With --hold only a signal ends it.

Examples:
  portkeep-fleet acquire --hosts a,b,c --count 8                  until Ctrl-D
  portkeep-fleet acquire --hosts a,b --name train42 --hold --json
  portkeep-fleet acquire --hosts a,b --ports 20000-20007/tcp+udp";

/// Reserve ports on several hosts until standard input ends
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    ask: Ask,
    /// Keep them until a signal
    #[arg(long)]
    hold: bool,
    /// One JSON object on one line
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Args, config: &Config) -> anyhow::Result<u8> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("catching signals")?;
    let (end, ended) = mpsc::channel();
    let over = end.clone();
    let held = args.ask.acquire(config, move || {
        let _ = over.send(Exit::Failed);
    })?;
    let job = &held.job;
    if let Err(error) = view::print(job, JobState::Active, args.json) {
        held.end()?;
        return Err(error).context("writing to standard output");
    }
    if !args.hold {
        let end = end.clone();
        thread::spawn(move || {
            let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            let _ = end.send(Exit::Done);
        });
    }
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            let _ = end.send(Exit::Done);
        }
    });
    let exit = ended.recv().unwrap_or(Exit::Failed);
    held.end()?;
    Ok(exit.code())
}
