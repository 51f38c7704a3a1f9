//! Making and removing the folder of the pins.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::error::{InstanceError, io_error, pin_error};
use crate::{
    load::Loaded,
    maps::{self, MapAccessError},
    object::ADMIN,
    settings::Settings,
    sys,
};

/// Unfinished folders start with this. It has no dot: bpffs refuses names with one (`bpf_lookup` in
/// kernel/bpf/inode.c).
pub(super) const UNFINISHED: &str = "portkeep-unfinished-";

/// Load, pin and attach everything in a folder that is not yet renamed into place.
pub(super) fn build(folder: &Path, settings: &Settings, enforce: &Path, serve: &Path) -> Result<(), InstanceError> {
    for part in ["maps", "links", "programs"] {
        let path = folder.join(part);
        fs::create_dir_all(&path).map_err(io_error("making", &path))?;
    }
    for path in [folder.to_owned(), folder.join("maps"), folder.join("links"), folder.join("programs")] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).map_err(io_error("protecting", &path))?;
    }
    let mut loaded = Loaded::load()?;
    for name in maps::NAMES {
        let path = folder.join("maps").join(name);
        loaded.pin_map(name, &path)?;
    }
    loaded.pin_admin(&folder.join("programs").join(ADMIN))?;
    loaded.attach(settings, enforce, serve)?;
    for link in std::mem::take(&mut loaded.links) {
        let path = folder.join("links").join(link.name);
        sys::pin(&link.fd, &path).map_err(io_error("pinning", &path))?;
    }
    Ok(())
}

pub(super) fn remove_unfinished(parent: &Path) -> Result<(), InstanceError> {
    for (path, _) in entries_of(parent)? {
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(UNFINISHED)) {
            remove_tree(&path)?;
        }
    }
    Ok(())
}

/// The entries of a folder, each with whether it is a folder itself; none if the folder does not exist. All are read
/// before any of them is opened, because an entry of `std` keeps the folder open: if descriptors ran out, one must be
/// enough.
fn entries_of(folder: &Path) -> Result<Vec<(PathBuf, bool)>, InstanceError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io_error("reading", folder))?,
    };
    let is_folder = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    Ok(entries.flatten().map(|entry| (entry.path(), is_folder(&entry))).collect())
}

/// `fs::remove_dir_all` opens files in ways that bpffs does not support, so this removes the few levels itself.
pub(super) fn remove_tree(folder: &Path) -> Result<(), InstanceError> {
    for (path, is_folder) in entries_of(folder)? {
        if is_folder {
            remove_tree(&path)?;
        } else {
            fs::remove_file(&path).map_err(io_error("removing", &path))?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("removing", folder)(error)),
        _ => Ok(()),
    }
}

impl Loaded {
    fn pin_map(&self, name: &'static str, path: &Path) -> Result<(), InstanceError> {
        self.ebpf.map(name).ok_or(MapAccessError::Missing(name))?.pin(path).map_err(pin_error(path))
    }

    pub(super) fn pin_admin(&self, path: &Path) -> Result<(), InstanceError> {
        sys::pin(self.program_fd(ADMIN)?, path).map_err(io_error("pinning", path))
    }
}
