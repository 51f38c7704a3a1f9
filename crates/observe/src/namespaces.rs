//! The network namespaces of this machine, as far as they can be seen: those of running processes, and those with a
//! name in `/run/netns`.

use std::{
    collections::HashSet,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

use portkeep_kernel::netns;
use rustix::io::Errno;

const NAMED: &str = "/run/netns";

/// A namespace, kept open: it cannot end, and its cookie belongs to it alone.
#[derive(Debug)]
pub struct Namespace {
    /// Its cookie (`SO_NETNS_COOKIE`).
    pub cookie: u64,
    /// The path that led to it.
    path: PathBuf,
    fd: OwnedFd,
}

impl Namespace {
    fn open(path: &Path) -> io::Result<Self> {
        let fd = netns::open(path)?;
        let cookie = netns::within(&fd, netns::current_cookie)??;
        Ok(Self { cookie, path: path.to_owned(), fd })
    }

    /// Whether a process or thread is in it.
    pub fn contains(&self, id: u32) -> bool {
        let own = rustix::fs::fstat(&self.fd).map(|stat| (stat.st_dev, stat.st_ino));
        let theirs = fs::metadata(format!("/proc/{id}/ns/net")).map(|meta| (meta.dev(), meta.ino()));
        matches!((own, theirs), (Ok(own), Ok(theirs)) if own == theirs)
    }

    /// A name that other tools print: the name of `ip netns`, otherwise the number that lsns and `readlink
    /// /proc/PID/ns/net` show.
    pub fn name(&self) -> String {
        match self.path.strip_prefix(NAMED) {
            Ok(name) => name.display().to_string(),
            Err(_) => rustix::fs::fstat(&self.fd)
                .map_or_else(|_| self.cookie.to_string(), |stat| format!("net:[{}]", stat.st_ino)),
        }
    }

    /// Run `work` in it, on a thread of its own.
    ///
    /// # Errors
    ///
    /// If it cannot be entered (this requires root), and those of `work`.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        netns::within(&self.fd, work)?
    }
}

/// Whether the error concerns this process and not the object: no descriptor or no memory is left. If an object ends
/// while we read it, it is skipped. If this error were skipped too, the result would be that nothing exists.
fn ran_out(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

/// The content of a folder, or the error if it is unknown for now.
fn entries(folder: &Path) -> impl Iterator<Item = io::Result<PathBuf>> + use<> {
    let (entries, error) = match fs::read_dir(folder) {
        Ok(entries) => (Some(entries), None),
        Err(error) => (None, ran_out(&error).then_some(Err(error))),
    };
    entries.into_iter().flatten().flatten().map(|entry| Ok(entry.path())).chain(error)
}

/// The folders of the processes, or of the threads of one of them.
fn numbers(folder: &Path) -> impl Iterator<Item = io::Result<PathBuf>> + use<> {
    let is_number = |path: &Path| path.file_name().is_some_and(|name| name.as_bytes().iter().all(u8::is_ascii_digit));
    entries(folder).filter(move |entry| entry.as_ref().map_or(true, |path| is_number(path)))
}

fn of_processes() -> impl Iterator<Item = io::Result<PathBuf>> {
    let processes = numbers(Path::new("/proc")).map(|process| Ok(process?.join("ns/net")));
    entries(Path::new(NAMED)).chain(processes)
}

fn of_threads() -> impl Iterator<Item = io::Result<PathBuf>> {
    let threads = numbers(Path::new("/proc")).flat_map(|process| {
        let (process, error) = match process {
            Ok(process) => (Some(process), None),
            Err(error) => (None, Some(Err(error))),
        };
        process.into_iter().flat_map(|process| numbers(&process.join("task"))).chain(error)
    });
    threads.map(|task| Ok(task?.join("ns/net")))
}

/// Each namespace once. If a namespace ends meanwhile, it is skipped.
fn distinct(paths: impl Iterator<Item = io::Result<PathBuf>>) -> impl Iterator<Item = io::Result<Namespace>> {
    let mut seen = HashSet::new();
    paths.filter_map(move |path| {
        let path = match path {
            Ok(path) => path,
            Err(error) => return Some(Err(error)),
        };
        let inode = fs::metadata(&path).map(|meta| (meta.dev(), meta.ino())).ok()?;
        if !seen.insert(inode) {
            return None;
        }
        match Namespace::open(&path) {
            Err(error) if !ran_out(&error) => None,
            opened => Some(opened),
        }
    })
}

/// All namespaces of processes and names. An error concerns this process, not a namespace.
pub fn visible() -> impl Iterator<Item = io::Result<Namespace>> {
    distinct(of_processes())
}

/// The first of these namespaces with this cookie.
fn first(cookie: u64, mut namespaces: impl Iterator<Item = io::Result<Namespace>>) -> io::Result<Option<Namespace>> {
    namespaces.find(|namespace| namespace.as_ref().map_or(true, |namespace| namespace.cookie == cookie)).transpose()
}

/// The namespace with this cookie, if one of these processes or threads is in it. The numbers may belong to other
/// processes by now, so the cookie is checked.
///
/// # Errors
///
/// As [`find`].
pub fn hinted(cookie: u64, hints: &[u32]) -> io::Result<Option<Namespace>> {
    first(cookie, distinct(hints.iter().map(|id| Ok(PathBuf::from(format!("/proc/{id}/ns/net"))))))
}

/// The namespace with this cookie, in any process or thread. A thread can be in another namespace than its process;
/// threads are searched last.
///
/// # Errors
///
/// If this process could not search everywhere: then nothing is known.
pub fn find(cookie: u64) -> io::Result<Option<Namespace>> {
    first(cookie, visible().chain(distinct(of_threads())))
}
