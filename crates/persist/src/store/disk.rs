//! The store's view of a disk: a folder with a few files.
//!
//! It is a trait so that the crash test can use another disk, which loses all data that was not synced.

use std::{
    fmt::Debug,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use redb::{StorageBackend, backends::FileBackend};
use rustix::fs::{FlockOperation, OFlags, flock};

use super::error::StoreError;

/// A larger file is not a store: 65,535 reservations of the longest kind are smaller.
const LARGEST: u64 = 256 << 20;

/// A folder with files.
pub(super) trait Disk: Debug {
    /// An open file.
    type File: StorageBackend;

    /// The content of a file, `None` if there is no such file.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>>;
    /// Open a file that exists.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Make an empty file. It replaces an existing file of that name.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Give a file another name. It replaces an existing file of that name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Remove a file, if it is there.
    fn remove(&self, name: &str);
    /// Make the names durable.
    fn sync(&self) -> io::Result<()>;
    /// The path of a file, for messages.
    fn path(&self, name: &str) -> PathBuf;
}

/// A real folder.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// The folder, made with mode 0700 if it is not there.
    pub(super) fn open_or_make(path: &Path) -> Result<Self, StoreError> {
        let error = |source| StoreError::Io { path: path.to_owned(), source };
        let missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.exists()).collect();
        if !missing.is_empty() {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(error)?;
        }
        // A power cut must not remove a folder above the store.
        for parent in missing.iter().filter_map(|folder| folder.parent()) {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(error)?;
        }
        let mode = fs::metadata(path).map_err(error)?.permissions().mode();
        if mode & 0o022 != 0 {
            return Err(StoreError::Open { path: path.to_owned() });
        }
        Ok(Self(path.to_owned()))
    }

    /// A folder for reading only. It need not exist.
    pub(super) fn existing(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Become the one process that has `name` open.
    pub(super) fn lock(&self, name: &str) -> Result<Lock, StoreError> {
        let error = |source| StoreError::Io { path: self.path(name), source };
        let mut file = options().write(true).create(true).open(self.path(&format!("{name}.lock"))).map_err(error)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                // The pid is only for the message to the next process. If the disk is full, the lock is still valid.
                let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
                Ok(Lock(file))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let _ = file.take(16).read_to_string(&mut text);
                Err(StoreError::InUse { path: self.path(name), pid: text.trim().parse().ok() })
            }
            Err(errno) => Err(error(errno.into())),
        }
    }
}

/// The lock of the one process that has a store open. When the process ends, in any way, the kernel releases the lock.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that is being started has copies of all descriptors for a moment.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Options to open the store's own files: links are not followed, and only the owner has access.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits();
    options.read(true).mode(0o600).custom_flags(flags.cast_signed());
    options
}

/// A regular file or an error.
fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

impl Disk for Folder {
    type File = FileBackend;

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut file = match options().open(self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => regular(opened?)?,
        };
        if file.metadata()?.size() > LARGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "is far larger than a store ever is"));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn open(&self, name: &str) -> io::Result<FileBackend> {
        backend(regular(options().write(true).open(self.path(name))?)?)
    }

    fn create(&self, name: &str) -> io::Result<FileBackend> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        backend(options().write(true).create_new(true).open(self.path(name))?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.path(name));
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

fn backend(file: File) -> io::Result<FileBackend> {
    FileBackend::new(file).map_err(io::Error::other)
}
