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
mod error;

use std::{
    collections::BTreeMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    time::Duration,
};

use portkeep_core::Time;
use redb::{
    Builder, Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, backends::InMemoryBackend,
};
use serde::{Deserialize, Serialize};

use crate::{Declaration, Declared, Name, Origin};

use disk::{Disk, Folder, Lock};
pub use error::StoreError;

/// The store that survives reboots, in its folder.
pub const PERSISTENT: &str = "persistent.redb";
/// The store of reservations that live until the next reboot.
pub const ACTIVE: &str = "active.redb";

/// By name, as JSON.
const RESERVATIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("reservations");
/// The file's description of itself: `format`, `boot` (of [`ACTIVE`]), `commit`.
const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
/// The value of `format`. Increment it when a member is added to [`Stored`].
const FORMAT: u32 = 1;

/// A declaration that a command created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stored {
    /// The declaration.
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
        Declared {
            declaration,
            origin: Origin::Command { uid: by_uid, created: Time::from_unix(created), until_reboot: false },
        }
    }

    /// As [`merge`](crate::merge()) wants it, out of the store that lives until the next reboot.
    pub fn active(self) -> Declared {
        let Self { declaration, by_uid, created } = self;
        Declared {
            declaration,
            origin: Origin::Command { uid: by_uid, created: Time::from_unix(created), until_reboot: true },
        }
    }
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

