//! The processes of the measurement that are this program in another role.

mod allocate;
mod exhaust;
mod neighbour;
mod probe;
mod program;
mod runner;

use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::{
    process::{Gid, Signal, Uid, set_parent_process_death_signal},
    thread::{set_thread_gid, set_thread_groups, set_thread_uid},
};

use super::subject::Subject;

pub(crate) use exhaust::Exhausted;
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
    Neighbour {
        #[command(flatten)]
        user: User,
        seed: u64,
    },
    /// How many of these ports an outsider can have
    Probe {
        #[command(flatten)]
        user: User,
        way: probe::Way,
        ports: Vec<u16>,
    },
    /// How many ports a port server gives to one process
    Exhaust {
        #[command(flatten)]
        user: User,
        address: String,
    },
}

/// The user of a process that began as root's.
#[derive(Clone, Copy, clap::Args)]
pub(crate) struct User {
    #[arg(long)]
    as_nobody: bool,
}

impl User {
    fn become_it(self) -> Result<()> {
        if self.as_nobody {
            // This is the only thread.
            set_thread_groups(&[])?;
            set_thread_gid(Gid::from_raw(allocate::NOBODY))?;
            set_thread_uid(Uid::from_raw(allocate::NOBODY))?;
        }
        // None of these processes is useful without the process that started it.
        set_parent_process_death_signal(Some(Signal::KILL)).context("asking to die with the parent")
    }
}

pub(crate) fn run(job: &Job) -> Result<()> {
    let user = match job {
        Job::Allocate { .. } | Job::Runner { .. } | Job::Program { .. } => User { as_nobody: false },
        Job::Neighbour { user, .. } | Job::Probe { user, .. } | Job::Exhaust { user, .. } => *user,
    };
    user.become_it()?;
    match job {
        Job::Allocate { subject, kit } => allocate::run(*subject, kit),
        Job::Runner { subject, kit, rounds, seed } => runner::run(*subject, kit, *rounds, *seed),
        Job::Program { port, delay } => program::run(*port, *delay),
        Job::Neighbour { seed, .. } => neighbour::run(*seed),
        Job::Probe { way, ports, .. } => probe::run(*way, ports),
        Job::Exhaust { address, .. } => exhaust::run(address),
    }
}
