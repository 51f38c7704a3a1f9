//! How long `acquire` keeps its ports, and by which process.

use std::{
    env,
    ffi::OsString,
    fs::File,
    io::{self, IsTerminal, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use portkeep::persistent::protocol::Reason;
use portkeep_core::time;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, chdir, pidfd_open, set_parent_process_death_signal, setsid},
    stdio,
    thread::set_name,
};
use signal_hook::iterator::Signals;

use crate::{
    DONE, Exit, Io,
    claim::Claim,
    commands::run::custodian::close_inherited,
    exit::refused,
    signals::{Forwarder, is_foreground_of},
};

/// The variable that only this program sets for itself. An option would be in the command line that listings show.
const BACKGROUND: &str = "PORTKEEP_IN_BACKGROUND";
const INSTEAD: &str = "add --hold to keep the ports until a signal, --while-pid PID (in a shell: $$) to keep them while \
                       a process runs, or --for 10m";

/// The end of the reservation, as options say it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Hold {
    /// Keep them until a signal
    #[arg(long, conflicts_with_all = ["while_pid", "time"])]
    hold: bool,
    /// Return, and keep them while this process runs
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    while_pid: Option<i32>,
    /// Return, and keep them for this time (90s, 10m, 1h30m)
    #[arg(long = "for", id = "time", value_name = "TIME", value_parser = time::duration)]
    time: Option<Duration>,
}

/// Whether this is the process in the background.
fn in_background() -> bool {
    env::var_os(BACKGROUND).is_some()
}

/// The event that ends the wait, besides a signal.
#[derive(Debug)]
pub(crate) enum Until {
    Input,
    Signal,
    /// Whichever of these comes first.
    Over {
        process: Option<OwnedFd>,
        time: Option<Duration>,
    },
}

/// The reason why the reservation ended.
#[derive(Debug)]
pub(crate) enum End {
    Wanted,
    /// Another process ended it, with the reason.
    Lost(String),
}

impl Hold {
    /// Whether this process leaves the ports to another one, which goes on after this one has ended.
    pub(crate) fn leaves(&self) -> bool {
        let lasts = self.while_pid.is_some() || self.time.is_some_and(|time| !time.is_zero());
        lasts && !in_background()
    }

    /// An error if the ports would be lost at once. This is checked before any are reserved.
    pub(crate) fn until(&self) -> anyhow::Result<Until> {
        if self.while_pid.is_none() && self.time.is_none() {
            return if self.hold { Ok(Until::Signal) } else { check_input().map(|()| Until::Input) };
        }
        let process = match self.while_pid {
            Some(pid) => Some(open(pid)?),
            None => None,
        };
        Ok(Until::Over { process, time: self.time })
    }

    /// If this is the process in the background, close all descriptors of its caller except the streams.
    pub(crate) fn begin(&self) -> anyhow::Result<()> {
        if in_background() {
            // It was started as /proc/self/exe, and listings would show "exe".
            set_name(c"portkeep").context("naming this process")?;
            close_inherited(&[]).context("closing inherited descriptors")?;
            // Until the ports are reserved, it ends with its caller.
            set_parent_process_death_signal(Some(Signal::TERM)).context("following the caller")?;
        }
        Ok(())
    }

    /// Called when the ports are reserved and the line about them is written. On a terminal, a note says how to end
    /// this. A process in the background leaves its caller here.
    pub(crate) fn settle(&self, until: &Until, io: &mut Io<'_>) -> anyhow::Result<()> {
        match until {
            Until::Input if io::stdin().is_terminal() => io.note("the ports are kept until Ctrl-D"),
            Until::Signal if io::stderr().is_terminal() => io.note("the ports are kept until Ctrl-C"),
            _ => {}
        }
        if !in_background() {
            return Ok(());
        }
        if io::stderr().is_terminal() {
            io.note(format_args!("the ports are kept {self}; `kill {}` ends that", std::process::id()));
        }
        // Release the caller's terminal, its folder, and any pipe that another process reads to its end. The order
        // matters: when the first process of a terminal ends, the others get a signal. So all of this is done before
        // the caller ends.
        set_parent_process_death_signal(None).context("no longer following the caller")?;
        setsid().context("leaving the session")?;
        chdir("/").context("leaving the folder")?;
        let nothing = File::options().read(true).write(true).open("/dev/null").context("opening /dev/null")?;
        stdio::dup2_stdout(&nothing)?;
        stdio::dup2_stderr(&nothing)?;
        rustix::io::write(stdio::stdin(), b"!").context("the caller has ended")?;
        stdio::dup2_stdin(&nothing)?;
        Ok(())
    }
}

