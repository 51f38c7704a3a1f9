//! The memory of a host across restarts of its daemon: which cluster it belongs to, how far it has seen, and since when
//! etcd cannot be reached.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, bail};
use portkeep::Time;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::{complain, config::Config, etcd::EtcdError};

/// The content of the state file. Every process may read it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// The cluster's id, hexadecimal.
    pub(crate) cluster: String,
    /// The latest revision of etcd that was acted on.
    pub(crate) revision: i64,
    /// A key that this host has acted on or written, and the revision of that change: the last one.
    #[serde(default)]
    pub(crate) change: Option<(String, i64)>,
    /// Since when etcd cannot be reached.
    pub(crate) cut_off: Option<Time>,
    /// Why.
    pub(crate) reason: Option<String>,
}

/// A random number that identifies something, as text.
pub(crate) fn random_id() -> io::Result<String> {
    let number = getrandom::u64().map_err(io::Error::other)?;
    Ok(format!("{number:016x}"))
}

/// The state file of this host, held by its one daemon.
#[derive(Debug)]
pub(crate) struct Memory {
    path: PathBuf,
    facts: Facts,
    change: Option<(String, i64)>,
    machine: String,
    /// When etcd answered last.
    answered: SystemTime,
    /// The last attempt to write the file failed.
    unwritable: bool,
    _alone: File,
}

fn path(config: &Config, host: &str) -> PathBuf {
    config.state_dir.join(format!("{host}.json"))
}

/// The facts as the daemon of a host has written them last.
pub(crate) fn look(config: &Config, host: &str) -> Option<Facts> {
    read(&path(config, host)).ok()?
}

fn read(path: &Path) -> anyhow::Result<Option<Facts>> {
    match fs::read(path) {
        // After a power failure the file may be empty or incomplete. Then the reservations are gone, too.
        Ok(text) => Ok(serde_json::from_slice(&text)
            .inspect_err(|error| {
                complain("warning", format_args!("{} is damaged ({error}) and is not used", path.display()))
            })
            .ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// The number in a file. If there is no file, it is made.
fn machine(path: &Path) -> anyhow::Result<String> {
    if let Ok(number) = fs::read_to_string(path)
        && !number.is_empty()
    {
        return Ok(number);
    }
    let number = random_id().context("getting a random number")?;
    fs::write(path, &number).with_context(|| format!("writing {}", path.display()))?;
    Ok(number)
}

impl Memory {
    /// Read the file, and make sure that no other daemon uses it.
    pub(crate) fn open(config: &Config, host: &str) -> anyhow::Result<Self> {
        let path = path(config, host);
        let folder = &config.state_dir;
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let lock = path.with_extension("lock");
        let file = File::create(&lock).with_context(|| format!("opening {}", lock.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("a daemon of host {host:?} is already running ({} is locked)", lock.display());
        }
        let machine = machine(&path.with_extension("machine"))?;
        let facts = read(&path)?.unwrap_or_default();
        Ok(Self {
            change: facts.change.clone(),
            facts,
            path,
            machine,
            answered: SystemTime::now(),
            unwritable: false,
            _alone: file,
        })
    }

    /// A random number of this machine: no two have one name in the fleet.
    pub(crate) fn machine(&self) -> &str {
        &self.machine
    }

    /// Everything up to this revision is acted on. Refuses an etcd that is behind.
    pub(crate) fn reached(&mut self, cluster: u64, revision: i64) -> Result<(), EtcdError> {
        self.check(revision)?;
        self.answered();
        let change = self.change.clone();
        let facts = Facts { cluster: format!("{cluster:x}"), revision, change, cut_off: None, reason: None };
        self.write(facts);
        Ok(())
    }

    /// An etcd with this revision is not behind.
    pub(crate) fn check(&self, found: i64) -> Result<(), EtcdError> {
        if found >= self.facts.revision { Ok(()) } else { Err(self.older(self.facts.revision, found)) }
    }

    pub(crate) fn older(&self, seen: i64, found: i64) -> EtcdError {
        EtcdError::Older { seen, found, file: self.path.display().to_string() }
    }

    /// This host acts on the change of a key, or has made it. The file gets the change with the next revision that is
    /// reached.
    pub(crate) fn knows(&mut self, key: &str, revision: i64) {
        self.change = Some((key.to_owned(), revision));
    }

    /// The last of these changes.
    pub(crate) fn change(&self) -> Option<(&str, i64)> {
        self.change.as_ref().map(|(key, revision)| (key.as_str(), *revision))
    }

    /// etcd has answered.
    pub(crate) fn answered(&mut self) {
        self.answered = SystemTime::now();
    }

    /// etcd cannot be reached since its last answer.
    pub(crate) fn cut_off(&mut self, reason: &EtcdError) {
        if self.facts.cut_off.is_none() {
            let facts = Facts {
                cut_off: Some(self.answered.into()),
                reason: Some(reason.to_string()),
                change: self.change.clone(),
                ..self.facts.clone()
            };
            self.write(facts);
        }
    }

    /// etcd can be reached again.
    pub(crate) fn back(&mut self) {
        self.answered();
        if self.facts.cut_off.is_some() {
            self.write(Facts { cut_off: None, reason: None, ..self.facts.clone() });
        }
    }

    fn write(&mut self, facts: Facts) {
        if facts == self.facts {
            return;
        }
        self.facts = facts;
        let new = self.path.with_extension("new");
        let text = serde_json::to_string(&self.facts).unwrap_or_default();
        // A full disk must not keep the host from ending reservations. The kernel's reservations keep outsiders off;
        // this file only helps.
        let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &self.path));
        if let Err(error) = &written
            && !self.unwritable
        {
            complain("warning", format_args!("cannot write {}: {error}", self.path.display()));
        }
        self.unwritable = written.is_err();
    }
}
