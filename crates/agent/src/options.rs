//! The files of the agent.

use std::path::{Path, PathBuf};

use super::state::RuntimeDir;

/// The files that the agent reads, and where it keeps its own.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its folder in `/run`.
    pub runtime: RuntimeDir,
    /// The configuration file.
    pub config: PathBuf,
    /// Drop-ins are read below this folder; it is not `/` only in tests.
    pub root: PathBuf,
    /// The path of the store. `None`: the one in the configuration.
    pub state: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            runtime: RuntimeDir::default(),
            config: portkeep_persist::config::PATH.into(),
            root: "/".into(),
            state: None,
        }
    }
}

impl Options {
    /// Everything below one folder, for tests: no file of the machine itself is read or written.
    pub fn below(folder: &Path) -> Self {
        Self {
            runtime: RuntimeDir::at(folder),
            config: folder.join("portkeep.toml"),
            root: folder.join("root"),
            state: Some(folder.join("state")),
        }
    }
}
