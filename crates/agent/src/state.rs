//! The agent's memory, which survives the agent: its entries in the `ip_local_reserved_ports` of each namespace.
//!
//! A small JSON file, replaced by renaming, so that a reader finds the old one or the new one. It need not survive a
//! reboot: sysctls and namespace cookies end with it, too.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use portkeep::persistent::protocol;
use portkeep_persist::{
    Store,
    store::{self, boot_id},
};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use portkeep_core::PortSet;

/// The folder if [`RUNTIME_DIR`] is not set.
const DEFAULT: &str = protocol::DEFAULT_RUNTIME_DIR;
/// The variable that names another folder.
pub const RUNTIME_DIR: &str = protocol::RUNTIME_DIR;

const FILE: &str = "reserved-ports.json";
const LOCK: &str = "reserved-ports.lock";
const AGENT: &str = "agent.lock";

/// The folder of the agent's memory.
#[derive(Clone, Debug)]
pub struct RuntimeDir {
    folder: PathBuf,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// The boot of the cookies.
    boot: String,
    /// Our entries, by namespace cookie.
    pub(super) ours: BTreeMap<u64, PortSet>,
}

/// The state, locked against changes by others.
pub(super) struct Held<'a> {
    runtime: &'a RuntimeDir,
    pub(super) state: State,
    _lock: File,
}

fn named(path: &Path) -> impl FnOnce(io::Error) -> io::Error + use<'_> {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl Default for RuntimeDir {
    fn default() -> Self {
        Self { folder: env::var_os(RUNTIME_DIR).map_or_else(|| DEFAULT.into(), PathBuf::from) }
    }
}

impl RuntimeDir {
    /// This folder, made when it is needed.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    fn locked(&self, name: &str, operation: FlockOperation) -> io::Result<File> {
        fs::create_dir_all(&self.folder).map_err(named(&self.folder))?;
        let path = self.folder.join(name);
        loop {
            // A process that can open a file can lock it, so others may not open this one.
            let file = File::options().create(true).append(true).mode(0o600).open(&path).map_err(named(&path))?;
            flock(&file, operation).map_err(|errno| named(&path)(errno.into()))?;
            // If the file was removed between the two calls, the lock has no effect.
            let same = |found: fs::Metadata| file.metadata().is_ok_and(|own| own.ino() == found.ino());
            if fs::metadata(&path).is_ok_and(same) {
                return Ok(file);
            }
        }
    }

    /// The folder, made if necessary.
    pub(super) fn folder(&self) -> io::Result<&Path> {
        fs::create_dir_all(&self.folder).map_err(named(&self.folder))?;
        Ok(&self.folder)
    }

    /// Whether the folder exists: without it nothing is remembered.
    pub(super) fn exists(&self) -> bool {
        self.folder.exists()
    }

    /// Remove everything, if nothing is remembered and no agent runs.
    pub(super) fn sweep(&self) -> io::Result<()> {
        let Some(_agent) = self.become_agent()? else { return Ok(()) };
        let held = self.hold()?;
        // Reservations that commands created until the next reboot come into force again with the next agent.
        let active = self.folder.join(store::ACTIVE);
        let nothing = Store::open_runtime(&self.folder, &boot_id()).is_ok_and(|store| store.list().is_empty());
        if held.state.ours.is_empty() && (nothing || !active.exists()) {
            let lock = format!("{}.lock", store::ACTIVE);
            for name in [FILE, LOCK, AGENT, store::ACTIVE, &lock, protocol::SOCKET] {
                let _ = fs::remove_file(self.folder.join(name));
            }
            let _ = fs::remove_dir(&self.folder);
        }
        Ok(())
    }

    /// Become the agent. `None`: another one runs.
    pub(super) fn become_agent(&self) -> io::Result<Option<File>> {
        match self.locked(AGENT, FlockOperation::NonBlockingLockExclusive) {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Read the state and lock it, so that the changes of the agent and of `portkeep down` come one after the other.
    pub(super) fn hold(&self) -> io::Result<Held<'_>> {
        let lock = self.locked(LOCK, FlockOperation::LockExclusive)?;
        let path = self.folder.join(FILE);
        let boot = boot_id();
        let state = match fs::read(&path) {
            Ok(text) => match serde_json::from_slice::<State>(&text) {
                Ok(state) if state.boot == boot => state,
                Ok(_) => State { boot, ..State::default() },
                // We did not write this. Without the file our entries stay where they are, which is better than no
                // agent.
                Err(error) => {
                    tracing::error!(file = %path.display(), %error, "unreadable state, starting anew");
                    State { boot, ..State::default() }
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => State { boot, ..State::default() },
            Err(error) => return Err(named(&path)(error)),
        };
        Ok(Held { runtime: self, state, _lock: lock })
    }
}

impl Held<'_> {
    pub(super) fn of(&self, netns: u64) -> PortSet {
        self.state.ours.get(&netns).cloned().unwrap_or_default()
    }

    /// Remember `ours` for a namespace. It is in the file before this returns.
    pub(super) fn remember(&mut self, netns: u64, ours: &PortSet) -> io::Result<()> {
        if *ours == self.of(netns) {
            return Ok(());
        }
        let before =
            if ours.is_empty() { self.state.ours.remove(&netns) } else { self.state.ours.insert(netns, ours.clone()) };
        let path = self.runtime.folder.join(FILE);
        let unfinished = path.with_extension("json.new");
        let mut text = serde_json::to_vec_pretty(&self.state).map_err(io::Error::other)?;
        text.push(b'\n');
        let written = fs::write(&unfinished, text).and_then(|()| fs::rename(&unfinished, &path));
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
            // Restore the content of the file, so that the memory and the file agree.
            match before {
                Some(before) => drop(self.state.ours.insert(netns, before)),
                None => drop(self.state.ours.remove(&netns)),
            }
        }
        written.map_err(|error| {
            let path = path.display();
            io::Error::new(
                error.kind(),
                format!("what is entered into ip_local_reserved_ports cannot be remembered in {path}: {error}"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> PortSet {
        text.parse().unwrap()
    }

    #[test]
    fn a_remembered_set_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = RuntimeDir::at(folder.path().join("made/when/needed"));
        runtime.hold().unwrap().remember(7, &set("1-5")).unwrap();
        runtime.hold().unwrap().remember(8, &set("9")).unwrap();
        assert_eq!(runtime.hold().unwrap().of(7), set("1-5"));
        runtime.hold().unwrap().remember(7, &set("")).unwrap();
        assert_eq!(runtime.hold().unwrap().state.ours.keys().collect::<Vec<_>>(), [&8]);
    }

    #[test]
    fn another_boots_memory_and_rubbish_count_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = RuntimeDir::at(folder.path());
        fs::write(folder.path().join(FILE), r#"{"boot":"before","ours":{"7":"1-5"}}"#).unwrap();
        assert_eq!(runtime.hold().unwrap().of(7), set(""));
        fs::write(folder.path().join(FILE), "{").unwrap();
        assert_eq!(runtime.hold().unwrap().of(7), set(""));
    }

    #[test]
    fn there_is_one_agent_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = RuntimeDir::at(folder.path());
        let first = runtime.become_agent().unwrap();
        assert!(first.is_some() && runtime.become_agent().unwrap().is_none());
        drop(first);
        assert!(runtime.become_agent().unwrap().is_some());
    }
}
