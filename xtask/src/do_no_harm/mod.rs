//! With the kernel part up and ports reserved that are nobody else's business,
//! everything else must be as without: other people's test suites give the
//! same results, and servers under load are as fast.
//!
//! Both sides are in network namespaces of their own, the one in a cgroup with
//! the kernel part, the other in a cgroup without.

mod cpython;
mod crates;
mod load;
mod report;
mod suite;

use anyhow::{Context, Result, ensure};
use portkeep::{Require, Reservation};

use crate::place::Places;
use report::Report;
use suite::Unit;

/// See that other people's tests and servers do not notice the kernel part (as root; takes what it needs from crates.io)
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only CPython's test_socket, and a short load
    #[arg(long)]
    short: bool,
    /// Put the tables into docs/benchmarks.md
    #[arg(long)]
    write: bool,
    /// Only these parts
    #[arg(long, value_enum)]
    only: Vec<Part>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Tests of the Python standard library
    Cpython,
    /// Tests of crates
    Crates,
    /// nginx and redis under load
    Load,
}

pub(crate) fn run(options: &Options) -> Result<()> {
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

/// Reservations that have nothing to do with what is going on, about half of the pool.
fn unrelated() -> Result<Vec<Reservation>> {
    let block = || Reservation::tcp().both().ports(64).require(Require::Kernel).acquire();
    (0..32).map(|_| block().context("reserving ports")).collect()
}
