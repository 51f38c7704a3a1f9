//! The file of a store: its tables, and how it is read without being touched.

use std::{
    collections::BTreeMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
};

use redb::{
    Builder, Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, backends::InMemoryBackend,
};

use super::{disk::Disk, error::StoreError, stored::Stored};
use crate::Name;

/// The entries by name, as JSON.
pub(super) const RESERVATIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("reservations");
/// The file's description of itself: `format`, `boot` (only in [`super::ACTIVE`]), `commit`.
pub(super) const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
/// The value of `format`. Increment it when a member is added to [`Stored`].
const FORMAT: u32 = 1;

/// The content of a file.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) stored: BTreeMap<Name, Stored>,
    pub(super) boot: Option<String>,
}

/// Delete all entries in one commit. The caller does this twice; `number` distinguishes the two commits.
pub(super) fn discard(database: &Database, boot: Option<&str>, number: u32) -> Result<(), redb::Error> {
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

pub(super) fn builder() -> Builder {
    let mut builder = Builder::new();
    // All of a store is a few MiB, and it is in memory already.
    builder.set_cache_size(1 << 20);
    builder
}

/// The newest format of the library's files that is known here.
const KNOWN_FORMAT: u8 = 3;
/// The places of a file's format: one byte at the beginning of each commit slot.
const FORMAT_AT: [usize; 2] = [64, 192];

/// The content of a file, checked to the last page, without touching it. `None`: there is no file.
pub(super) fn read<D: Disk>(disk: &D, name: &str) -> Result<Option<Content>, StoreError> {
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
        // Memory does not fail, so the bytes are the cause of any error.
        Err(error) => Err(StoreError::Damaged { path: disk.path(name), what: error.to_string() }),
    }
}

/// Call the library. If it panics, the panic is returned as an error.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Err(redb::Error::Corrupted(text.unwrap_or_else(|| "the database library panicked".into())))
        }
    }
}

pub(super) fn io_error<D: Disk>(disk: &D, name: &str, source: io::Error) -> StoreError {
    let path = disk.path(name);
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full { path },
        _ => StoreError::Io { path, source },
    }
}

pub(super) fn store_error<D: Disk>(disk: &D, name: &str, error: redb::Error) -> StoreError {
    match error {
        redb::Error::Io(source) => io_error(disk, name, source),
        redb::Error::Corrupted(what) => StoreError::Damaged { path: disk.path(name), what },
        redb::Error::DatabaseAlreadyOpen => StoreError::InUse { path: disk.path(name), pid: None },
        other => io_error(disk, name, io::Error::other(other)),
    }
}
