//! The store: what commands created, kept through kill -9 and power cuts.
//!
//! It is one file of [redb](https://docs.rs/redb): pages with checksums, and two commit slots of which a commit writes
//! the older one, so that the newer stands until all of a change is on the disk. Four things are added here:
//!
//! - The file comes into being under another name and is renamed when it is whole. A file under its name was complete
//!   once, so what cannot be read is damage and never a beginning.
//! - Before the file is opened for writing, a copy in memory is opened, checked to the last page and read. A damaged or
//!   newer file is known by then and has not been touched. Should the library panic over it, that is damage, too.
//! - Every change is committed twice, so that both slots have it. If one of them is damaged later and the library goes
//!   back to the other, nothing is lost that was reported done.
//! - Its content is also in memory. Reading never waits for the disk, and what a failed write left behind is found out
//!   by comparing.

#[cfg(test)]
mod crash;
mod disk;
mod engine;
mod error;
mod file;
mod stored;

use std::{fs, path::Path, time::Duration};

use crate::Name;

use disk::{Folder, Lock};
use engine::Engine;
pub use error::StoreError;
use file::{Content, read};
pub use stored::Stored;

/// The store that survives reboots, in its folder.
pub const PERSISTENT: &str = "persistent.redb";
/// The store of reservations that live until the next reboot.
pub const ACTIVE: &str = "active.redb";

/// The kernel's name of this boot.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// An open store. One process at a time has it.
#[derive(Debug)]
pub struct Store {
    engine: Engine<Folder>,
    // After the engine, so that it is dropped when the file is closed.
    _lock: Lock,
}

impl Store {
    /// Open the store of `dir`, or make an empty one (and the folder, mode 0700) if there is none.
    ///
    /// # Errors
    ///
    /// If another process has it, the folder is open to others, or the file is damaged, of a newer Portkeep or cannot be
    /// read. It is not touched then.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_as(dir, PERSISTENT, None)
    }

    /// Open the store of reservations that live until the next reboot. Entries that another boot than `boot_id`
    /// (`/proc/sys/kernel/random/boot_id`) left there is discarded.
    ///
    /// # Errors
    ///
    /// As [`Store::open`].
    pub fn open_runtime(dir: &Path, boot_id: &str) -> Result<Self, StoreError> {
        Self::open_as(dir, ACTIVE, Some(boot_id))
    }

    fn open_as(dir: &Path, name: &'static str, boot: Option<&str>) -> Result<Self, StoreError> {
        let folder = Folder::open_or_make(dir)?;
        let lock = folder.lock(name)?;
        Ok(Self { engine: Engine::open(folder, name, boot)?, _lock: lock })
    }

    /// Add one. It is on the disk when this returns.
    ///
    /// # Errors
    ///
    /// If there is one of that name, it is not valid, or it could not be written; nothing is changed then
    /// ([`StoreError::Unsure`] says what it says).
    pub fn create(&mut self, stored: &Stored) -> Result<(), StoreError> {
        self.engine.create(stored)
    }

    /// Put another in the place of one, in one step: whenever the power goes, there is the one or the other. It is on the
    /// disk when this returns.
    ///
    /// # Errors
    ///
    /// If there is none of that name, one that is not valid or has the name of a third, or it could not be written; nothing
    /// is changed then ([`StoreError::Unsure`] says what it says).
    pub fn replace(&mut self, name: &Name, stored: &Stored) -> Result<(), StoreError> {
        self.engine.replace(name, stored)
    }

    /// Take one away and give it back. It is gone from the disk when this returns.
    ///
    /// # Errors
    ///
    /// If there is none of that name, or it could not be written; nothing is changed then.
    pub fn delete(&mut self, name: &Name) -> Result<Stored, StoreError> {
        self.engine.delete(name)
    }

    /// The one of this name.
    pub fn get(&self, name: &Name) -> Option<&Stored> {
        self.engine.content.get(name)
    }

    /// All, the oldest first, those of one second by name.
    pub fn list(&self) -> Vec<&Stored> {
        let mut all: Vec<_> = self.engine.content.values().collect();
        all.sort_by_key(|stored| stored.created);
        all
    }

    /// The content of the store of `dir`, as [`Store::list`] gives it, whether or not another process has it open. Nothing is
    /// written and nothing locked: a copy is read, and if the other process was writing meanwhile the checksums show
    /// and another copy is read. No such store is an empty one.
    ///
    /// # Errors
    ///
    /// If it is damaged, of a newer Portkeep, or cannot be read.
    pub fn list_readonly(dir: &Path) -> Result<Vec<Stored>, StoreError> {
        Ok(oldest_first(read_patiently(dir, PERSISTENT)?))
    }

    /// The same of the store of reservations that live until the next reboot; what another boot than `boot_id` left
    /// there does not count.
    ///
    /// # Errors
    ///
    /// As [`Store::list_readonly`].
    pub fn list_runtime_readonly(dir: &Path, boot_id: &str) -> Result<Vec<Stored>, StoreError> {
        let content = read_patiently(dir, ACTIVE)?;
        Ok(oldest_first(content.filter(|content| content.boot.as_deref() == Some(boot_id))))
    }
}

fn read_patiently(dir: &Path, name: &'static str) -> Result<Option<Content>, StoreError> {
    let folder = Folder::existing(dir);
    let mut tries = 0..10;
    loop {
        match read(&folder, name) {
            Err(StoreError::Damaged { .. }) if tries.next().is_some() => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

fn oldest_first(content: Option<Content>) -> Vec<Stored> {
    let mut all: Vec<_> = content.map(|content| content.stored).unwrap_or_default().into_values().collect();
    all.sort_by_key(|stored| stored.created);
    all
}
