//! A process that keeps the ports of a command until the last process of its cgroup has ended (R12).
//!
//! `run` forks it beside the command, with a copy of the owner socket. So the reservation stays in force after the end
//! of the first process of a command that goes on in the background, and after a SIGKILL of `run`. The custodian ends
//! the reservation when the cgroup is empty, and removes the cgroup.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::PathBuf,
    process,
};

use anyhow::Context;
use rustix::{
    process::{Pid, Signal, WaitOptions, chdir, kill_process, setpgid, waitpid},
    stdio,
};

use super::subgroup::Subgroup;
use crate::{level, signals::Forwarder};

/// Kept by the custodian.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) owner: OwnedFd,
    /// If the instance is up only while commands require it: its folder of pins, and the guard that keeps it up.
    pub(crate) need: Option<(PathBuf, File)>,
}

/// The custodian of a command that this process is about to start.
#[derive(Debug)]
pub(crate) struct Custodian(Pid);

impl Custodian {
    /// Fork it. Only this process returns, with its forwarder.
    pub(crate) fn start(subgroup: PathBuf, kept: Kept, forwarder: Forwarder) -> anyhow::Result<(Self, Forwarder)> {
        match portkeep_kernel::fork(None).context("starting the process that keeps the ports")? {
            Some(pid) => {
                // The child does the same. It does not matter which of the two is first.
                let _ = setpgid(Some(pid), Some(pid));
                Ok((Self(pid), forwarder))
            }
            None => {
                // A signal that ends a service or a terminal goes to all of its processes. The command may need time to
                // end, so the custodian ignores signals from here on.
                drop(forwarder);
                process::exit(i32::from(keep(Subgroup::of_another(subgroup), kept).is_err()))
            }
        }
    }

    /// End it. This process releases everything in its place: that is faster than to wait until the custodian does.
    pub(crate) fn end(self) -> io::Result<()> {
        kill_process(self.0, Signal::KILL)?;
        waitpid(Some(self.0), WaitOptions::empty())?;
        Ok(())
    }
}

fn keep(subgroup: Subgroup, kept: Kept) -> anyhow::Result<()> {
    let Kept { owner, need } = kept;
    let guard = need.as_ref().map(|(_, guard)| guard.as_raw_fd());
    close_inherited(&[Some(owner.as_raw_fd()), guard].into_iter().flatten().collect::<Vec<_>>())?;
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    stdio::dup2_stdin(&nothing)?;
    stdio::dup2_stdout(&nothing)?;
    stdio::dup2_stderr(&nothing)?;
    // A process group of its own: the terminal's signals are for the command. Another folder: the custodian must not
    // keep a folder of the command in use.
    setpgid(None, None)?;
    chdir("/")?;
    subgroup.wait_until_empty(None)?;
    // Release the ports first, then the cgroup, and last the BPF programs that may be up only for them.
    drop(owner);
    drop(subgroup);
    if let Some((folder, guard)) = need {
        level::need_no_more(&folder, guard)?;
    }
    Ok(())
}

/// Close all inherited descriptors except these. Otherwise pipes and sockets for the command would stay open here after
/// the command has closed them.
pub(crate) fn close_inherited(but: &[RawFd]) -> io::Result<()> {
    let numbers: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2 && !but.contains(number))
        .collect();
    for number in numbers {
        // The error is ignored: the descriptor that /proc was read with is closed already.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}
