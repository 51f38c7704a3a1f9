use std::io;

use portkeep_core::Errno;

use super::protocol::{Reason, Refused};
use crate::{AcquireError, QueryError, error::with_kind};

/// Why a persistent reservation was not created, deleted or found. Nothing has changed, except perhaps after
/// [`Self::Lost`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PersistentError {
    /// `ENETDOWN`: no agent runs, or not here. Start it: `systemctl start portkeep`, or `portkeep agent`.
    #[error("the agent is not running ({path} does not answer)")]
    AgentAbsent {
        /// The socket that was tried.
        path: std::path::PathBuf,
    },
    /// `EACCES`: it requires an administrator: root, or a member of the group that the configuration names.
    #[error("{0}")]
    NotAllowed(String),
    /// `EINVAL`: no such reservation is possible. A bug in the program.
    #[error("{0}")]
    Malformed(String),
    /// `EADDRINUSE`: a port of the block is in use or reserved; the sentence says by whom.
    #[error("{0}")]
    InUse(String),
    /// `EEXIST`: there is a reservation of that name. Choose another, or delete that one.
    #[error("{0}")]
    NameTaken(String),
    /// `ENOSPC`: too few ephemeral ports would be left for outgoing connections. Reserve other ports, or force it.
    #[error("{0}")]
    Exhausts(String),
    /// `ENOSPC`: the pool has no such block. Ask for less.
    #[error("{0}")]
    NoRoom(String),
    /// `ENOENT`: there is no persistent reservation with exactly this block, or of this name.
    #[error("there is no such persistent reservation")]
    NotFound,
    /// `EBUSY`: a file declares it. Remove or mask the file, and reload.
    #[error("{0}")]
    FromFile(String),
    /// `EIO`: it could not be kept on the disk.
    #[error("{0}")]
    Store(String),
    /// `ETIMEDOUT`: the agent ended, or was silent for too long, before it answered. A list shows whether the request
    /// was done.
    #[error("the agent did not answer")]
    Lost(#[source] io::Error),
    /// `EPROTO`: this version does not understand the agent's answer.
    #[error("the agent's answer is not understood: {0}")]
    Answer(String),
    /// Another error that the agent reports.
    #[error("{0}")]
    Failed(String),
    /// The BPF programs could not be asked.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// A socket could not be made or connected.
    #[error("connecting to the agent")]
    ConnectCall(#[source] io::Error),
}

impl PersistentError {
    /// The error number.
    pub fn errno(&self) -> Option<Errno> {
        Some(match self {
            Self::AgentAbsent { .. } => Errno::ENETDOWN,
            Self::NotAllowed(_) => Errno::EACCES,
            Self::Malformed(_) => Errno::EINVAL,
            Self::InUse(_) => Errno::EADDRINUSE,
            Self::NameTaken(_) => Errno(libc::EEXIST),
            Self::Exhausts(_) | Self::NoRoom(_) => Errno::ENOSPC,
            Self::NotFound => Errno::ENOENT,
            Self::FromFile(_) => Errno(libc::EBUSY),
            Self::Store(_) => Errno(libc::EIO),
            Self::Lost(_) => Errno(libc::ETIMEDOUT),
            Self::Answer(_) => Errno(libc::EPROTO),
            Self::Failed(_) => return None,
            Self::Query(error) => return error.errno(),
            Self::ConnectCall(error) => return error.raw_os_error().map(Errno),
        })
    }
}

impl PersistentError {
    /// The reason, as JSON has it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Malformed(_) => Reason::Malformed,
            Self::NotAllowed(_) => Reason::NotAllowed,
            Self::InUse(_) => Reason::InUse,
            Self::NameTaken(_) => Reason::NameTaken,
            Self::Exhausts(_) => Reason::Exhausts,
            Self::NoRoom(_) => Reason::NoRoom,
            Self::NotFound => Reason::NotFound,
            Self::FromFile(_) => Reason::FromFile,
            Self::Store(_) => Reason::Store,
            Self::AgentAbsent { .. } | Self::Lost(_) | Self::ConnectCall(_) => Reason::NoAgent,
            Self::Query(QueryError::KernelAbsent) => Reason::NotUp,
            Self::Query(_) | Self::Answer(_) | Self::Failed(_) => Reason::Failed,
        }
    }
}

impl From<Refused> for PersistentError {
    fn from(Refused { reason, message }: Refused) -> Self {
        match reason {
            Reason::Malformed => Self::Malformed(message),
            Reason::NotAllowed => Self::NotAllowed(message),
            Reason::InUse => Self::InUse(message),
            Reason::NameTaken => Self::NameTaken(message),
            Reason::Exhausts => Self::Exhausts(message),
            Reason::NoRoom => Self::NoRoom(message),
            Reason::NotFound => Self::NotFound,
            Reason::FromFile => Self::FromFile(message),
            Reason::Store => Self::Store(message),
            Reason::NotUp | Reason::NoAgent | Reason::Failed => Self::Failed(message),
        }
    }
}

impl From<PersistentError> for io::Error {
    /// Keeps the kind of the error number; the error itself is inside (`get_ref`, `downcast`).
    fn from(error: PersistentError) -> Self {
        with_kind(error.errno(), error)
    }
}

impl AcquireError {
    /// The reason, as JSON has it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Malformed(_) | Self::ForeignCgroup | Self::WrongSocket => Reason::Malformed,
            Self::InUse { .. } | Self::SecondRange => Reason::InUse,
            Self::NoRoom { .. } | Self::OverQuota => Reason::NoRoom,
            Self::Privileged => Reason::NotAllowed,
            Self::AgentAbsent | Self::AgentFailed | Self::AgentSilent { .. } => Reason::NoAgent,
            Self::KernelAbsent | Self::HeldCannot { .. } => Reason::NotUp,
            Self::TooManyFiles { .. }
            | Self::Interrupted
            | Self::Cancelled
            | Self::OtherAbi { .. }
            | Self::SocketCall { .. }
            | Self::AcquireCall { .. } => Reason::Failed,
        }
    }
}
