//! Tests in virtual machines: `cargo xtask vm-test` and `cargo xtask boot-test`.

mod boot;
mod kernels;
mod vm;
mod work_folder;

use std::process::ExitCode;

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
