//! The store: what commands created, kept through kill -9 and power cuts.

mod error;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Declaration, Declared, Name, Origin};

pub use error::StoreError;

/// A declaration that a command created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// What was declared.
    pub declaration: Declaration,
    /// The user whose command it was.
    pub by_uid: u32,
    /// When, in seconds since 1970.
    pub created: u64,
}

impl Stored {
    /// As [`merge`](crate::merge()) wants it, out of the store that survives reboots.
    pub fn persistent(self) -> Declared {
        let Self { declaration, by_uid, created } = self;
        Declared { declaration, origin: Origin::Store { by_uid, since: created } }
    }

    /// As [`merge`](crate::merge()) wants it, out of the store that lives until the next reboot.
    pub fn active(self) -> Declared {
        let Self { declaration, by_uid, created } = self;
        Declared { declaration, origin: Origin::Active { by_uid, since: created } }
    }
}

/// An open store. One process at a time has it.
#[derive(Debug)]
pub struct Store {}

impl Store {
    /// Open the store of `dir`, or make an empty one (and the folder, mode 0700) if there is none.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        todo!("{dir:?}")
    }

    /// Open the store of reservations that live until the next reboot. What another boot left is discarded.
    pub fn open_runtime(dir: &Path, boot_id: &str) -> Result<Self, StoreError> {
        todo!("{dir:?} {boot_id}")
    }

    /// Add one. It is on the disk when this returns.
    pub fn create(&mut self, stored: &Stored) -> Result<(), StoreError> {
        todo!("{stored:?}")
    }

    /// Take one away and give it back. It is gone from the disk when this returns.
    pub fn delete(&mut self, name: &Name) -> Result<Stored, StoreError> {
        todo!("{name}")
    }

    /// The one of this name.
    pub fn get(&self, name: &Name) -> Option<&Stored> {
        todo!("{name}")
    }

    /// All, the oldest first, those of one second by name.
    pub fn list(&self) -> Vec<&Stored> {
        todo!()
    }

    /// What the store of `dir` has, whether or not somebody has it open; nothing is written.
    pub fn list_readonly(dir: &Path) -> Result<Vec<Stored>, StoreError> {
        todo!("{dir:?}")
    }
}
