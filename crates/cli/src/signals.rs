//! Waiting for a child while passing on the signals that are meant for it.

use std::{
    fs, io,
    os::fd::AsFd,
    process::{Command, ExitStatus},
    sync::{Arc, atomic::AtomicBool},
    thread,
};

use nix::unistd::getpgrp;
use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid},
    termios::tcgetpgrp,
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2},
    flag::register_conditional_default,
    iterator::Signals,
};

const PASSED_ON: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];

/// Signals that are caught from now on. [`Forwarder::run`] passes them on, also those that came before the start.
#[derive(Debug)]
pub struct Forwarder {
    signals: Signals,
    /// The signals that came before there was a child. They are always passed on.
    early: Vec<i32>,
}

/// A signal ended the command before it had its ports.
#[derive(Debug, thiserror::Error)]
#[error("{} came while {}; nothing is reserved", signal_hook::low_level::signal_name(*signal).unwrap_or("a signal"), if *waits { "others had the ports" } else { "the agent had not answered" })]
pub(crate) struct Ended {
    pub(crate) signal: i32,
    /// Whether it waited for ports; otherwise for the agent.
    pub(crate) waits: bool,
}

impl Ended {
    /// The exit status that shells give a process that a signal ended.
    pub(crate) fn status(&self) -> u8 {
        u8::try_from(128 + self.signal).unwrap_or(u8::MAX)
    }
}

impl Forwarder {
    /// Catch the signals.
    ///
    /// # Errors
    ///
    /// Those of sigaction.
    pub fn new() -> io::Result<Self> {
        // After exec, a caught signal has its default action. If a signal was ignored (by nohup), it must stay ignored
        // in the child.
        Ok(Self { signals: Signals::new(caught(ignored_signals()))?, early: Vec::new() })
    }

    /// The forwarder of a child after a fork. It has the signals that came to the child already.
    pub(crate) fn in_child(mut self) -> io::Result<Self> {
        let own = Self::new()?;
        self.note_early();
        // This may have read the byte that was to wake the parent: both have the same pipe. `close` writes a byte
        // again.
        self.signals.handle().close();
        Ok(Self { early: self.early, ..own })
    }

    /// Note the signals until now. They came before the child existed, so the terminal has not sent them to it.
    pub(crate) fn note_early(&mut self) {
        self.early.extend(self.signals.pending());
    }

    /// From now on a signal ends this process, as it ends a program that does not handle it. Returns a signal that came
    /// before.
    pub(crate) fn give_up(&mut self) -> io::Result<Option<i32>> {
        for signal in caught(ignored_signals()).filter(|signal| ends(*signal)) {
            register_conditional_default(signal, Arc::new(AtomicBool::new(true)))?;
        }
        Ok(self.ended_by())
    }

    /// A signal that has come and that ends a program without a handler for it, if there is one.
    pub(crate) fn ended_by(&mut self) -> Option<i32> {
        self.note_early();
        self.early.iter().copied().find(|signal| ends(*signal))
    }

    /// Start the command, and wait for its end.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn run(mut self, command: &mut Command) -> io::Result<ExitStatus> {
        self.note_early();
        let mut child = command.spawn()?;
        self.wait(Pid::from_child(&child), || ());
        // Only this frees the pid. No more signals are sent to it now.
        child.wait()
    }

    /// Wait for the end of a child, without reaping it, and do something meanwhile.
    pub(crate) fn wait<T>(self, child: Pid, meanwhile: impl FnOnce() -> T) -> T {
        self.during(child, || {
            let done = meanwhile();
            wait_without_reaping(child);
            done
        })
    }

    /// Pass signals on to a child while this does something.
    pub(crate) fn during<T>(mut self, child: Pid, meanwhile: impl FnOnce() -> T) -> T {
        let handle = self.signals.handle();
        thread::scope(|scope| {
            let early = std::mem::take(&mut self.early);
            scope.spawn(move || {
                early.into_iter().for_each(|signal| send(signal, child));
                self.signals.forever().for_each(|signal| pass_on(signal, child));
            });
            let done = meanwhile();
            handle.close();
            done
        })
    }
}

fn pass_on(signal: i32, pid: Pid) {
    // The terminal sends these to the whole foreground group: the child has it already.
    if matches!(signal, SIGINT | SIGQUIT) && in_foreground() {
        return;
    }
    send(signal, pid);
}

fn send(signal: i32, pid: Pid) {
    if let Some(signal) = Signal::from_named_raw(signal) {
        let _ = kill_process(pid, signal);
    }
}

/// The signals to pass on, without those that are ignored.
fn caught(ignored: u64) -> impl Iterator<Item = i32> {
    PASSED_ON.into_iter().filter(move |signal| ignored & (1 << (signal - 1)) == 0)
}

/// Whether it ends a wait. SIGUSR1 and SIGUSR2 are for the command alone, once it runs.
const fn ends(signal: i32) -> bool {
    !matches!(signal, SIGUSR1 | SIGUSR2)
}

fn in_foreground() -> bool {
    let Ok(terminal) = fs::File::open("/dev/tty") else { return false };
    is_foreground_of(terminal)
}

/// Whether this process is in the foreground of a terminal. (In a pid namespace the number of the own group can be 0.)
pub(crate) fn is_foreground_of(terminal: impl AsFd) -> bool {
    tcgetpgrp(terminal).is_ok_and(|group| group.as_raw_nonzero().get() == getpgrp().as_raw())
}

fn wait_without_reaping(child: Pid) {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while matches!(waitid(WaitId::Pid(child), options), Err(Errno::INTR)) {}
}

/// The mask of ignored signals, bit n - 1 for signal n.
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
