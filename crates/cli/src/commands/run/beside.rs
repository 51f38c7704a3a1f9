//! `run` beside a command that has a cgroup of its own.
//!
//! The child process starts in the cgroup of the command, makes the requests there, and becomes the command. This
//! process stays outside: it starts the custodian, passes signals on, and waits. A message of the child reports what
//! was granted. A byte of this process reports that the custodian runs: then the command may start.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::OwnedFd,
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    process::{Command, ExitStatus},
};

use anyhow::Context;
use portkeep::{Process, Transport};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with},
    process::{Pid, Signal, WaitOptions, getpid, getppid, kill_process, set_parent_process_death_signal, waitpid},
};
use signal_hook::low_level::emulate_default_handler;

use crate::{
    Io,
    claim::{Grant, Watch},
    commands::{
        run::custodian::{Custodian, Kept},
        run::subgroup::{Side, Subgroup},
    },
    level::Level,
    process,
    signals::Forwarder,
};

/// The two processes after [`part`].
#[derive(Debug)]
pub(crate) enum Sides {
    Outside(Outside),
    Inside(Inside),
}

/// This process.
#[derive(Debug)]
pub(crate) struct Outside {
    owner: OwnedFd,
    pipe: UnixStream,
    child: Pid,
    cgroup: Subgroup,
}

/// The process that becomes the command.
#[derive(Debug)]
pub(crate) struct Inside {
    /// The socket that the requests are made on. Both processes have it.
    pub(crate) owner: OwnedFd,
    /// Id of its cgroup.
    pub(crate) cgroup: u64,
    pipe: UnixStream,
}

/// Make an owner socket of this transport and a cgroup, and fork.
pub(crate) fn part(transport: Transport) -> anyhow::Result<Sides> {
    let owner = owner_socket(transport).context("making the owner socket")?;
    let (ours, theirs) = UnixStream::pair().context("making a pair of sockets")?;
    let parent = getpid();
    Ok(match Subgroup::fork()? {
        Side::Outside(cgroup, child) => Sides::Outside(Outside { owner, pipe: ours, child, cgroup }),
        Side::Inside(cgroup) => {
            // If `run` is killed, this process must not go on waiting for ports.
            set_parent_process_death_signal(Some(Signal::KILL))?;
            anyhow::ensure!(getppid() == Some(parent), "`run` was killed");
            Sides::Inside(Inside { owner, cgroup, pipe: theirs })
        }
    })
}

fn owner_socket(transport: Transport) -> Result<OwnedFd, Errno> {
    let (kind, protocol) = match transport {
        Transport::Tcp => (SocketType::STREAM, ipproto::TCP),
        Transport::Udp => (SocketType::DGRAM, ipproto::UDP),
    };
    let make = |family| socket_with(family, kind, SocketFlags::CLOEXEC, Some(protocol));
    // A socket of either family accepts control codes.
    make(AddressFamily::INET).or_else(|_| make(AddressFamily::INET6))
}

impl Inside {
    /// Become the command, as soon as the custodian runs. Returns only if that fails.
    pub(crate) fn become_it(
        mut self,
        command: &mut Command,
        grants: &[Grant],
        mut signals: Forwarder,
    ) -> anyhow::Result<io::Error> {
        self.pipe.write_all(&serde_json::to_vec(grants)?).context("reporting what was granted")?;
        self.pipe.shutdown(Shutdown::Write)?;
        if self.pipe.read(&mut [0])? == 0 {
            anyhow::bail!("`run` was killed before the command had started; nothing is reserved");
        }
        // The command outlives `run`.
        set_parent_process_death_signal(None)?;
        if let Some(signal) = signals.give_up()? {
            emulate_default_handler(signal)?;
        }
        Ok(command.exec())
    }
}

impl Outside {
    /// Start the custodian, let the command start, and wait for its end. Processes that it leaves running keep the
    /// ports, unless `main` is set.
    pub(crate) fn attend(
        mut self,
        mut forwarder: Forwarder,
        level: Level,
        main: bool,
        quiet: bool,
        io: &mut Io<'_>,
    ) -> anyhow::Result<ExitStatus> {
        forwarder.note_early();
        let (custodian, forwarder) = match self.start_custodian(&level, forwarder) {
            Ok(started) => started,
            Err(error) => {
                let _ = kill_process(self.child, Signal::KILL);
                let _ = waitpid(Some(self.child), WaitOptions::empty());
                return Err(error);
            }
        };
        // If this fails, the child has ended already.
        let _ = self.pipe.write_all(&[0]);
        let (grants, _watches) = forwarder.wait(self.child, || {
            let mut report = Vec::new();
            // A child that got no ports sends nothing.
            let _ = self.pipe.read_to_end(&mut report);
            let grants: Vec<Grant> = serde_json::from_slice(&report).unwrap_or_default();
            let watches: Vec<Watch> =
                grants.iter().map(|grant| grant.watch(|reason| Io::standard().error(reason))).collect();
            (grants, watches)
        });
        let ended = reap(self.child).context("waiting for the command")?;

        let left = self.cgroup.left().context("waiting for the cgroup of the command")?;
        if main || left.is_empty() {
            custodian.end().context("ending the process that keeps the ports")?;
            drop(self.owner);
            if left.is_empty() {
                self.cgroup.settle().context("waiting for the cgroup of the command")?;
            }
        } else {
            level.leave();
        }
        let left: Vec<Process> = left.into_iter().filter_map(process::of).collect();
        if !left.is_empty() && !quiet {
            let names: Vec<String> = left.iter().map(Process::to_string).collect();
            let all: Vec<&str> = grants.iter().map(|grant| grant.ports.as_str()).collect();
            let (left, all) = (names.join(", "), all.join(" and "));
            if main {
                io.warning(format_args!(
                    "the command left {left} running; {all} is no longer reserved, so other programs can bind it"
                ));
            } else {
                let until = if names.len() == 1 { "it until it ends" } else { "them until they end" };
                io.note(format_args!("the command left {left} running; {all} stays reserved for {until}"));
            }
        }
        Ok(ended)
    }

    fn start_custodian(&self, level: &Level, forwarder: Forwarder) -> anyhow::Result<(Custodian, Forwarder)> {
        let owner = self.owner.try_clone().context("duplicating the owner socket")?;
        Custodian::start(self.cgroup.path().to_owned(), Kept { owner, need: level.need()? }, forwarder)
    }
}

fn reap(child: Pid) -> io::Result<ExitStatus> {
    loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(ExitStatus::from_raw(status.as_raw())),
            Ok(None) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
