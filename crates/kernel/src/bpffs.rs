//! The BPF file system that holds the pinned BPF programs and maps.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::statfs,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

/// `BPF_FS_MAGIC` of `include/uapi/linux/magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// The "device" of the file systems that we mount.
const OURS: &str = "portkeep";

/// Where distributions mount it.
pub const DEFAULT: &str = "/sys/fs/bpf";

/// Whether a folder is in a BPF file system.
pub fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.f_type as u64 == BPF_FS_MAGIC)
}

/// Make sure that a BPF file system is mounted at `path`. True if this call mounted it, so that the caller can unmount
/// it.
///
/// Mounts only on an empty folder: a mount hides what is below it, and the parent of a mistyped path can be anything,
/// `/` included.
pub fn ensure(path: &Path) -> io::Result<bool> {
    if is_bpffs(path) {
        return Ok(false);
    }
    let missing: Vec<_> = path.ancestors().take_while(|folder| !folder.exists()).collect();
    let mounted = fs::create_dir_all(path).and_then(|()| mount_at(path));
    if mounted.is_err() {
        // Remove the folders that were made for it, the innermost first.
        for folder in missing {
            let _ = fs::remove_dir(folder);
        }
    }
    mounted.map(|()| true)
}

fn mount_at(path: &Path) -> io::Result<()> {
    if fs::read_dir(path)?.next().is_some() {
        return Err(io::Error::new(
            io::ErrorKind::DirectoryNotEmpty,
            "it is not in a BPF file system, and not empty, so none is mounted over it; mount one elsewhere and name it \
             with --pin-dir",
        ));
    }
    // As systemd mounts it, except for the name, which later shows that we mounted it.
    mount(OURS, path, "bpf", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, Some(c"mode=0700"))?;
    Ok(())
}

/// Unmount the BPF file system at `path` if we mounted it and nothing is left in it. True if it is gone.
pub fn unmount_own(path: &Path) -> bool {
    is_ours(path) && is_empty(path) && unmount(path, UnmountFlags::empty()).is_ok()
}

/// If a path has several mounts, the last one is visible.
fn is_ours(path: &Path) -> bool {
    // The mounts of this thread, since it may have a mount namespace of its own.
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap_or_default();
    let last = mounts.lines().rev().find(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == path));
    last.is_some_and(|line| line.starts_with(&format!("{OURS} ")))
}

fn is_empty(path: &Path) -> bool {
    // Entries of the kernel itself (CONFIG_BPF_PRELOAD), in every BPF file system from the start.
    let preloaded = |name: &OsStr| name == "maps.debug" || name == "progs.debug";
    fs::read_dir(path).is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(|e| preloaded(&e.file_name()))))
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