/// "while process 812 runs, 10m at most".
impl std::fmt::Display for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.while_pid, self.time) {
            (Some(pid), Some(time)) => write!(f, "while process {pid} runs, {} at most", time::in_words(time)),
            (Some(pid), None) => write!(f, "while process {pid} runs"),
            (None, Some(time)) => write!(f, "for {}", time::in_words(time)),
            (None, None) => f.write_str("until a signal"),
        }
    }
}

/// A process that can be waited for.
fn open(pid: i32) -> anyhow::Result<OwnedFd> {
    let number = Pid::from_raw(pid).context("a process number is above 0")?;
    pidfd_open(number, PidfdFlags::empty()).map_err(|error| match error {
        rustix::io::Errno::SRCH | rustix::io::Errno::INVAL => {
            anyhow::anyhow!("--while-pid: no process has the number {pid}")
        }
        error => anyhow::Error::from(error).context(format!("--while-pid {pid}")),
    })
}

/// An error if standard input is at its end, or cannot be read. If it is a pipe, its first bytes are read: they have no
/// meaning.
fn check_input() -> anyhow::Result<()> {
    let input = stdio::stdin();
    if io::stdin().is_terminal() {
        // A process in the background that reads a terminal is stopped.
        if !is_foreground_of(input) {
            return Err(refused(
                Reason::Malformed,
                format!("this command runs in the background and cannot read the terminal; {INSTEAD}"),
            ));
        }
        return Ok(());
    }
    let mut fds = [PollFd::new(&input, PollFlags::IN)];
    let readable = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).context("looking at standard input")?;
    if readable > 0 && matches!(rustix::io::read(input, &mut [0; 512]), Ok(0) | Err(_)) {
        return Err(refused(
            Reason::Malformed,
            format!("standard input is at its end, so the ports would be lost at once; {INSTEAD}"),
        ));
    }
    Ok(())
}

/// Start another process with `words`, the arguments of this one. Returns the status when that process has the ports,
/// or has failed.
pub(crate) fn leave_to_another(words: &[OsString], io: &mut Io<'_>) -> anyhow::Result<u8> {
    // A signal ends the other process, and its message names the signal.
    let forwarder = Forwarder::new().context("catching signals")?;
    let (mut ours, theirs) = UnixStream::pair().context("making a pair of sockets")?;
    let mut child = {
        let mut command = Command::new("/proc/self/exe");
        let words = words.get(1..).context("no command")?;
        command.arg0("portkeep").args(words).env(BACKGROUND, "").stdin(OwnedFd::from(theirs));
        command.spawn().context("starting the process that keeps the ports")?
    };
    // The other process prints the answer or a refusal.
    io.answered = true;
    let status = forwarder.during(Pid::from_child(&child), || match ours.read_exact(&mut [0]) {
        Ok(()) => Ok(None),
        Err(_) => child.wait().map(Some),
    })?;
    let Some(status) = status else { return Ok(DONE) };
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(Exit::Failed.code()))
}

/// Wait for whatever comes first.
pub(crate) fn wait(until: Until, mut signals: Signals, claim: &Claim) -> End {
    let (send, ended) = mpsc::channel();
    let lost = send.clone();
    let _watch = claim.grant().watch(move |reason| drop(lost.send(End::Lost(reason))));
    // The threads are not joined: some of them wait until the process ends.
    let by_signal = send.clone();
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            let _ = by_signal.send(End::Wanted);
        }
    });
    let mut limit = None;
    match until {
        Until::Signal => {}
        Until::Input => drop(thread::spawn(move || {
            let mut rest = [0; 4096];
            let mut input = io::stdin().lock();
            while !matches!(input.read(&mut rest), Ok(0) | Err(_)) {}
            let _ = send.send(End::Wanted);
        })),
        Until::Over { process, time } => {
            limit = time;
            if let Some(process) = process {
                thread::spawn(move || {
                    let mut fds = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
                    while matches!(poll(&mut fds, None), Ok(0) | Err(rustix::io::Errno::INTR)) {}
                    let _ = send.send(End::Wanted);
                });
            }
        }
    }
    // The thread that waits for a signal keeps its end of the channel open until it has sent something.
    let end = match limit.map(|limit| Instant::now().checked_add(limit)) {
        Some(Some(limit)) => ended.recv_timeout(limit.saturating_duration_since(Instant::now())).ok(),
        _ => ended.recv().ok(),
    };
    end.unwrap_or(End::Wanted)
}
