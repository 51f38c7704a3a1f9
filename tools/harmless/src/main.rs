//! `cargo xtask do-no-harm`: programs that use no reserved port notice nothing of Portkeep. The test suites of others give
//! the same results with the BPF programs attached and without, servers that bind ports of the pool work as they do without,
//! and servers under load are as fast.
//!
//! Each side has network namespaces of its own. One side is in a cgroup where the programs are attached, the other is not.

mod cpython;
mod crates;
mod load;
mod report;
mod server;
mod servers;
mod suite;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use portkeep::{Require, Reservation};
use portkeep_testkit::{Sandbox, places::Places};

use report::Report;
use suite::Unit;

/// Check that tests and servers of others do not notice Portkeep's BPF programs
///
/// Requires root. Downloads the crates whose tests it runs from crates.io.
#[derive(Parser)]
#[command(name = "cargo xtask do-no-harm")]
struct Options {
    /// Run only CPython's test_socket, the servers, and a short load
    #[arg(long)]
    short: bool,
    /// Put the tables into docs/internals/benchmarks.md
    #[arg(long)]
    write: bool,
    /// Run only these parts
    #[arg(long, value_enum)]
    only: Vec<Part>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Tests of the Python standard library
    Cpython,
    /// Tests of crates
    Crates,
    /// Servers on ports of the pool
    Servers,
    /// nginx and redis under load
    Load,
}

fn main() -> ExitCode {
    portkeep_tool::exit(run(&Options::parse()))
}

fn run(options: &Options) -> Result<()> {
    let wanted = |part| options.only.is_empty() || options.only.contains(&part);
    let Some(places) = Places::make("cargo xtask do-no-harm")? else { return Ok(()) };
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let mut units: Vec<Box<dyn Unit>> = Vec::new();
    if wanted(Part::Cpython) {
        units.extend(cpython::units(options.short));
    }
    if wanted(Part::Crates) && !options.short {
        units.extend(crates::units(folder.path())?);
    }
    Places::fresh_network();
    let reserved = unrelated()?;

    let mut report = Report::new(reserved.iter().map(|block| u32::from(block.ports().count())).sum(), options.short);
    for unit in units {
        eprintln!("{}, without and with", unit.name());
        report.suites.push(suite::compare(&*unit, &places)?);
    }
    if wanted(Part::Servers) {
        let before = refused()?;
        for unit in servers::units() {
            eprintln!("{}, without and with", unit.name());
            report.servers.push(suite::compare(&*unit, &places)?);
        }
        report.refused = refused()? - before;
    }
    if wanted(Part::Load) {
        report.loads = load::measure(&places, folder.path(), options.short)?;
    }
    ensure!(reserved.iter().all(|block| block.state().is_ok()), "a reservation has ended meanwhile");
    print!("{report}");
    if options.write {
        report.write()?;
    }
    report.check()
}

/// Binds that Portkeep has refused so far.
fn refused() -> Result<u64> {
    Ok(Sandbox::get().loaded().maps()?.counters()?.refused)
}

/// Reservations that no program of the run uses, about half of the pool.
fn unrelated() -> Result<Vec<Reservation>> {
    let block = || Reservation::tcp().both().ports(64).require(Require::Kernel).acquire();
    (0..32).map(|_| block().context("reserving ports")).collect()
}
