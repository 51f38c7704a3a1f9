//! The network namespaces of this machine, as far as they can be seen: those of
//! running processes and those with a name in `/run/netns`.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use portkeep_kernel::netns;

const NAMED: &str = "/run/netns";

/// A namespace, kept open: it cannot go away, and its cookie means it alone.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) cookie: u64,
    fd: OwnedFd,
}

impl Namespace {
    fn open(path: &Path) -> io::Result<Self> {
        let fd = netns::open(path)?;
        let cookie = netns::within(&fd, netns::current_cookie)??;
        Ok(Self { cookie, fd })
    }

    /// Run `work` in it, on a thread of its own.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        netns::within(&self.fd, work)?
    }
}

/// Ids of the processes, or of the threads of one of them.
fn numbers(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|e| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit())).map(|e| e.path())
}

fn of_processes() -> impl Iterator<Item = PathBuf> {
    let named = fs::read_dir(NAMED).into_iter().flatten().flatten().map(|entry| entry.path());
    named.chain(numbers(Path::new("/proc")).map(|process| process.join("ns/net")))
}

fn of_threads() -> impl Iterator<Item = PathBuf> {
    numbers(Path::new("/proc")).flat_map(|process| numbers(&process.join("task"))).map(|task| task.join("ns/net"))
}

/// Each namespace once. What ends while we look is skipped.
fn distinct(paths: impl Iterator<Item = PathBuf>) -> impl Iterator<Item = Namespace> {
    let mut seen = HashSet::new();
    paths.filter_map(move |path| {
        let inode = fs::metadata(&path).map(|meta| (meta.dev(), meta.ino())).ok()?;
        if !seen.insert(inode) {
            return None;
        }
        Namespace::open(&path).ok()
    })
}

/// All that a process or a name leads to.
pub(crate) fn visible() -> impl Iterator<Item = Namespace> {
    distinct(of_processes())
}

/// The one with this cookie. `hints` are ids of processes or threads that are
/// probably in it; they may long be somebody else's, so the cookie is checked.
/// Threads can be in other namespaces than their process; they are searched last.
pub(crate) fn find(cookie: u64, hints: &[u32]) -> Option<Namespace> {
    let hinted = hints.iter().map(|id| PathBuf::from(format!("/proc/{id}/ns/net")));
    distinct(hinted).chain(visible()).chain(distinct(of_threads())).find(|namespace| namespace.cookie == cookie)
}

/// Namespaces that are kept open.
#[derive(Debug, Default)]
pub(super) struct Kept {
    open: HashMap<u64, Namespace>,
}

impl Kept {
    /// The namespace with this cookie, looked for if need be, and kept from now on.
    pub(super) fn get(&mut self, cookie: u64, hints: &[u32]) -> Option<&Namespace> {
        if !self.contains(cookie) {
            self.keep(find(cookie, hints)?);
        }
        self.open.get(&cookie)
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
