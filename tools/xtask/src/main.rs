//! The maintainers' tasks: `cargo xtask NAME`. It has six tasks of its own and starts the other tools with cargo.
//!
//! Exit status: 0 success, 1 failure, 2 wrong usage, 3 a program or a right is missing.

mod bpf;
mod crates;
mod fuzz;
mod install;
mod package;
mod tools;
mod units;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Maintainers' tasks of Portkeep", disable_version_flag = true)]
enum Task {
    Bpf(bpf::Options),
    Crates(crates::Options),
    Fuzz(fuzz::Options),
    Install(install::Options),
    Package(package::Options),
    Units(units::Options),
    #[command(flatten)]
    Tool(tools::Tool),
}

fn main() -> ExitCode {
    portkeep_tool::exit(match Task::parse() {
        Task::Bpf(options) => bpf::run(&options),
        Task::Crates(options) => crates::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Install(options) => install::run(&options),
        Task::Package(options) => package::run(&options),
        Task::Units(options) => units::run(&options),
        Task::Tool(tool) => return tool.run(),
    })
}