/// Fields of a declaration are public: what is not valid must not get where it is read again.
fn check(stored: &Stored) -> Result<(), StoreError> {
    let again = serde_json::to_vec(stored).and_then(|json| serde_json::from_slice::<Stored>(&json));
    match again {
        Ok(again) if again == *stored => Ok(()),
        Ok(_) => Err(StoreError::Invalid("a name of digits only is a number".into())),
        Err(error) => Err(StoreError::Invalid(error.to_string())),
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

/// The content of a file.
#[derive(Debug, Default)]
struct Content {
    stored: BTreeMap<Name, Stored>,
    boot: Option<String>,
}

/// A change to the reservations: names, and what is there from now on. It is made in one step.
type Change<'a> = &'a [(&'a Name, Option<&'a Stored>)];

/// The store over any disk.
#[derive(Debug)]
struct Engine<D: Disk> {
    disk: D,
    name: &'static str,
    /// `None` after a write failed: the library wants to be opened anew then.
    database: Option<Database>,
    content: BTreeMap<Name, Stored>,
    /// Counts commits, so that none is empty.
    commits: u64,
}

impl<D: Disk> Engine<D> {
    fn open(disk: D, name: &'static str, boot: Option<&str>) -> Result<Self, StoreError> {
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

    /// An empty store, whole or not there.
    fn make(&self, boot: Option<&str>) -> Result<(), StoreError> {
        let beginning = format!("{}.new", self.name);
        let made = self.make_as(&beginning, boot);
        if made.is_err() {
            // On a full disk it would only take space away.
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

    /// The file, open for writing. Only after [`read`] found it good.
    fn database(&self) -> Result<Database, StoreError> {
        let file = self.disk.open(self.name).map_err(|source| self.io(source))?;
        guarded(|| Ok(builder().create_with_backend(file)?)).map_err(|error| self.error(error))
    }

    fn create(&mut self, stored: &Stored) -> Result<(), StoreError> {
        let name = &stored.declaration.name;
        check(stored)?;
        self.settle()?;
        if self.content.contains_key(name) {
            return Err(StoreError::Exists(name.clone()));
        }
        self.change(&[(name, Some(stored))])
    }

    fn replace(&mut self, old: &Name, stored: &Stored) -> Result<(), StoreError> {
        let name = &stored.declaration.name;
        check(stored)?;
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

    fn delete(&mut self, name: &Name) -> Result<Stored, StoreError> {
        self.settle()?;
        let Some(stored) = self.content.get(name).cloned() else { return Err(StoreError::Missing(name.clone())) };
        self.change(&[(name, None)])?;
        Ok(stored)
    }

    /// After a write that failed: read and open the file again.
    fn settle(&mut self) -> Result<(), StoreError> {
        if self.database.is_none() {
            let missing = || self.io(io::Error::from(io::ErrorKind::NotFound));
            self.content = read(&self.disk, self.name)?.ok_or_else(missing)?.stored;
            self.database = Some(self.database()?);
        }
        Ok(())
    }

    /// Make a change durable. When this fails with anything but [`StoreError::Unsure`], it did not happen.
    fn change(&mut self, change: Change<'_>) -> Result<(), StoreError> {
        let Err(first) = self.commit(change) else {
            // It is durable. The second commit is for the other slot, and comes another time if it fails now.
            if self.commit(change).is_err() {
                self.database = None;
            }
            self.remember(change);
            return Ok(());
        };
        let error = self.error(first);
        self.database = None;
        // The first may have got to the disk although it reported a failure: look, and take it back if so. Looking takes
        // no space.
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
            other => io::Error::other(other.to_string()),
        };
        Err(StoreError::Unsure { path: self.disk.path(self.name), source })
    }

    /// Put back what was there before; whether that is done.
    fn take_back(&mut self, before: Change<'_>) -> bool {
        let done = self.settle().is_ok() && self.commit(before).is_ok();
        if done {
            self.remember(before);
        } else {
            self.database = None;
        }
        done
    }

    /// A change is on the disk.
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

/// Everything gone; `number` distinguishes the two commits that do it.
fn discard(database: &Database, boot: Option<&str>, number: u32) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.delete_table(RESERVATIONS)?;
    transaction.open_table(RESERVATIONS)?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert("format", FORMAT.to_string().as_str())?;
        meta.insert("commit", number.to_string().as_str())?;
        if let Some(boot) = boot {
            meta.insert("boot", boot)?;
        }
    }
    Ok(transaction.commit()?)
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    // All of a store is a few MiB, and it is in memory already.
    builder.set_cache_size(1 << 20);
    builder
}

/// The largest format of the library's files that is known here, and where a file says which it has: one byte at the
/// begin of each commit slot.
const KNOWN_FORMAT: u8 = 3;
const FORMAT_AT: [usize; 2] = [64, 192];

/// The content of a file, checked to the last page, without touching it. `None`: there is no file.
fn read<D: Disk>(disk: &D, name: &str) -> Result<Option<Content>, StoreError> {
    let bytes = match disk.read(name) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(StoreError::Damaged { path: disk.path(name), what: error.to_string() });
        }
        Err(error) => return Err(io_error(disk, name, error)),
    };
    if bytes.is_empty() {
        return Err(StoreError::Damaged { path: disk.path(name), what: "it is empty".into() });
    }
    let slots = FORMAT_AT.map(|at| bytes.get(at).copied().unwrap_or_default());
    if bytes.starts_with(b"redb") && slots[0] == slots[1] && slots[0] > KNOWN_FORMAT {
        let what = format!("its file format is {}, the newest known here {KNOWN_FORMAT}", slots[0]);
        return Err(StoreError::Newer { path: disk.path(name), what });
    }
    let read = guarded(|| {
        let memory = InMemoryBackend::new();
        memory.set_len(bytes.len() as u64)?;
        memory.write(0, &bytes)?;
        drop(bytes);
        let database = builder().set_check_integrity_on_open(true).create_with_backend(memory)?;
        let transaction = database.begin_read()?;
        let meta = transaction.open_table(META)?;
        let format = meta.get("format")?.map(|format| format.value().to_owned()).unwrap_or_default();
        let mut content = Content { boot: meta.get("boot")?.map(|boot| boot.value().to_owned()), ..Content::default() };
        match format.parse::<u32>() {
            Ok(FORMAT) => {}
            _ => return Ok(Err(format)),
        }
        for entry in transaction.open_table(RESERVATIONS)?.iter()? {
            let (name, json) = entry?;
            let stored: Stored = serde_json::from_slice(json.value())
                .map_err(|error| redb::Error::Corrupted(format!("the entry {:?}: {error}", name.value())))?;
            if stored.declaration.name.as_str() != name.value() {
                return Err(redb::Error::Corrupted(format!("the entry {:?} is one of another name", name.value())));
            }
            content.stored.insert(stored.declaration.name.clone(), stored);
        }
        Ok(Ok(content))
    });
    match read {
        Ok(Ok(content)) => Ok(Some(content)),
        Ok(Err(format)) if format.parse::<u32>().is_ok_and(|format| format > FORMAT) => {
            let what = format!("its format is {format}, the newest known here {FORMAT}");
            Err(StoreError::Newer { path: disk.path(name), what })
        }
        Ok(Err(format)) => {
            Err(StoreError::Damaged { path: disk.path(name), what: format!("its format is {format:?}") })
        }
        // Memory does not fail: whatever it is, the bytes are the reason.
        Err(error) => Err(StoreError::Damaged { path: disk.path(name), what: error.to_string() }),
    }
}

/// Do something with the library. A panic of its own comes back as an error.
fn guarded<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Err(redb::Error::Corrupted(text.unwrap_or_else(|| "the database library panicked".into())))
        }
    }
}

fn io_error<D: Disk>(disk: &D, name: &str, source: io::Error) -> StoreError {
    let path = disk.path(name);
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full { path },
        _ => StoreError::Io { path, source },
    }
}

fn store_error<D: Disk>(disk: &D, name: &str, error: redb::Error) -> StoreError {
    match error {
        redb::Error::Io(source) => io_error(disk, name, source),
        redb::Error::Corrupted(what) => StoreError::Damaged { path: disk.path(name), what },
        redb::Error::DatabaseAlreadyOpen => StoreError::InUse { path: disk.path(name), pid: None },
        other => io_error(disk, name, io::Error::other(other)),
    }
}
