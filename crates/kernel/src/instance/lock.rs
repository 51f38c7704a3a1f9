//! The lock beside the pins.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    process::geteuid,
};

use super::error::InstanceError;

/// An exclusive lock on the folder beside the pins, until it is dropped. If nothing is up then, its folder is removed
/// too, so that a failure leaves nothing behind.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
    path: PathBuf,
    pins: PathBuf,
}

impl Lock {
    pub(super) fn exclusive(folder: &Path) -> Result<Self, InstanceError> {
        let mut name = folder.file_name().unwrap_or_default().to_owned();
        name.push("-lock");
        let path = folder.with_file_name(name);
        let locking = |source: io::Error| InstanceError::Lock { path: path.clone(), source };
        loop {
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(locking(error)),
                _ => {}
            }
            let file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(locking)?,
            };
            if !file.metadata().is_ok_and(|meta| meta.uid() == geteuid().as_raw()) {
                return Err(locking(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to somebody else")));
            }
            flock(&file, FlockOperation::LockExclusive).map_err(|errno| locking(errno.into()))?;
            // `down` removes the folder. Then this lock is on a folder that no longer exists.
            if same_folder(&file, &path) {
                return Ok(Self { _file: file, path, pins: folder.to_owned() });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Before the file closes: the next process either waits for this lock or makes a new folder.
        if !self.pins.exists() {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// True if the path still names the open folder.
pub(super) fn same_folder(open: &File, path: &Path) -> bool {
    match (open.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}
