//! The maintainers' tools: `cargo xtask <subcommand>`.
//!
//! Exit codes: 0 all is well, 1 something failed, 2 wrong usage, 3 a tool that
//! has to be installed first is missing.

mod boot_test;
mod bpf;
mod compare;
mod do_no_harm;
mod install;
mod interleave;
mod man;
mod place;
mod soak;
mod tool;
mod units;
mod vm_test;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(about = "Portkeep's maintainers' tools", disable_version_flag = true)]
enum Task {
    Bpf(bpf::Options),
    Man(man::Options),
    BootTest(boot_test::Options),
    Install(install::Options),
    Interleave(interleave::Options),
    Units(units::Options),
    Compare(compare::Options),
    /// A process that `compare` starts
    #[command(hide = true, subcommand)]
    CompareJob(compare::Job),
    DoNoHarm(do_no_harm::Options),
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
        Task::Man(options) => man::run(&options),
        Task::BootTest(options) => boot_test::run(&options),
        Task::Install(options) => install::run(&options),
        Task::Interleave(options) => interleave::run(&options),
        Task::Units(options) => units::run(&options),
        Task::Compare(options) => compare::run(&options),
        Task::CompareJob(job) => compare::run_job(&job),
        Task::DoNoHarm(options) => do_no_harm::run(&options),
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
