//! A process that keeps the ports of a command until the last process of its cgroup has ended (R12).
//!
//! `run` starts it beside the command, with a copy of the owner socket. So neither the end of the first process of a
//! command that goes on in the background nor a SIGKILL of `run` ends the reservation: this does, when the cgroup is
//! empty, and removes what is left of it.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, OwnedFd},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::dup,
    stdio,
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2},
    iterator::Signals,
};

use crate::{DONE, Io, level, subgroup::Subgroup};

/// Name of the command, which is none for people.
pub(crate) const NAME: &str = "run-custodian";
/// A change that was missed, if that can be, is noticed after this.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The processes of a command that may need to end after it.
const GRACE: Duration = Duration::from_millis(200);

/// Keep the owner socket on standard input until a cgroup is empty
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The cgroup of the command
    #[arg(long)]
    cgroup: PathBuf,
    /// The cgroup to wait in
    #[arg(long)]
    parent: PathBuf,
    /// Pins of the instance that goes with the last command that needs it; the guard is on standard output
    #[arg(long)]
    needs: Option<PathBuf>,
}

pub(crate) fn run(args: Args, _io: &mut Io<'_>) -> anyhow::Result<u8> {
    close_inherited().context("closing inherited descriptors")?;
    // A signal that ends a service or a terminal goes to all of its processes, and the command may take its time to end.
    let _caught = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2]).context("catching signals")?;
    let nothing = File::options().read(true).write(true).open("/dev/null").context("opening /dev/null")?;
    let need = match args.needs {
        Some(folder) => Some((folder, File::from(dup(stdio::stdout()).context("keeping the guard")?))),
        None => None,
    };
    // A second descriptor would keep the BPF file system busy when it is to be unmounted.
    stdio::dup2_stdout(&nothing).context("redirecting standard output")?;
    let mut subgroup = Subgroup::of_another(args.cgroup, args.parent);
    subgroup.leave().context("leaving the cgroup of the command")?;
    wait_until_empty(&subgroup, None)?;
    // First the ports, then the cgroup, and last the BPF programs that may have been up only for them.
    stdio::dup2_stdin(&nothing).context("closing the owner socket")?;
    drop(subgroup);
    if let Some((folder, guard)) = need {
        level::need_no_more(&folder, guard)?;
    }
    Ok(DONE)
}

/// Pipes and sockets that were meant for the command would otherwise stay open here when the command has closed them.
pub(crate) fn close_inherited() -> io::Result<()> {
    let numbers: Vec<i32> = fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in numbers {
        // Ignored: the descriptor that /proc was read with is closed already.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}

/// False if it is not empty in time.
fn wait_until_empty(subgroup: &Subgroup, limit: Option<Duration>) -> io::Result<bool> {
    let begun = std::time::Instant::now();
    // Opened before the first look, so that no change falls in between.
    let events = match File::open(subgroup.events()) {
        Ok(events) => events,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    while subgroup.is_populated() {
        let rest = limit.map_or(LOOK_AGAIN, |limit| limit.saturating_sub(begun.elapsed()));
        if rest.is_zero() {
            return Ok(false);
        }
        let timeout = Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: rest.subsec_nanos().into() };
        let mut fds = [PollFd::new(&events, PollFlags::PRI)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // The kernel reports a change to a descriptor again after it was read.
        let _ = rustix::io::pread(events.as_fd(), &mut [0; 64], 0);
    }
    Ok(true)
}

/// The custodian of a command that this process is about to start.
#[derive(Debug)]
pub(crate) struct Custodian(Child);

impl Custodian {
    /// Start it, with a copy of the owner socket and of the guard of what the command needs.
    pub(crate) fn start(subgroup: &Subgroup, owner: OwnedFd, need: Option<(PathBuf, File)>) -> anyhow::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("portkeep").arg(NAME).arg("--cgroup").arg(subgroup.path()).arg("--parent").arg(subgroup.parent());
        command.stdin(owner).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some((folder, guard)) = need {
            command.arg("--needs").arg(folder).stdout(guard);
        }
        // A group of its own: the terminal's signals are for the command. No folder of the command's is kept busy.
        command.process_group(0).current_dir("/");
        command.spawn().map(Self).context("starting the process that keeps the ports")
    }

    /// End it, whatever the command left running: the processes that are returned.
    pub(crate) fn end(mut self, subgroup: &Subgroup) -> io::Result<Vec<u32>> {
        let left = self.left(subgroup)?;
        // Where nothing is left it ends by itself, and may be about to.
        self.0.kill()?;
        self.0.wait()?;
        Ok(left)
    }

    /// The command has ended, and this process has closed the owner socket. If processes that it started still run, the
    /// custodian stays with them, and they are returned.
    pub(crate) fn finish(mut self, subgroup: &Subgroup) -> io::Result<Vec<u32>> {
        let left = self.left(subgroup)?;
        if left.is_empty() {
            self.0.wait()?;
        }
        Ok(left)
    }

    /// The processes in the cgroup, after a moment for those that end after the command. On a busy machine the custodian itself may not
    /// have left it yet.
    fn left(&self, subgroup: &Subgroup) -> io::Result<Vec<u32>> {
        if wait_until_empty(subgroup, Some(GRACE))? {
            return Ok(Vec::new());
        }
        Ok(subgroup.processes().into_iter().filter(|pid| *pid != self.0.id()).collect())
    }
}
