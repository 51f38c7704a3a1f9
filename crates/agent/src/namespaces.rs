//! The network namespaces of this machine, as far as they can be seen: those of
//! running processes and those with a name in `/run/netns`.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use portkeep_kernel::netns;
use rustix::io::Errno;

const NAMED: &str = "/run/netns";

/// A namespace, kept open: it cannot go away, and its cookie means it alone.
#[derive(Debug)]
pub struct Namespace {
    /// As `SO_NETNS_COOKIE` reports it.
    pub cookie: u64,
    fd: OwnedFd,
}

impl Namespace {
    fn open(path: &Path) -> io::Result<Self> {
        let fd = netns::open(path)?;
        let cookie = netns::within(&fd, netns::current_cookie)??;
        Ok(Self { cookie, fd })
    }

    /// Whether a process or thread is in it.
    pub(crate) fn contains(&self, id: u32) -> bool {
        let own = rustix::fs::fstat(&self.fd).map(|stat| (stat.st_dev, stat.st_ino));
        let theirs = fs::metadata(format!("/proc/{id}/ns/net")).map(|meta| (meta.dev(), meta.ino()));
        matches!((own, theirs), (Ok(own), Ok(theirs)) if own == theirs)
    }

    /// Run `work` in it, on a thread of its own. Requires CAP_SYS_ADMIN.
    ///
    /// # Errors
    ///
    /// Those of entering it, and those of `work`.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        netns::within(&self.fd, work)?
    }
}

/// Whether there was nothing wrong with the thing looked at, but with us: no descriptor is left, or no memory. An object that ends
/// while we look is skipped; to skip this as well would be to say that there is nothing.
fn ran_out(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

/// The content of a folder, or why that is unknown for now.
fn entries(folder: &Path) -> impl Iterator<Item = io::Result<PathBuf>> + use<> {
    let (entries, error) = match fs::read_dir(folder) {
        Ok(entries) => (Some(entries), None),
        Err(error) => (None, ran_out(&error).then_some(Err(error))),
    };
    entries.into_iter().flatten().flatten().map(|entry| Ok(entry.path())).chain(error)
}

/// Ids of the processes, or of the threads of one of them.
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

/// Each namespace once. A namespace that ends meanwhile is skipped.
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

/// All that a process or a name leads to. An error is that of this process, not of a namespace.
pub fn visible() -> impl Iterator<Item = io::Result<Namespace>> {
    distinct(of_processes())
}

/// The first of these with this cookie.
fn first(cookie: u64, mut namespaces: impl Iterator<Item = io::Result<Namespace>>) -> io::Result<Option<Namespace>> {
    namespaces.find(|namespace| namespace.as_ref().map_or(true, |namespace| namespace.cookie == cookie)).transpose()
}

/// The one with this cookie, if one of these processes or threads is in it. They may long be other processes, so the
/// cookie is checked.
fn hinted(cookie: u64, hints: &[u32]) -> io::Result<Option<Namespace>> {
    first(cookie, distinct(hints.iter().map(|id| Ok(PathBuf::from(format!("/proc/{id}/ns/net"))))))
}

/// The one with this cookie, wherever it is. Threads can be in other namespaces than their process; they are searched
/// last.
///
/// # Errors
///
/// If this process could not look everywhere: then nothing is known.
pub fn find(cookie: u64) -> io::Result<Option<Namespace>> {
    first(cookie, visible().chain(distinct(of_threads())))
}

/// The names in `/run/netns`, by cookie: `ip netns add` makes them.
pub fn named() -> BTreeMap<u64, String> {
    let entries = fs::read_dir(NAMED).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let namespace = Namespace::open(&entry.path()).ok()?;
            Some((namespace.cookie, entry.file_name().to_string_lossy().into_owned()))
        })
        .collect()
}

/// A namespace that was not found is not looked for again for so long: each search walks through all processes.
const MISSED: Duration = Duration::from_secs(1);

/// Namespaces that are kept open, and those that were not found a moment ago.
#[derive(Debug, Default)]
pub(super) struct Kept {
    open: HashMap<u64, Namespace>,
    missed: HashMap<u64, Instant>,
}

impl Kept {
    /// The namespace with this cookie, looked for if need be, and kept from now on. `hints` are ids of processes or threads
    /// that are probably in it.
    pub(super) fn get(&mut self, cookie: u64, hints: &[u32]) -> io::Result<&Namespace> {
        if !self.contains(cookie) && !self.keep_hinted(cookie, hints)? {
            self.missed.retain(|_, when| when.elapsed() < MISSED);
            if self.missed.contains_key(&cookie) {
                return Err(io::ErrorKind::NotFound.into());
            }
            match find(cookie)? {
                Some(namespace) => self.keep(namespace),
                None => drop(self.missed.insert(cookie, Instant::now())),
            }
        }
        self.open.get(&cookie).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The namespace with this cookie if it is kept, or where the hints lead. True if it is kept now.
    pub(super) fn keep_hinted(&mut self, cookie: u64, hints: &[u32]) -> io::Result<bool> {
        if !self.contains(cookie) {
            let Some(namespace) = hinted(cookie, hints)? else { return Ok(false) };
            self.keep(namespace);
        }
        Ok(true)
    }

    pub(super) fn contains(&self, cookie: u64) -> bool {
        self.open.contains_key(&cookie)
    }

    pub(super) fn keep(&mut self, namespace: Namespace) {
        self.open.entry(namespace.cookie).or_insert(namespace);
    }

    pub(super) fn let_go(&mut self, cookie: u64) {
        self.open.remove(&cookie);
    }

    pub(super) fn cookies(&self) -> impl Iterator<Item = u64> {
        self.open.keys().copied()
    }
}
