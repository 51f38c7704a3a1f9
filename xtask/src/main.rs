//! The maintainers' tools: `cargo xtask <subcommand>`.
//!
//! Exit codes: 0 all is well, 1 something failed, 2 wrong usage, 3 a tool that
//! has to be installed first is missing.

mod bpf;
mod soak;
mod tool;
mod vm_test;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(about = "Portkeep's maintainers' tools", disable_version_flag = true)]
enum Task {
    Bpf(bpf::Options),
    Soak(soak::Options),
    #[command(hide = true)]
    SoakStage(soak::stage::Options),
    #[command(hide = true)]
    SoakWorker(soak::worker::Options),
    #[command(hide = true)]
    SoakAdministrator(soak::administrator::Options),
    VmTest(vm_test::Options),
}

fn main() -> ExitCode {
    let result = match Task::parse() {
        Task::Bpf(options) => bpf::run(&options),
        Task::Soak(options) => soak::run(&options),
        Task::SoakStage(options) => soak::stage::run(&options),
        Task::SoakWorker(options) => soak::worker::run(&options),
        Task::SoakAdministrator(options) => soak::administrator::run(&options),
        Task::VmTest(options) => vm_test::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if error.downcast_ref::<tool::Missing>().is_some() { 3 } else { 1 })
        }
    }
}
