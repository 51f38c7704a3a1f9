//! Files that are written as a whole or not at all.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

/// Write all of it or nothing: an existing file stays as it is until the new one is complete on the disk.
pub(crate) fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let found = fs::metadata(path);
    if found.as_ref().is_ok_and(|found| !found.is_file()) {
        // A device or a FIFO cannot be replaced as a whole.
        return fs::write(path, text);
    }
    // Replace the file, not the link to it.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut unfinished = path.clone().into_os_string();
    unfinished.push(".new");
    let written = File::create(&unfinished).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        if let Ok(found) = found {
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
