//! Errors of the store.

use std::{io, path::PathBuf};

use crate::Name;

/// Why an operation of the store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has it open.
    #[error("{} is in use by another portkeep{}", path.display(), pid.map_or_else(String::new, |pid| format!(" (pid {pid})")))]
    InUse {
        /// The store.
        path: PathBuf,
        /// The pid of that process, if it is known.
        pid: Option<u32>,
    },
    /// The file's content is not as it was written. The file was not touched.
    #[error("{} is damaged: {what}; it was left as it is. Move it away to begin with an empty store, and `portkeep persist import` an export if there is one", path.display())]
    Damaged {
        /// The store.
        path: PathBuf,
        /// The damage that was found.
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
    /// Other users can write its folder, so they could put another store there.
    #[error("{} can be written by users other than its owner: remove that right (chmod go-w)", path.display())]
    Open {
        /// The folder.
        path: PathBuf,
    },
    /// There is an entry of this name already.
    #[error("there is a reservation `{0}` already")]
    Exists(Name),
    /// There is no entry of this name.
    #[error("there is no reservation `{0}` in the store")]
    Missing(Name),
    /// The entry would be refused or changed when it is read again: it has an invalid unit, cgroup, user, group or
    /// description.
    #[error("this declaration is not valid: {0}")]
    Invalid(String),
    /// The disk is full. Nothing was changed.
    #[error("no space is left for {}; nothing was changed", path.display())]
    Full {
        /// The store.
        path: PathBuf,
    },
    /// Writing failed, the change may be on the disk, and it could not be taken back. Open the store again to see. It
    /// then has the whole change or nothing of it.
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
