//! A cgroup for one command and all that it starts.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use portkeep_kernel::cgroup;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, Signal, WaitOptions, kill_process, waitpid},
};

const PREFIX: &str = "portkeep-run-";
/// The most commands with one process number that still run. There is more than one only if a process number is used
/// again.
const MOST: u32 = 1000;
/// If a change was missed, it is noticed after this time.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The time that processes of a command may need to end after it.
const GRACE: Duration = Duration::from_millis(200);

/// A cgroup below that of this process. When this is dropped, the cgroup is removed if no process is in it.
#[derive(Debug)]
pub(crate) struct Subgroup {
    path: PathBuf,
}

/// The two processes after [`Subgroup::fork`].
#[derive(Debug)]
pub(crate) enum Side {
    /// This process, outside of the cgroup, and the number of its child.
    Outside(Subgroup, Pid),
    /// The child, inside. Reservations know the cgroup by this id.
    Inside(u64),
}

impl Subgroup {
    /// Make a cgroup, and fork. The child is in the cgroup, because the BPF programs grant a cgroup's reservation only
    /// to processes inside. Requires root or a delegated cgroup.
    pub(crate) fn fork() -> anyhow::Result<Side> {
        let parent = cgroup::of_process(std::process::id()).context("this process is in no cgroup (v2)")?;
        remove_stale(&parent);
        let failed = |what: &'static str, path: &Path, error: io::Error| {
            anyhow::Error::from(error).context(format!("{what} {}", path.display()))
        };
        for number in 0..MOST {
            // The command of an earlier process with our number may still run. Then the name gets another number.
            let suffix = if number == 0 { String::new() } else { format!(".{number}") };
            let path = parent.join(format!("{PREFIX}{}{suffix}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(failed("making cgroup", &path, error)),
            }
            let forked = cgroup::id(&path).and_then(|id| Ok((id, fork_into(&path, &parent)?)));
            match forked {
                Ok((_, Some(child))) => return Ok(Side::Outside(Self { path }, child)),
                Ok((id, None)) => return Ok(Side::Inside(id)),
                // Another process has removed the cgroup already, because it cannot see this pid.
                Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::NODEV)) => continue,
                Err(error) => {
                    let _ = fs::remove_dir(&path);
                    return Err(failed("entering cgroup", &path, error));
                }
            }
        }
        anyhow::bail!("{MOST} commands with the process number {} still run", std::process::id())
    }

    /// A cgroup that another process made.
    pub(crate) fn of_another(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether processes are in it, or in a cgroup below it. A cgroup that no longer exists has none.
    fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.events()).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    }

    /// The file that reports a change of [`is_populated`](Self::is_populated) to those who poll it.
    fn events(&self) -> PathBuf {
        self.path.join("cgroup.events")
    }

    /// Wait until no process is in it or in a cgroup below it. Returns false if that takes longer than `limit`.
    pub(crate) fn wait_until_empty(&self, limit: Option<Duration>) -> io::Result<bool> {
        let begun = Instant::now();
        // Opened before the first check, so that no change is missed.
        let events = match File::open(self.events()) {
            Ok(events) => events,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(error),
        };
        while self.is_populated() {
            let rest = limit.map_or(LOOK_AGAIN, |limit| limit.saturating_sub(begun.elapsed()));
            if rest.is_zero() {
                return Ok(false);
            }
            let timeout = Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: rest.subsec_nanos().into() };
            let mut fds = [PollFd::new(&events, PollFlags::PRI)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            // The kernel reports the next change only after the file was read.
            let _ = rustix::io::pread(events.as_fd(), &mut [0; 64], 0);
        }
        Ok(true)
    }

    /// The same, for a short time: processes of a command may need to end after it.
    pub(crate) fn settle(&self) -> io::Result<bool> {
        self.wait_until_empty(Some(GRACE))
    }

    /// The command has ended. Returns the processes of it that still run, after a moment for those that end after it.
    pub(crate) fn left(&self) -> io::Result<Vec<u32>> {
        if self.processes().is_empty() || self.settle()? {
            return Ok(Vec::new());
        }
        Ok(self.processes())
    }

    /// Its processes, and those of the cgroups below it.
    fn processes(&self) -> Vec<u32> {
        processes(&self.path)
    }
}

impl Drop for Subgroup {
    fn drop(&mut self) {
        // A populated cgroup is removed by the process that keeps the ports.
        if !self.is_populated() {
            remove(&self.path);
        }
    }
}

/// Fork, with the child in `cgroup`. If the filter of a container engine denies clone3, this process moves there and
/// back.
fn fork_into(cgroup: &Path, own: &Path) -> io::Result<Option<Pid>> {
    match portkeep_kernel::fork(Some(File::open(cgroup)?.as_fd())) {
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOSYS)) => {}
        forked => return forked,
    }
    move_to(cgroup)?;
    let forked = portkeep_kernel::fork(None);
    if !matches!(forked, Ok(None))
        && let Err(error) = move_to(own)
    {
        if let Ok(Some(child)) = forked {
            let _ = kill_process(child, Signal::KILL);
            let _ = waitpid(Some(child), WaitOptions::empty());
        }
        return Err(error);
    }
    forked
}

fn move_to(cgroup: &Path) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0")
}

fn below(cgroup: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

fn processes(cgroup: &Path) -> Vec<u32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let own = text.lines().filter_map(|pid| pid.parse().ok());
    own.chain(below(cgroup).flat_map(|inner| processes(&inner))).collect()
}

/// Remove a cgroup, and those that the command made below it. A cgroup with processes in it cannot be removed, so no
/// process is disturbed.
fn remove(cgroup: &Path) {
    below(cgroup).for_each(|inner| remove(&inner));
    let _ = fs::remove_dir(cgroup);
}

/// Remove cgroups that remain because no process was left to remove them.
fn remove_stale(parent: &Path) {
    for path in below(parent) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(pid) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('.').next()) else { continue };
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            remove(&path);
        }
    }
}
