//! Cgroups (v2) by path and by id.

use std::{
    collections::VecDeque,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::statfs;

/// `CGROUP2_SUPER_MAGIC` of `include/uapi/linux/magic.h`.
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// Whether a folder is in a cgroup v2 file system.
pub fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.f_type as u64 == CGROUP2_SUPER_MAGIC)
}

/// Where the cgroup v2 hierarchy is mounted: `/sys/fs/cgroup` on most hosts, a folder below it on hybrid ones. It is
/// recognised by the file system's magic number, never by its path. `None`: this machine (or container) has cgroup v1
/// only.
pub fn root() -> Option<PathBuf> {
    let usual = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    usual.into_iter().find(|path| is_cgroup2(path)).or_else(|| {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mut mounted = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(path))
        });
        mounted.find(|path| is_cgroup2(path))
    })
}

/// The path of a cgroup's folder below the hierarchy's root, relative.
pub fn below_root(folder: &Path) -> Option<PathBuf> {
    folder.strip_prefix(root()?).ok().map(Path::to_owned)
}

/// The id of a cgroup in the kernel: its inode number.
pub fn id(path: &Path) -> io::Result<u64> {
    if !is_cgroup2(path) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} is not a cgroup (v2) folder", path.display()),
        ));
    }
    Ok(fs::metadata(path)?.ino())
}

/// The path of a cgroup below the hierarchy's root, `/` for the root itself;
/// `None` if it is gone or cannot be seen from here.
pub fn path_of(id: u64) -> Option<PathBuf> {
    let root = root()?;
    let mut folders = VecDeque::from([root.clone()]);
    while let Some(folder) = folders.pop_front() {
        if fs::metadata(&folder).is_ok_and(|meta| meta.ino() == id) {
            return Some(Path::new("/").join(folder.strip_prefix(&root).ok()?));
        }
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        folders.extend(entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
    }
    None
}

/// The cgroup (v2) of a process, as a folder; `None` if it is unknown.
pub fn of_process(pid: u32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(root()?.join(path.trim_start_matches('/')))
}
