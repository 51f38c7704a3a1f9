//! The store: the reservations that commands created. They survive kill -9 and power cuts.
//!
//! It is one file of [redb](https://docs.rs/redb), with checksums of all pages and two commit slots. A commit writes
//! the older slot. So the newer slot is valid until the whole change is on the disk. Four things are added here:
//!
//! - The file is made under another name and renamed when it is complete. So a file under its final name was complete
//!   once. If it cannot be read, it is damaged.
//! - Before the file is opened for writing, a copy in memory is opened, checked to the last page and read. So a damaged
//!   or newer file is found before it is touched. If the library panics at the copy, the file counts as damaged.
//! - Every change is committed twice, so that both slots have it. If one slot is damaged later, the library uses the
//!   other one. No change is lost that was reported done.
//! - The content is also in memory. So reading never waits for the disk. After a failed write, the file is compared
//!   with the content in memory.

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

/// An open store. One process at a time can have it open.
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
    /// If another process has it open, other users can write the folder, or the file is damaged, of a newer Portkeep or
    /// cannot be read. The file is not touched then.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_as(dir, PERSISTENT, None)
    }

    /// Open the store of reservations that live until the next reboot. `boot_id` names this boot
    /// (`/proc/sys/kernel/random/boot_id`). Entries of another boot are discarded.
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

    /// Add an entry. It is on the disk when this returns.
    ///
    /// # Errors
    ///
    /// If there is an entry of that name, the new one is not valid, or it could not be written. Nothing is changed
    /// then, except perhaps with [`StoreError::Unsure`].
    pub fn create(&mut self, stored: &Stored) -> Result<(), StoreError> {
        self.engine.create(stored)
    }

    /// Replace the entry `name` by another, in one step: after a power cut at any moment, there is the old or the new
    /// one. The new one is on the disk when this returns.
    ///
    /// # Errors
    ///
    /// If there is no entry `name`, the new one is not valid, a third entry has its name, or it could not be written.
    /// Nothing is changed then, except perhaps with [`StoreError::Unsure`].
    pub fn replace(&mut self, name: &Name, stored: &Stored) -> Result<(), StoreError> {
        self.engine.replace(name, stored)
    }

    /// Delete an entry and return it. It is deleted on the disk when this returns.
    ///
    /// # Errors
    ///
    /// If there is no entry of that name, or the change could not be written. Nothing is changed then, except perhaps
    /// with [`StoreError::Unsure`].
    pub fn delete(&mut self, name: &Name) -> Result<Stored, StoreError> {
        self.engine.delete(name)
    }

    /// The entry of this name.
    pub fn get(&self, name: &Name) -> Option<&Stored> {
        self.engine.content.get(name)
    }

    /// All entries, the oldest first. Entries of the same second are in the order of their names.
    pub fn list(&self) -> Vec<&Stored> {
        let mut all: Vec<_> = self.engine.content.values().collect();
        all.sort_by_key(|stored| stored.created);
        all
    }

    /// The content of the store of `dir`, as [`Store::list`] returns it, whether or not another process has it open.
    /// Nothing is written or locked: a copy is read. If the other process writes meanwhile, the checksums show it, and
    /// another copy is read. If there is no store, the result is empty.
    ///
    /// # Errors
    ///
    /// If it is damaged, of a newer Portkeep, or cannot be read.
    pub fn list_readonly(dir: &Path) -> Result<Vec<Stored>, StoreError> {
        Ok(oldest_first(read_patiently(dir, PERSISTENT)?))
    }

    /// The same of the store of reservations that live until the next reboot. Entries of a boot other than `boot_id` do
    /// not count.
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
