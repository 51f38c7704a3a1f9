//! Files that are written as a whole or not at all.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// An error if [`write_whole`] could not write this file now. An existing file stays as it is.
pub(crate) fn check_writable(path: &Path) -> io::Result<()> {
    match unfinished(path) {
        Some((_, unfinished)) => File::create(&unfinished).and_then(|_| fs::remove_file(&unfinished)),
        None => File::options().write(true).open(path).map(drop),
    }
}

/// Write all of it or nothing: an existing file stays as it is until the new one is complete on the disk.
pub(crate) fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let Some((path, unfinished)) = unfinished(path) else { return fs::write(path, text) };
    let written = File::create(&unfinished).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        if let Ok(found) = fs::metadata(&path) {
            file.set_permissions(found.permissions())?;
        }
        file.sync_all()?;
        fs::rename(&unfinished, &path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}

/// The file itself, not a link to it, and the file that is written in its place. `None` for a device or a FIFO, which
/// cannot be replaced as a whole.
fn unfinished(path: &Path) -> Option<(PathBuf, PathBuf)> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return None;
    }
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut unfinished = path.clone().into_os_string();
    unfinished.push(".new");
    Some((path, unfinished.into()))
}
