//! `cargo xtask compare`: Portkeep and the usual ways to get a port, side by side in one run. It measures the cost of a
//! port, counts how often a test loses one, and observes the ports after a crash.
//!
//! Everything happens in cgroups and network namespaces of this process. Only Portkeep's kernel mode runs where the BPF
//! programs are attached.

mod allocator;
mod crash;
mod job;
mod kit;
mod latency;
mod portserver;
mod races;
mod subject;
mod table;

use std::{
    env,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Parser;
use portkeep_testkit::{places::Places, report};
use portkeep_tool::{build, repository, target_folder};

use kit::Kit;
use races::Field;
use table::{Picker, Pickers, Row, Table};

use job::Job;

/// Compare Portkeep with the usual ways to get a port
///
/// Requires root. Installs the pickers from PyPI and npm into a temporary folder.
#[derive(Parser)]
#[command(name = "cargo xtask compare", args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    job: Option<Job>,
    /// Run fewer rounds, and wait less after a crash
    #[arg(long)]
    short: bool,
    /// Put the tables into README.md and docs/internals/benchmarks.md
    #[arg(long)]
    write: bool,
    /// Only the races of the pickers, as they are and under `run --ephemeral`
    #[arg(long)]
    pickers: bool,
    /// Seed of the neighbours and the pauses
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of test processes side by side
    #[arg(long, default_value_t = 16)]
    processes: u32,
    /// Rounds of each process [default: 25, short: 2]
    #[arg(long)]
    rounds: Option<u32>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    portkeep_tool::exit(match &options.job {
        Some(job) => job::run(job),
        None => run(&options),
    })
}

fn run(options: &Options) -> Result<()> {
    // Only the times require a release build.
    if cfg!(debug_assertions) && !options.short && !options.pickers {
        return run_released();
    }
    if cfg!(debug_assertions) {
        // Two rounds show whether it works, not how fast.
        build(&["--bin=portkeep"])?;
    }
    let Some(places) = Places::make("cargo xtask compare")? else { return Ok(()) };
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let (kit, subjects) = Kit::install(folder.path())?;
    let (turns, patience) = if options.short { (2, 2) } else { (15, 90) };
    let field = Field {
        processes: options.processes,
        neighbours: 3,
        rounds: options.rounds.unwrap_or(if options.short { 2 } else { 25 }),
        seed: options.seed,
    };

    let root = repository();
    let benchmarks = root.join("docs/internals/benchmarks.md");
    if options.pickers {
        let mut pickers = Pickers::default();
        for subject in subjects.into_iter().filter(|subject| subject.picks()) {
            eprintln!("{}: racing", subject.name());
            let races = races::play(subject, false, &kit, &places, &field)?;
            let within_range = races::play(subject, true, &kit, &places, &field)?;
            pickers.rows.push(Picker { subject, races, within_range });
        }
        print!("{pickers}");
        if options.write {
            report::put(&benchmarks, "pickers", &pickers.to_string())?;
        }
        return pickers.check();
    }

    eprintln!("measuring what a port costs");
    let latencies = latency::measure(&subjects, &kit, &places, turns)?;
    let (mut rows, mut pickers) = (Vec::new(), Pickers::default());
    for (subject, latency) in subjects.into_iter().zip(latencies) {
        eprintln!("{}: racing, and crashing", subject.name());
        let races = races::play(subject, false, &kit, &places, &field)?;
        if subject.picks() {
            let within_range = races::play(subject, true, &kit, &places, &field)?;
            pickers.rows.push(Picker { subject, races, within_range });
        }
        Places::fresh_network();
        let crash = match subject {
            _ if subject.has_server() => portserver::observe(subject, &kit, &places)?,
            _ => crash::observe(subject, &kit, &places, Duration::from_secs(patience))?,
        };
        rows.push(Row { subject, latency, races, crash });
    }
    let command = if options.short { "cargo xtask compare --short" } else { "cargo xtask compare --write" };
    let table = Table { rows, field, command: command.into() };
    print!("{table}\n{pickers}");
    if options.write {
        report::put(&root.join("README.md"), "compare", &table.summary())?;
        let head = "# Against what people use today\n\n";
        report::put(&benchmarks, "compare", &format!("{head}{table}"))?;
        report::put(&benchmarks, "pickers", &pickers.to_string())?;
    }
    table.check()?;
    pickers.check()
}

/// Only a release build of Portkeep is worth measuring: build it, and replace this process by it.
fn run_released() -> Result<()> {
    build(&["--release", "--bin=portkeep-compare", "--bin=portkeep"])?;
    let mut released = Command::new(target_folder().join("release/portkeep-compare"));
    Err(released.args(env::args_os().skip(1)).exec()).context("starting the release build")
}
