//! A cgroup for one command and all that it starts.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::Context;
use portkeep_kernel::cgroup;

const PREFIX: &str = "portkeep-run-";

/// A cgroup below the own one, with this process in it until it is dropped.
///
/// This process enters it itself, because the kernel part grants a cgroup's
/// reservation only to processes inside; children are then born there.
#[derive(Debug)]
pub(crate) struct Subgroup {
    path: PathBuf,
    parent: PathBuf,
    /// Id that reservations know it by.
    pub(crate) id: u64,
}

impl Subgroup {
    /// Make and enter it. Takes root or a delegated cgroup.
    pub(crate) fn enter() -> anyhow::Result<Self> {
        let parent = cgroup::of_process(std::process::id()).context("this process is in no cgroup (v2)")?;
        remove_stale(&parent);
        let path = parent.join(format!("{PREFIX}{}", std::process::id()));
        let failed = |what: &'static str| {
            let path = path.display().to_string();
            move |error: io::Error| anyhow::Error::from(error).context(format!("{what} {path}"))
        };
        let mut tries = 0;
        loop {
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("making cgroup")(error));
                }
                _ => {}
            }
            match move_to(&path, "0") {
                Ok(()) => break,
                // Another one's tidying up (of a pid that it cannot see) was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < 3 => tries += 1,
                Err(error) => {
                    let _ = fs::remove_dir(&path);
                    return Err(failed("entering cgroup")(error));
                }
            }
        }
        let entered = |id| Self { path: path.clone(), parent: parent.clone(), id };
        // Constructed before anything can fail, so that Drop leads out again.
        let mut group = entered(0);
        group.id = cgroup::id(&path).map_err(failed("reading cgroup"))?;
        Ok(group)
    }
}

impl Drop for Subgroup {
    fn drop(&mut self) {
        let _ = move_to(&self.parent, "0");
        // Processes that the command left behind keep running, where they would have been without us.
        for _ in 0..50 {
            let left = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
            for pid in left.lines() {
                let _ = move_to(&self.parent, pid);
            }
            remove_empty_below(&self.path);
            match fs::remove_dir(&self.path) {
                // Not empty yet: a process is just ending, or the command made a cgroup of its own that lives on.
                Err(error) if error.raw_os_error() == Some(EBUSY) => thread::sleep(Duration::from_millis(2)),
                _ => return,
            }
        }
    }
}

const EBUSY: i32 = 16;

fn move_to(cgroup: &Path, pid: &str) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), pid)
}

fn remove_empty_below(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty_below(&entry.path());
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// What a `run` that was killed left behind. A cgroup with processes in it cannot be removed, so nothing is disturbed.
fn remove_stale(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            let _ = fs::remove_dir(entry.path());
        }
    }
}
