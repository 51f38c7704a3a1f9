//! Where a persistent reservation comes from.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Where a declaration comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A drop-in file.
    File {
        /// The file, as it was opened.
        #[serde(serialize_with = "shown")]
        path: PathBuf,
        /// The line its stanza begins on, from 1.
        line: usize,
    },
    /// Created by a command, until it is deleted.
    Store {
        /// The uid that gave the command.
        by_uid: u32,
        /// When, in seconds since 1970.
        since: u64,
    },
    /// Created by a command, until the next reboot.
    Active {
        /// The uid that gave the command.
        by_uid: u32,
        /// When, in seconds since 1970.
        since: u64,
    },
}

/// A path may have bytes that are no text; JSON may not.
fn shown<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

impl fmt::Display for Origin {
    /// "/etc/portkeep/ports.d/web.toml:3", "a command of uid 0".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Store { by_uid, .. } => write!(f, "a command of uid {by_uid}"),
            Self::Active { by_uid, .. } => write!(f, "a command of uid {by_uid}, until the next reboot"),
        }
    }
}
