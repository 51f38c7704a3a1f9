//! Tests in virtual machines: `cargo xtask vm-test` and `cargo xtask boot-test`.

mod boot;
mod kernels;
mod vm;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
enum Test {
    VmTest(vm::Options),
    BootTest(boot::Options),
}

fn main() -> ExitCode {
    portkeep_tool::exit(match Test::parse() {
        Test::VmTest(options) => vm::run(&options),
        Test::BootTest(options) => boot::run(&options),
    })
}

/// Kernels and disks stay below the target folder, where `cargo clean` finds them.
fn work_folder() -> Result<PathBuf> {
    let folder = portkeep_tool::target_folder().join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}
