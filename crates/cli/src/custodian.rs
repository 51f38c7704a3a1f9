//! A process that keeps the ports of a command until the last process of its cgroup has ended (R12).
//!
//! `run` starts it beside the command, with a copy of the owner socket. So neither the end of the first process of a
//! command that goes on in the background nor a SIGKILL of `run` ends the reservation: this does, when the cgroup is
//! empty, and removes what is left of it.

use std::{
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::Context;
use rustix::{io::dup, stdio};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2},
    iterator::Signals,
};

use crate::{DONE, Io, level, subgroup::Subgroup};

/// Name of the command, which is none for people.
pub(crate) const NAME: &str = "run-custodian";

/// Keep the owner socket on standard input until a cgroup is empty
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The cgroup of the command
    #[arg(long)]
    cgroup: PathBuf,
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
    let subgroup = Subgroup::of_another(args.cgroup);
    subgroup.wait_until_empty(None)?;
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

/// The custodian of a command that this process is about to start.
#[derive(Debug)]
pub(crate) struct Custodian(Child);

impl Custodian {
    /// Start it, with a copy of the owner socket and of the guard of what the command needs.
    pub(crate) fn start(subgroup: &Subgroup, owner: OwnedFd, need: Option<(PathBuf, File)>) -> anyhow::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("portkeep").arg(NAME).arg("--cgroup").arg(subgroup.path());
        command.stdin(owner).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some((folder, guard)) = need {
            command.arg("--needs").arg(folder).stdout(guard);
        }
        // A group of its own: the terminal's signals are for the command. No folder of the command's is kept busy.
        command.process_group(0).current_dir("/");
        command.spawn().map(Self).context("starting the process that keeps the ports")
    }

    /// End it. This process gives everything up in its place, which is sooner than waiting until it has noticed.
    pub(crate) fn end(mut self) -> io::Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}
