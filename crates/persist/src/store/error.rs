//! Errors of the store.

use std::{io, path::PathBuf};

use crate::Name;

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has it open.
    #[error("{} is in use by another portkeep{}", path.display(), pid.map_or_else(String::new, |pid| format!(" (pid {pid})")))]
    InUse {
        /// The store.
        path: PathBuf,
        /// That process, if it left its number.
        pid: Option<u32>,
    },
    /// The file's content is not as it was written. The file was not touched.
    #[error("{} is damaged: {what}; it was left as it is. Move it away to begin with an empty store, and `portkeep persist import` an export if there is one", path.display())]
    Damaged {
        /// The store.
        path: PathBuf,
        /// The value found.
        what: String,
    },
    /// A newer Portkeep wrote it. The file was not touched.
    #[error("{} was written by a newer Portkeep ({what}); it was left as it is", path.display())]
    Newer {
        /// The store.
        path: PathBuf,
        /// How that is known.
        what: String,
    },
    /// Its folder can be written by others, who could put another store there.
    #[error("{} can be written by users other than its owner: remove that right (chmod go-w)", path.display())]
    Open {
        /// The folder.
        path: PathBuf,
    },
    /// There is one of this name already.
    #[error("there is a reservation `{0}` already")]
    Exists(Name),
    /// There is none of this name.
    #[error("there is no reservation `{0}` in the store")]
    Missing(Name),
    /// It would not be understood when it is read again: an invalid unit, cgroup, user or description.
    #[error("this declaration is not valid: {0}")]
    Invalid(String),
    /// The disk is full. Nothing was changed.
    #[error("no space is left for {}; nothing was changed", path.display())]
    Full {
        /// The store.
        path: PathBuf,
    },
    /// Writing failed so late that a part of it may be on the disk and could not be taken back. Open the store again to
    /// see which it is; it is one or the other, not half of it.
    #[error("{}: {source}; it is not known whether the change was kept: open the store again to see", path.display())]
    Unsure {
        /// The store.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Reading or writing failed. Nothing was changed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The store or its folder.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}
