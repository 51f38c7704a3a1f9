//! The exit status of every command: one table.

use std::{ffi::OsStr, fmt, io};

use portkeep_kernel::InstanceError;

use crate::{Io, signals};

/// An exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The request is carried out.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// The arguments make no sense.
    Usage = 2,
    /// There is no such thing.
    Nothing = 3,
    /// `run` itself failed. This and the next two are those of env(1) and timeout(1).
    RunFailed = 125,
    /// `run`: the command is there, but cannot be executed.
    NotExecutable = 126,
    /// `run`: there is no such command.
    NotFound = 127,
}

impl Exit {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Done, Self::Failed, Self::Usage, Self::Nothing, Self::RunFailed, Self::NotExecutable, Self::NotFound];

    /// The number.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The meaning, as help texts, manual pages and the documentation have it.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed, the reason is on standard error (of `check` and `reload`: a file is wrong)",
            Self::Usage => "wrong usage",
            Self::Nothing => {
                "nothing there: kernel enforcement is not up, the port is free (who), no such reservation (release, \
                 persist), no such files (check)"
            }
            Self::RunFailed => "`run`: portkeep failed, wrong usage included",
            Self::NotExecutable => "`run`: the command cannot be executed",
            Self::NotFound => "`run`: there is no such command",
        }
    }

    /// The status of a failed command. That of `run` must not look like one of the command it runs.
    pub(crate) fn of(error: &anyhow::Error, is_run: bool) -> u8 {
        if let Some(ended) = error.downcast_ref::<signals::Ended>() {
            return ended.status();
        }
        let not_up = |cause: &(dyn std::error::Error + 'static)| {
            matches!(cause.downcast_ref::<InstanceError>(), Some(InstanceError::NotUp(_)))
        };
        match error {
            _ if is_run => Self::RunFailed,
            error if error.is::<Usage>() => Self::Usage,
            error if error.is::<Nothing>() || error.chain().any(not_up) => Self::Nothing,
            _ => Self::Failed,
        }
        .code()
    }

    /// The table, as help texts have it.
    pub(crate) fn help() -> String {
        let line = |exit: Self| format!("\n  {:<4} {}", exit.code(), exit.meaning());
        Self::ALL.into_iter().map(line).collect()
    }
}

/// Report that a command cannot be started. Returns the exit status.
pub(crate) fn not_started(program: &OsStr, error: &io::Error, io: &mut Io<'_>) -> u8 {
    io.error(format_args!("{}: {error}", program.display()));
    let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { Exit::NotExecutable };
    exit.code()
}

/// Arguments that make no sense when they are taken together.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// The thing asked about is not there.
#[derive(Debug)]
pub(crate) struct Nothing(pub(crate) String);

impl fmt::Display for Nothing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Nothing {}
