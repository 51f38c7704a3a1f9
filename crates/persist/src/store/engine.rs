//! The store over any disk: each change in one step, and durable when it is reported.

use std::{collections::BTreeMap, io};

use redb::{Database, StorageBackend};

use super::{
    disk::Disk,
    error::StoreError,
    file::{Content, META, RESERVATIONS, builder, discard, guarded, io_error, read, store_error},
    stored::Stored,
};
use crate::Name;

/// A change to the reservations: each name with its new entry, `None` to delete it. It is made in one step.
type Change<'a> = &'a [(&'a Name, Option<&'a Stored>)];

/// The store over any disk.
#[derive(Debug)]
pub(super) struct Engine<D: Disk> {
    disk: D,
    name: &'static str,
    /// `None` after a write failed: then the library requires that the file is opened again.
    database: Option<Database>,
    pub(super) content: BTreeMap<Name, Stored>,
    /// The number of commits. Each commit writes it, so that none is empty.
    commits: u64,
}

impl<D: Disk> Engine<D> {
    pub(super) fn open(disk: D, name: &'static str, boot: Option<&str>) -> Result<Self, StoreError> {
        let mut engine = Self { disk, name, database: None, content: BTreeMap::new(), commits: 0 };
        let mut content = match read(&engine.disk, name)? {
            Some(content) => content,
            None => {
                engine.make(boot)?;
                Content { boot: boot.map(str::to_owned), ..Content::default() }
            }
        };
        engine.database = Some(engine.database()?);
        if content.boot.as_deref() != boot {
            let database = engine.database.as_ref().expect("it was opened a line above");
            for number in 0..2 {
                guarded(|| discard(database, boot, number)).map_err(|error| engine.error(error))?;
            }
            content.stored.clear();
        }
        engine.content = content.stored;
        Ok(engine)
    }

    /// Make an empty store, as a whole or not at all.
    fn make(&self, boot: Option<&str>) -> Result<(), StoreError> {
        let beginning = format!("{}.new", self.name);
        let made = self.make_as(&beginning, boot);
        if made.is_err() {
            // On a full disk the incomplete file would only use space.
            self.disk.remove(&beginning);
        }
        made
    }

    fn make_as(&self, beginning: &str, boot: Option<&str>) -> Result<(), StoreError> {
        let error = |source| self.io(source);
        let file = self.disk.create(beginning).map_err(error)?;
        guarded(|| {
            let database = builder().create_with_backend(file)?;
            for number in 0..2 {
                discard(&database, boot, number)?;
            }
            database.close()?;
            Ok(())
        })
        .map_err(|error| self.error(error))?;
        self.disk.open(beginning).and_then(|file| file.sync_data()).map_err(error)?;
        self.disk.rename(beginning, self.name).map_err(error)?;
        self.disk.sync().map_err(error)
    }

    /// Open the file for writing. Only call this after [`read`] has checked the file.
    fn database(&self) -> Result<Database, StoreError> {
        let file = self.disk.open(self.name).map_err(|source| self.io(source))?;
        guarded(|| Ok(builder().create_with_backend(file)?)).map_err(|error| self.error(error))
    }

    pub(super) fn create(&mut self, stored: &Stored) -> Result<(), StoreError> {
        let name = &stored.declaration.name;
        stored.check()?;
        self.settle()?;
        if self.content.contains_key(name) {
            return Err(StoreError::Exists(name.clone()));
        }
        self.change(&[(name, Some(stored))])
    }

    pub(super) fn replace(&mut self, old: &Name, stored: &Stored) -> Result<(), StoreError> {
        let name = &stored.declaration.name;
        stored.check()?;
        self.settle()?;
        if !self.content.contains_key(old) {
            return Err(StoreError::Missing(old.clone()));
        }
        if name == old {
            return self.change(&[(name, Some(stored))]);
        }
        if self.content.contains_key(name) {
            return Err(StoreError::Exists(name.clone()));
        }
        self.change(&[(old, None), (name, Some(stored))])
    }

