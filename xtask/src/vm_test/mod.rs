//! The kernel tests on other kernels than the one at hand: each is booted in
//! QEMU, with the test binaries in its first RAM disk and nothing else.

mod binaries;
mod guest;
mod initramfs;
mod kernels;

use std::{fs, path::PathBuf, time::Instant};

use anyhow::{Context, Result, bail};

use crate::tool::target_folder;

/// Run the kernel tests in virtual machines
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Linux release to test on
    #[arg(long, value_enum, default_value = "all")]
    kernel: kernels::Choice,
    /// Fewer random histories
    #[arg(long)]
    short: bool,
    /// Packages whose integration tests are run
    #[arg(short, long, default_value = "portkeep-kernel")]
    package: Vec<String>,
    /// Only run test binaries with this name
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
    let binaries = binaries::build(&options.package, &options.test)?;
    let image = folder.join("initramfs");
    initramfs::pack(&binaries, options.short, &image)?;

    let mut failed = 0;
    for kernel in &kernels {
        println!("== Linux {} ({})", kernel.release, kernel.name());
        let start = Instant::now();
        let report = guest::boot(&kernel.image, &image, options.verbose)?;
        for outcome in &report.outcomes {
            let verdict = if outcome.passed() { "pass" } else { "FAIL" };
            println!("   {verdict}  {:<16} {:>6.1} s", outcome.binary, outcome.seconds());
        }
        // Whatever the tests say, a guest that did not get to the end has not passed.
        let complete = report.complete && report.outcomes.len() == binaries.tests.len();
        if !complete {
            println!("   FAIL  the guest stopped before its last test");
        }
        let passed = complete && report.outcomes.iter().all(guest::Outcome::passed);
        println!("   {}  in {:.1} s", if passed { "passed" } else { "FAILED" }, start.elapsed().as_secs_f64());
        failed += usize::from(!passed);
    }
    if failed > 0 {
        bail!("the tests failed on {failed} of {} kernels", kernels.len());
    }
    Ok(())
}

/// Kernels and the RAM disk stay below the target folder, where `cargo clean` finds them.
fn work_folder() -> Result<PathBuf> {
    let folder = target_folder()?.join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}
