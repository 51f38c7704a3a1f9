//! The BPF file system the kernel part is pinned in.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::statfs,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

/// `BPF_FS_MAGIC` of `include/uapi/linux/magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Where distributions mount it.
pub const DEFAULT: &str = "/sys/fs/bpf";

/// Whether a folder is in a BPF file system.
pub fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.f_type as u64 == BPF_FS_MAGIC)
}

/// Make sure there is a BPF file system at `path`, mounting one if need be.
/// True if it was mounted now, so that whoever tidies up can unmount it.
///
/// Only on an empty folder: a mount hides what is below it, and the parent of
/// a mistyped path can be anything, `/` included.
pub fn ensure(path: &Path) -> io::Result<bool> {
    if is_bpffs(path) {
        return Ok(false);
    }
    fs::create_dir_all(path)?;
    if fs::read_dir(path)?.next().is_some() {
        return Err(io::Error::new(
            io::ErrorKind::DirectoryNotEmpty,
            "it is not in a BPF file system, and not empty, so none is mounted over it",
        ));
    }
    mount("bpf", path, "bpf", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, Some(c"mode=0755"))?;
    Ok(true)
}

/// Unmount the BPF file system at `path` if nothing is left in it.
pub fn unmount_if_empty(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        // The kernel's own (CONFIG_BPF_PRELOAD), in every BPF file system from the start.
        let name = entry?.file_name();
        if name != "maps.debug" && name != "progs.debug" {
            return Ok(false);
        }
    }
    unmount(path, UnmountFlags::empty())?;
    Ok(true)
}

/// The nearest folder at or above `path` that exists and is in a BPF file system.
pub fn mount_point_of(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|folder| is_bpffs(folder)).map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_ever_mounted_over_files() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("precious"), "").unwrap();
        let error = ensure(folder.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::DirectoryNotEmpty);
        assert!(folder.path().join("precious").exists() && !is_bpffs(folder.path()));
    }
}
