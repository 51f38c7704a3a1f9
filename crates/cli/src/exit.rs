//! The exit status of every command: one table.

use std::io;

use portkeep::{
    AcquireError,
    persistent::{
        PersistentError,
        protocol::{Reason, Refused},
    },
};
use portkeep_kernel::InstanceError;
use rustix::io::Errno;

use crate::signals;

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

pub(crate) const DONE: u8 = Exit::Done.code();
pub(crate) const FAILED: u8 = Exit::Failed.code();
pub(crate) const USAGE: u8 = Exit::Usage.code();
pub(crate) const NOTHING: u8 = Exit::Nothing.code();

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
            Self::Failed => {
                "failed, the reason is on standard error (of `check` and `reload`: a file is wrong; of `doctor`: something is wrong)"
            }
            Self::Usage => "wrong usage",
            Self::Nothing => {
                "nothing there: kernel enforcement is not up, the port is free (who), no such reservation (release, \
                 persist), no such files (check), nothing to adopt"
            }
            Self::RunFailed => "`run`: portkeep failed, wrong usage included",
            Self::NotExecutable => "`run`: the command cannot be executed",
            Self::NotFound => "`run`: there is no such command",
        }
    }

    /// The status of a failed command. If `run` itself fails, its status must not look like one of the command that it
    /// runs.
    pub(crate) fn of(error: &anyhow::Error, is_run: bool) -> u8 {
        if let Some(ended) = error.downcast_ref::<signals::Ended>() {
            return ended.status();
        }
        let is_not_up = |cause: &(dyn std::error::Error + 'static)| {
            matches!(cause.downcast_ref::<InstanceError>(), Some(InstanceError::NotUp(_)))
        };
        match error.downcast_ref::<Refused>().map(|refused| refused.reason) {
            _ if is_run => Self::RunFailed,
            Some(Reason::Malformed) => Self::Usage,
            Some(Reason::NotFound | Reason::NotUp) => Self::Nothing,
            _ if error.chain().any(is_not_up) => Self::Nothing,
            _ => Self::Failed,
        }
        .code()
    }

    /// The reason of a failure, as JSON has it.
    pub(crate) fn reason(error: &anyhow::Error) -> Reason {
        error.chain().find_map(reason_of).unwrap_or(Reason::Failed)
    }

    /// The reason that follows from the status alone.
    pub(crate) const fn reason_of_status(status: u8) -> Reason {
        match status {
            USAGE => Reason::Malformed,
            NOTHING => Reason::NotFound,
            _ => Reason::Failed,
        }
    }

    /// The table, as help texts have it.
    pub(crate) fn help() -> String {
        let line = |exit: Self| format!("\n  {:<4} {}", exit.code(), exit.meaning());
        Self::ALL.into_iter().map(line).collect()
    }
}

/// The reason in one cause of a failure, if the cause has one.
fn reason_of(cause: &(dyn std::error::Error + 'static)) -> Option<Reason> {
    if let Some(refused) = cause.downcast_ref::<Refused>() {
        Some(refused.reason)
    } else if let Some(error) = cause.downcast_ref::<PersistentError>() {
        Some(error.reason())
    } else if let Some(error) = cause.downcast_ref::<AcquireError>() {
        Some(error.reason())
    } else if let Some(error) = cause.downcast_ref::<io::Error>() {
        (error.kind() == io::ErrorKind::PermissionDenied).then_some(Reason::NotAllowed)
    } else {
        matches!(cause.downcast_ref::<InstanceError>(), Some(InstanceError::NotUp(_))).then_some(Reason::NotUp)
    }
}

/// A failure with a message of its own, if no other error type has the message.
pub(crate) fn refused(reason: Reason, message: impl Into<String>) -> anyhow::Error {
    Refused { reason, message: message.into() }.into()
}

/// The remedy of EMFILE.
pub(crate) const TOO_FEW_FILES: &str = "; the limit of open files is too low (`ulimit -n`)";

/// Whether this process may open no more files (EMFILE).
pub(crate) fn ran_out(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.raw_os_error() == Some(Errno::MFILE.raw_os_error()))
            || cause.downcast_ref() == Some(&Errno::MFILE)
            || cause.downcast_ref() == Some(&nix::Error::EMFILE)
    })
}
