//! A command that finds itself socket-activated where `run` was.
//!
//! systemd names the process that the sockets are for in `LISTEN_PID`. The number of a command is known when it has been
//! started, so it enters its own: it becomes the command only then, and the number stays.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt,
    process::{self, Command},
};

use crate::{Io, exit::not_started};

/// Name of the command, which is none for people.
pub(crate) const NAME: &str = "run-activated";
const LISTEN_PID: &str = "LISTEN_PID";

/// Become a command, with its own number in LISTEN_PID
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let Some((program, arguments)) = args.command.split_first() else { anyhow::bail!("no command") };
    let error = Command::new(program).args(arguments).env(LISTEN_PID, process::id().to_string()).exec();
    Ok(not_started(program, &error, io))
}

/// Whether the sockets that systemd passed are for this process.
fn is_activated() -> bool {
    std::env::var(LISTEN_PID).is_ok_and(|pid| pid == process::id().to_string())
}

/// The command, so that it is socket-activated if this process is.
pub(crate) fn command(program: &OsString) -> Command {
    if !is_activated() {
        return Command::new(program);
    }
    let mut command = Command::new("/proc/self/exe");
    command.arg0("portkeep").arg(NAME).arg("--").arg(program);
    command
}
