//! The processes of the measurement that are this program in another role.

mod allocate;
mod neighbour;
mod probe;
mod program;
mod runner;

use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::subject::Subject;

pub(crate) use probe::{Way, probe};
pub(crate) use runner::{PORTS, Tally};

/// A process that `compare` starts
#[derive(clap::Subcommand)]
#[command(hide = true)]
pub(crate) enum Job {
    /// Take ports as `allocator.rs` says
    Allocate { subject: Subject, kit: PathBuf },
    /// A test process: takes ports and starts programs on them, again and again
    Runner { subject: Subject, kit: PathBuf, rounds: u32, seed: u64 },
    /// The program of a test process: binds the port after some microseconds, and keeps it
    Program { port: u16, delay: u64 },
    /// Binds and connects at random
    Neighbour { seed: u64 },
    /// How many of these ports an outsider can have
    Probe { way: probe::Way, ports: Vec<u16> },
}

pub(crate) fn run(job: &Job) -> Result<()> {
    // None of them has a purpose without the one that started it.
    set_parent_process_death_signal(Some(Signal::KILL)).context("asking to die with the parent")?;
    match job {
        Job::Allocate { subject, kit } => allocate::run(*subject, kit),
        Job::Runner { subject, kit, rounds, seed } => runner::run(*subject, kit, *rounds, *seed),
        Job::Program { port, delay } => program::run(*port, *delay),
        Job::Neighbour { seed } => neighbour::run(*seed),
        Job::Probe { way, ports } => probe::run(*way, ports),
    }
}