    pub(super) fn delete(&mut self, name: &Name) -> Result<Stored, StoreError> {
        self.settle()?;
        let Some(stored) = self.content.get(name).cloned() else { return Err(StoreError::Missing(name.clone())) };
        self.change(&[(name, None)])?;
        Ok(stored)
    }

    /// If a write failed before, read and open the file again.
    fn settle(&mut self) -> Result<(), StoreError> {
        if self.database.is_none() {
            let missing = || self.io(io::Error::from(io::ErrorKind::NotFound));
            self.content = read(&self.disk, self.name)?.ok_or_else(missing)?.stored;
            self.database = Some(self.database()?);
        }
        Ok(())
    }

    /// Make a change durable. If this fails with an error other than [`StoreError::Unsure`], nothing was changed.
    fn change(&mut self, change: Change<'_>) -> Result<(), StoreError> {
        let Err(first) = self.commit(change) else {
            // The change is durable. The second commit is for the other slot. If it fails, the next change writes that
            // slot.
            if self.commit(change).is_err() {
                self.database = None;
            }
            self.remember(change);
            return Ok(());
        };
        let error = self.error(first);
        self.database = None;
        // The first commit may be on the disk although it reported a failure. If it is, take it back. Reading the file
        // to check this requires no disk space.
        let before: Vec<_> = change.iter().map(|(name, _)| self.content.get(name).cloned()).collect();
        let before: Vec<_> = change.iter().zip(&before).map(|((name, _), before)| (*name, before.as_ref())).collect();
        let kept = match read(&self.disk, self.name) {
            Ok(Some(content)) => before.iter().any(|(name, before)| content.stored.get(name) != *before),
            _ => true,
        };
        if !kept || self.take_back(&before) {
            return Err(error);
        }
        let source = match error {
            StoreError::Io { source, .. } => source,
            // The texts of these two say that nothing was changed.
            StoreError::Full { .. } => io::ErrorKind::StorageFull.into(),
            StoreError::Damaged { what, .. } => io::Error::other(what),
            other => io::Error::other(other.to_string()),
        };
        Err(StoreError::Unsure { path: self.disk.path(self.name), source })
    }

    /// Put back the entries from before the change. Returns whether this succeeded.
    fn take_back(&mut self, before: Change<'_>) -> bool {
        let done = self.settle().is_ok() && self.commit(before).is_ok();
        if done {
            self.remember(before);
        } else {
            self.database = None;
        }
        done
    }

    /// Make a change in memory that is on the disk already.
    fn remember(&mut self, change: Change<'_>) {
        for (name, stored) in change {
            match stored {
                Some(stored) => drop(self.content.insert((*name).clone(), (*stored).clone())),
                None => drop(self.content.remove(*name)),
            }
        }
    }

    /// One commit.
    fn commit(&mut self, change: Change<'_>) -> Result<(), redb::Error> {
        self.commits += 1;
        let number = self.commits.to_string();
        let Some(database) = &self.database else { return Err(redb::Error::DatabaseClosed) };
        guarded(|| {
            let transaction = database.begin_write()?;
            {
                let mut table = transaction.open_table(RESERVATIONS)?;
                for (name, stored) in change {
                    match stored {
                        Some(stored) => {
                            let json =
                                serde_json::to_vec(stored).map_err(|error| redb::Error::Io(io::Error::other(error)))?;
                            table.insert(name.as_str(), json.as_slice())?;
                        }
                        None => drop(table.remove(name.as_str())?),
                    }
                }
                transaction.open_table(META)?.insert("commit", number.as_str())?;
            }
            Ok(transaction.commit()?)
        })
    }

    fn io(&self, source: io::Error) -> StoreError {
        io_error(&self.disk, self.name, source)
    }

    fn error(&self, error: redb::Error) -> StoreError {
        store_error(&self.disk, self.name, error)
    }
}
