//! Portkeep and what people use today, side by side in one run: what a port
//! costs, how often a test loses one, and what a crash leaves behind.
//!
//! Everything happens in cgroups and network namespaces of its own. Only
//! Portkeep's kernel mode runs where the kernel part is.

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
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use portkeep_testkit::report;

use crate::{
    place::Places,
    tool::{cargo, repository, target_folder},
};
use kit::Kit;
use races::Field;
use table::{Row, Table};

pub(crate) use job::{Job, run as run_job};

/// Compare Portkeep with what people use today (as root; installs pickers from PyPI and npm into a temporary folder)
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Fewer rounds, and less patience after a crash
    #[arg(long)]
    short: bool,
    /// Put the table into README.md and docs/benchmarks.md
    #[arg(long)]
    write: bool,
    /// What the neighbours and the pauses are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Test processes side by side
    #[arg(long, default_value_t = 16)]
    processes: u32,
    /// Rounds of each process [default: 25, short: 2]
    #[arg(long)]
    rounds: Option<u32>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if cfg!(debug_assertions) && !options.short {
        return run_released();
    }
    if cfg!(debug_assertions) {
        // Two rounds tell whether it works, not how fast.
        build(&["-p", "portkeep-cli"])?;
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

    eprintln!("measuring what a port costs");
    let latencies = latency::measure(&subjects, &kit, &places, turns)?;
    let mut rows = Vec::new();
    for (subject, latency) in subjects.into_iter().zip(latencies) {
        eprintln!("{}: racing, and crashing", subject.name());
        let races = races::play(subject, &kit, &places, &field)?;
        let crash = crash::observe(subject, &kit, &places, Duration::from_secs(patience))?;
        rows.push(Row { subject, latency, races, crash });
    }
    let command = if options.short { "cargo xtask compare --short" } else { "cargo xtask compare --write" };
    let table = Table { rows, field, command: command.into() };
    print!("{table}");
    if options.write {
        let root = repository();
        report::put(&root.join("README.md"), "compare", &table.to_string())?;
        let head = "# Against what people use today\n\n";
        report::put(&root.join("docs/benchmarks.md"), "compare", &format!("{head}{table}"))?;
    }
    table.check()
}

/// What is measured of Portkeep is a release build: make it, and become it.
fn run_released() -> Result<()> {
    build(&["--release", "-p", "xtask", "-p", "portkeep-cli"])?;
    let mut released = Command::new(target_folder().join("release/xtask"));
    Err(released.args(env::args_os().skip(1)).exec()).context("starting the release build")
}

fn build(what: &[&str]) -> Result<()> {
    let build = cargo().args(["build", "--quiet"]).args(what).stdin(Stdio::null()).status();
    ensure!(build.context("starting cargo build")?.success(), "building failed");
    Ok(())
}
