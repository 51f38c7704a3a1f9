//! A driven process, as the driver sees it.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::Stdio,
};

use portkeep_core::Errno;
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::{
    channel::Channel,
    worker::{Answer, Command, ENTRY},
};

/// A process that follows commands. Dropping it kills it and waits until nothing of it is left.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    channel: Channel,
    pidfd: OwnedFd,
    /// The nursery is a child of this process and must be reaped.
    child: Option<std::process::Child>,
}

impl Process {
    /// Start the first process: this test binary again, with its hidden test `worker`.
    pub fn nursery() -> io::Result<Self> {
        let (theirs, channel) = Channel::pair()?;
        let child = std::process::Command::new(std::env::current_exe()?)
            // With one thread the harness calls the test on the main thread, and forking is safe.
            .args(["--exact", "worker", "--ignored", "--nocapture", "--test-threads=1"])
            .env(ENTRY, "1")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        Self::open(child.id(), channel, Some(child))
    }

    fn open(pid: u32, channel: Channel, child: Option<std::process::Child>) -> io::Result<Self> {
        let number = Pid::from_raw(pid as i32).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { pid, channel, pidfd: pidfd_open(number, PidfdFlags::empty())?, child })
    }

    /// A child of this process, with copies of all its descriptors.
    pub fn fork(&self) -> io::Result<Self> {
        let (theirs, channel) = Channel::pair()?;
        self.channel.send(&Command::Fork, Some(theirs.as_fd()))?;
        drop(theirs);
        let pid = self.answer()?.0.map_err(|errno| io::Error::from_raw_os_error(errno.0))?.number;
        let child = Self::open(pid, channel, None)?;
        child.answer()?.0.map_err(|errno| io::Error::from_raw_os_error(errno.0))?;
        Ok(child)
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Send a command, and wait for the answer.
    ///
    /// # Panics
    ///
    /// If the process has ended.
    pub fn perform(&self, command: &Command) -> Result<Answer, Errno> {
        self.channel.send(command, None).expect("the process listens");
        self.answer().expect("the process answers").0
    }

    /// Pass a descriptor to another process (or to the same one), in a message as programs do.
    pub fn pass(&self, from: u32, other: &Self, new: u32) {
        self.channel.send(&Command::Send(from), None).expect("the process listens");
        let (answer, descriptor) = self.answer().expect("the process answers");
        answer.expect("the descriptor exists");
        let descriptor: Option<BorrowedFd<'_>> = descriptor.as_ref().map(AsFd::as_fd);
        other.channel.send(&Command::Receive { new }, descriptor).expect("the other process listens");
        other.answer().expect("the other process answers").0.expect("it takes the descriptor");
    }

    /// Make it end by itself.
    pub fn exit(self) {
        self.channel.send(&Command::Exit, None).expect("the process listens");
        self.wait();
    }

    fn answer(&self) -> io::Result<(Result<Answer, Errno>, Option<OwnedFd>)> {
        let (result, descriptor): (Result<Answer, i32>, _) = self.channel.receive()?;
        Ok((result.map_err(Errno), descriptor))
    }

    /// A pidfd turns readable after the process has closed all its descriptors.
    fn wait(&self) {
        let _ = poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], None);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        self.wait();
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}
