//! Why kernel enforcement cannot be brought up, opened or taken down.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
};

use aya::maps::MapError;

use crate::{load::LoadError, maps::MapAccessError, obstacle::Obstacle};

pub(super) const MOUNTING: &str = "mounting a BPF file system at";

/// Why the pinned instance could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstanceError {
    /// Nothing is pinned: `portkeep up` was not run.
    #[error("kernel enforcement is not up (nothing is pinned in {0}); bring it up with `portkeep up`, as root")]
    NotUp(PathBuf),
    /// It is up, but another version of Portkeep brought it up.
    #[error(
        "version skew: the loaded BPF programs are abi {loaded_abi} build {loaded_build:016x}, this program has abi \
         {own_abi} build {own_build:016x}; `portkeep upgrade` swaps the programs without a gap"
    )]
    Skew {
        /// ABI of the instance that is up.
        loaded_abi: u32,
        /// Build of the instance that is up.
        loaded_build: u64,
        /// ABI of this program.
        own_abi: u32,
        /// Build of this program.
        own_build: u64,
    },
    /// The layout of the maps changed between the two versions.
    #[error(
        "the loaded BPF programs keep their state in the layout of abi {loaded}, this program knows abi {own}: run \
         `portkeep down` and `portkeep up` when no reservation is held"
    )]
    Layout {
        /// ABI of the instance that is up.
        loaded: u32,
        /// ABI of this program.
        own: u32,
    },
    /// It is up, but on other cgroups than requested.
    #[error("already up, {what} in {have}, not in {want}; run `portkeep down` first")]
    Elsewhere {
        /// "enforced" or "served".
        what: &'static str,
        /// Where it is.
        have: String,
        /// Where it was requested.
        want: String,
    },
    /// No cgroup v2 hierarchy is mounted.
    #[error(
        "no cgroup v2 hierarchy is mounted here, and kernel enforcement requires one: mount one (`mount -t cgroup2 none \
         DIR` does it beside cgroup v1, too), or in a container have the host run `portkeep up`"
    )]
    NoCgroup2,
    /// Another process holds the lock.
    #[error("locking {path}")]
    Lock {
        /// The file to lock.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file system call failed.
    #[error("{what} {path}")]
    Io {
        /// The action that failed.
        what: &'static str,
        /// To which path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A pin could not be made or opened.
    #[error("pin {path}: {message}")]
    Pin {
        /// Which one.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// The system does not allow this process to do it. The reason has a remedy.
    #[error("{why}; what failed is {step}")]
    Hindered {
        /// The reason, with a remedy.
        why: Obstacle,
        /// The action that failed.
        step: String,
        /// The system's error.
        source: io::Error,
    },
    /// Loading or attaching failed.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map could not be read.
    #[error(transparent)]
    Map(#[from] MapAccessError),
}

impl InstanceError {
    /// Report why the system refused, if this is known. Then the verifier's log does not help.
    pub(super) fn explained(self) -> Self {
        let mut cause: Option<&(dyn Error + 'static)> = Some(&self);
        let errno = loop {
            match cause {
                None => return self,
                Some(error) => {
                    // aya's error is transparent: the chain of sources skips its inner error.
                    let inner = match error.downcast_ref() {
                        Some(MapError::IoError(inner)) => Some(inner),
                        _ => error.downcast_ref::<io::Error>(),
                    };
                    match inner.and_then(io::Error::raw_os_error) {
                        Some(errno) => break errno,
                        None => cause = error.source(),
                    }
                }
            }
        };
        let mounting = matches!(&self, Self::Io { what, .. } if *what == MOUNTING);
        match Obstacle::behind(errno, mounting) {
            Some(why) => Self::Hindered { why, step: self.to_string(), source: io::Error::from_raw_os_error(errno) },
            None => self,
        }
    }
}

pub(super) fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> InstanceError + use<'a> {
    move |source| InstanceError::Io { what, path: path.to_owned(), source }
}

pub(super) fn pin_error<E: Error>(path: &Path) -> impl FnOnce(E) -> InstanceError + use<'_, E> {
    move |error| {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        InstanceError::Pin { path: path.to_owned(), message: format!("{error}{cause}") }
    }
}
