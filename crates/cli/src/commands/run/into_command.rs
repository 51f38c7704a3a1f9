//! The last step before a command: a process with its number in `LISTEN_PID`, or with the rights of another user.
//!
//! In `LISTEN_PID`, systemd names the process that the sockets are for. The number of a command is known only after it
//! has been started. A process can give up only its own rights. So a process of this program does both, and then
//! becomes the command.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::process::CommandExt,
    process::{self, Command},
};

use anyhow::Context;
use portkeep::persistent::Account;

use super::user::User;
use crate::{Exit, Io};

/// The name of the command. It is hidden: it is not for people.
pub(crate) const NAME: &str = "run-command";
const LISTEN_PID: &str = "LISTEN_PID";

/// Become a command, socket-activated or as another user
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// LISTEN_PID gets the number of this process
    #[arg(long)]
    activated: bool,
    /// The user to become
    #[arg(long)]
    user: Option<Account>,
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let (program, arguments) = args.command.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(account) = &args.user
        && let Err(error) = User::of(account).and_then(|user| user.become_it())
    {
        io.error(format_args!("--user {account}: {error:#}"));
        return Ok(Exit::RunFailed.code());
    }
    if args.activated {
        command.env(LISTEN_PID, process::id().to_string());
    }
    let error = command.exec();
    Ok(not_started(program, &error, io))
}

/// Report that a command cannot be started. Returns the exit status.
pub(crate) fn not_started(program: &OsStr, error: &io::Error, io: &mut Io<'_>) -> u8 {
    let why = match error.kind() {
        io::ErrorKind::ArgumentListTooLong => {
            "; a reservation of many ports has as many variables (PORT0, PORT1, ...): reserve fewer"
        }
        _ => "",
    };
    io.error(format_args!("{}: {error}{why}", program.display()));
    let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { Exit::NotExecutable };
    exit.code()
}

/// Whether the sockets that systemd passed are for this process.
pub(crate) fn is_activated() -> bool {
    std::env::var(LISTEN_PID).is_ok_and(|pid| pid == process::id().to_string())
}

/// The command, `activated` or not, and as this user.
pub(crate) fn command(program: &OsString, activated: bool, user: Option<&User>) -> Command {
    if !activated && user.is_none() {
        return Command::new(program);
    }
    let mut command = Command::new("/proc/self/exe");
    command.arg0("portkeep").arg(NAME);
    if activated {
        command.arg("--activated");
    }
    if let Some(user) = user {
        command.arg("--user").arg(user.uid().to_string()).envs(user.environment());
    }
    command.arg("--").arg(program);
    command
}
