//! A cgroup for one command and all that it starts.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use portkeep_kernel::cgroup;

const PREFIX: &str = "portkeep-run-";
/// Commands of one process number that are still running; there is one but for numbers that came round again.
const MOST: u32 = 1000;

/// A cgroup below the own one, with this process in it until it leaves.
///
/// This process enters it itself, because the BPF programs grant a cgroup's reservation only to processes inside;
/// children are then born there. Dropped, it is left, and removed if no process is in it.
#[derive(Debug)]
pub(crate) struct Subgroup {
    path: PathBuf,
    parent: PathBuf,
    inside: bool,
    /// Id that reservations know it by.
    pub(crate) id: u64,
}

impl Subgroup {
    /// Make and enter it. Requires root or a delegated cgroup.
    pub(crate) fn enter() -> anyhow::Result<Self> {
        let parent = cgroup::of_process(std::process::id()).context("this process is in no cgroup (v2)")?;
        remove_stale(&parent);
        let failed = |what: &'static str, path: &Path, error: io::Error| {
            anyhow::Error::from(error).context(format!("{what} {}", path.display()))
        };
        for number in 0..MOST {
            // A number of its own for the case that the command of an earlier process with our number still runs.
            let suffix = if number == 0 { String::new() } else { format!(".{number}") };
            let path = parent.join(format!("{PREFIX}{}{suffix}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(failed("making cgroup", &path, error)),
            }
            match move_to(&path, "0") {
                Ok(()) => {}
                // Another one's tidying up (of a pid that it cannot see) was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    let _ = fs::remove_dir(&path);
                    return Err(failed("entering cgroup", &path, error));
                }
            }
            // Constructed before anything can fail, so that Drop leads out again.
            let mut group = Self { path, parent, inside: true, id: 0 };
            group.id = cgroup::id(&group.path).map_err(|error| failed("reading cgroup", &group.path, error))?;
            return Ok(group);
        }
        anyhow::bail!("{MOST} commands with the process number {} still run", std::process::id())
    }

    /// One that another process made.
    pub(crate) fn of_another(path: PathBuf, parent: PathBuf) -> Self {
        Self { path, parent, inside: true, id: 0 }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn parent(&self) -> &Path {
        &self.parent
    }

    /// Go back to the cgroup above. Its child processes stay.
    pub(crate) fn leave(&mut self) -> io::Result<()> {
        if self.inside {
            move_to(&self.parent, "0")?;
            self.inside = false;
        }
        Ok(())
    }

    /// Whether processes are in it, or in one below it. One that is gone has none.
    pub(crate) fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.events()).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    }

    /// The file that reports a change of [`is_populated`](Self::is_populated) to those who poll it.
    pub(crate) fn events(&self) -> PathBuf {
        self.path.join("cgroup.events")
    }

    /// Its processes, and those of the cgroups below it.
    pub(crate) fn processes(&self) -> Vec<u32> {
        processes(&self.path)
    }
}

impl Drop for Subgroup {
    fn drop(&mut self) {
        // Ignored: there is nothing to be done about it, and the next `run` tries to remove it again.
        let _ = self.leave();
        // A populated cgroup is removed by the process that keeps the ports.
        if !self.is_populated() {
            remove(&self.path);
        }
    }
}

fn move_to(cgroup: &Path, pid: &str) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), pid)
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

/// With those that the command made below it. A cgroup with processes in it cannot be removed, so nothing is disturbed.
fn remove(cgroup: &Path) {
    below(cgroup).for_each(|inner| remove(&inner));
    let _ = fs::remove_dir(cgroup);
}

/// Remains that no process was left to remove.
fn remove_stale(parent: &Path) {
    for path in below(parent) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(pid) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('.').next()) else { continue };
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            remove(&path);
        }
    }
}
