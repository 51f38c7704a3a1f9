//! `vm-test`: the kernel tests on other kernels than the one at hand. Each kernel is booted in QEMU; its first RAM disk
//! holds the test binaries and the programs they start, and nothing else.
//!
//! The tests attach to the guest's root cgroup, as users do. No test may do that on a machine that people work on. Some
//! tests need a process outside the enforced cgroup, or BPF programs of their own beside the others. They report that, and
//! the guest runs them once more below the root.

mod binaries;
mod guest;
mod initramfs;
mod libraries;
mod report;

use std::time::Instant;

use anyhow::{Result, bail};

use self::report::{Outcome, Report};
use crate::{kernels, work_folder::work_folder};

/// Run the kernel tests in virtual machines
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Linux release to test on
    #[arg(long, value_enum, default_value = "all")]
    kernel: kernels::Choice,
    /// Run fewer random histories, with the binaries of `cargo test --workspace`
    #[arg(long)]
    short: bool,
    /// Run the integration tests of these packages
    #[arg(short, long, default_values = ["portkeep-kernel", "portkeep", "portkeep-cli"])]
    package: Vec<String>,
    /// Run only test binaries with this name
    #[arg(long)]
    test: Vec<String>,
    /// Show all that the tests print, not only what failed
    #[arg(short, long)]
    verbose: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    guest::check()?;
    initramfs::check()?;
    let folder = work_folder()?;
    let releases = options.kernel.releases();
    let kernels = releases.iter().map(|release| kernels::get(release, &folder)).collect::<Result<Vec<_>>>()?;
    let binaries = binaries::build(&options.package, &options.test, options.short)?;
    let image = folder.join("initramfs");
    initramfs::pack(&binaries, &kernels, options.short, &image)?;

    let mut failed = 0;
    for kernel in &kernels {
        println!("== Linux {} ({})", kernel.release, kernel.name());
        let start = Instant::now();
        let report = guest::boot(&kernel.image, &image, options.verbose)?;
        let passed = has_passed(&report, binaries.tests.len());
        println!("   {}  in {:.1} s", if passed { "passed" } else { "FAILED" }, start.elapsed().as_secs_f64());
        failed += usize::from(!passed);
    }
    if failed > 0 {
        bail!("the tests failed on {failed} of {} kernels", kernels.len());
    }
    Ok(())
}

/// Print the result of one kernel; true if all tests passed.
fn has_passed(report: &Report, binaries: usize) -> bool {
    // A guest that did not get to the end has not passed, even if all its tests have.
    let at_root = report.outcomes.iter().filter(|outcome| outcome.attach == "root").count();
    let complete = report.complete && at_root == binaries;
    if !complete {
        println!("   FAIL  the guest stopped before its last test");
    }
    let forgotten = report.forgotten();
    for test in &forgotten {
        println!("   FAIL  {test}, and did not run in one");
    }
    let (at_root, outside) = report.counts();
    println!("   tests: {at_root} attached to the root cgroup, {outside} below it, because they need an outside");
    let skipped = report.skipped();
    for (binary, why) in &skipped {
        println!("   SKIPPED  {binary}: {why}");
    }
    println!("   skipped: {}", skipped.len());
    complete && forgotten.is_empty() && report.outcomes.iter().all(Outcome::passed)
}
