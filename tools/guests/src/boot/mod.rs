//! `boot-test`: a machine that boots with Portkeep installed. It is a Debian with systemd in QEMU, with real servers,
//! programs that try to take their ports, a power cut and reboots. `guest/check.sh` holds the checks.
//!
//! The kernels are those of `vm-test`. NVMe and ext4 are built into them, so no first RAM disk is needed. The power is cut
//! by killing QEMU: data that the guest has not written to its disk by then is lost.

mod console;
mod root;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use portkeep_tool::Tool;

use crate::{kernels, work_folder::work_folder};

const CP: Tool = Tool { name: "cp", remedy: "apt-get install coreutils" };

/// Boot a machine with Portkeep installed
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Linux release to boot
    #[arg(long, value_enum, default_value = "6.1")]
    kernel: kernels::Choice,
    /// Boot twice instead of four times, with shorter loops
    #[arg(long)]
    short: bool,
    /// Boot this disk, made by an earlier run, as it is
    #[arg(long)]
    image: Option<PathBuf>,
    /// Give up on a boot after so many seconds
    #[arg(long, default_value_t = 1800)]
    limit: u64,
    /// Show all that the guest prints
    #[arg(short, long)]
    verbose: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    console::check()?;
    root::check()?;
    let folder = work_folder()?;
    let kernels =
        options.kernel.releases().iter().map(|release| kernels::get(release, &folder)).collect::<Result<Vec<_>>>()?;
    let image = match &options.image {
        Some(image) => image.clone(),
        None => {
            let (start, image) = (Instant::now(), folder.join("boot.ext4"));
            root::make(&folder, &kernels, &image)?;
            println!("== a machine in {:.1} s", start.elapsed().as_secs_f64());
            image
        }
    };
    let mut failed = 0;
    for kernel in &kernels {
        println!("== Linux {} ({})", kernel.release, kernel.name());
        failed += usize::from(!passes(&kernel.image, &image, options)?);
    }
    if failed > 0 {
        bail!("the boot test failed on {failed} of {} kernels", kernels.len());
    }
    Ok(())
}

fn passes(kernel: &Path, image: &Path, options: &Options) -> Result<bool> {
    let start = Instant::now();
    // Each kernel gets a new machine.
    let disk = image.with_extension("run");
    CP.run(CP.command().arg("--sparse=always").arg(image).arg(&disk))?;
    let limit = Duration::from_secs(options.limit);
    let report = console::run(kernel, &disk, options.short, limit, options.verbose)?;
    // A guest that did not get to the end has not passed, even if all its checks have.
    if !report.complete {
        println!("   FAIL  the guest stopped before its last check");
    }
    let passed = report.complete && report.passed > 0 && report.failed == 0;
    println!(
        "   {}  {} checks in {:.1} s",
        if passed { "passed" } else { "FAILED" },
        report.passed + report.failed,
        start.elapsed().as_secs_f64()
    );
    Ok(passed)
}
