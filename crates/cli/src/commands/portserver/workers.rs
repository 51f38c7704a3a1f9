//! Root's server: each user's connections go to a process of that user.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg, sockopt::socket_peercred},
};

use super::{complaints::Complaints, server::counted, signals::SignalPipe};
use crate::Io;

/// The variable of a process that serves the connections that come over its standard input, as another user. An option
/// would be in the command line that listings show.
pub(super) const WORKER: &str = "PORTKEEP_PORTSERVER_WORKER";

/// A process that serves one user.
struct Worker {
    child: Child,
    channel: UnixStream,
}

impl Worker {
    fn start(uid: u32, gid: u32) -> io::Result<Self> {
        let (channel, theirs) = UnixStream::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("portkeep").arg("portserver").env(WORKER, "").stdin(Stdio::from(OwnedFd::from(theirs)));
        if uid != 0 {
            // `uid` also drops the supplementary groups.
            command.uid(uid).gid(gid);
        }
        Ok(Self { child: command.spawn()?, channel })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It ends when its channel does, and its reservations with it.
        let _ = self.channel.shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}

/// Serve until SIGTERM or SIGINT.
pub(super) fn serve(listener: UnixListener, signals: &SignalPipe, io: &mut Io<'_>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut workers = HashMap::new();
    let mut complaints = Complaints::default();
    loop {
        let mut ready = [&listener as &dyn AsFd, &signals.end, &signals.statistics]
            .map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN));
        let wait = complaints.wait().and_then(|wait| Timespec::try_from(wait + Duration::from_millis(1)).ok());
        match poll(&mut ready, wait.as_ref()) {
            Err(rustix::io::Errno::INTR) => continue,
            polled => polled?,
        };
        let [connections, end, statistics] = ready.map(|fd| !fd.revents().is_empty());
        if end {
            complaints.print(io);
            return Ok(());
        }
        complaints.print_due(io);
        if statistics {
            ask_for_statistics(signals, &workers, io);
        }
        if connections {
            match listener.accept() {
                Ok((connection, _)) => {
                    if let Err(error) = dispatch(&mut workers, &connection) {
                        complaints.make(&error, io);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => complaints.make(&format_args!("a connection was lost: {error}"), io),
            }
        }
    }
}

/// Give the connection to the worker of its user. If the user has killed the worker, a new one is started.
fn dispatch(workers: &mut HashMap<u32, Worker>, connection: &UnixStream) -> anyhow::Result<()> {
    let peer = socket_peercred(connection)?;
    let uid = peer.uid.as_raw();
    if workers.get_mut(&uid).is_some_and(|worker| !matches!(worker.child.try_wait(), Ok(None))) {
        workers.remove(&uid);
    }
    let worker = match workers.entry(uid) {
        std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
        std::collections::hash_map::Entry::Vacant(entry) => {
            let started = Worker::start(uid, peer.gid.as_raw());
            entry.insert(started.with_context(|| format!("no server for user {uid}"))?)
        }
    };
    // A user that floods its worker loses its own requests.
    pass(&worker.channel, connection).with_context(|| format!("a request of user {uid} was lost"))
}

/// Pass a descriptor to the process at the other end of the channel.
fn pass(channel: &UnixStream, descriptor: impl AsFd) -> io::Result<()> {
    let descriptors = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(channel, &[IoSlice::new(b"c")], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

fn ask_for_statistics(signals: &SignalPipe, workers: &HashMap<u32, Worker>, io: &mut Io<'_>) {
    let mut bytes = [0; 64];
    let _ = io::Read::read(&mut &signals.statistics, &mut bytes);
    io.note(format_args!(
        "{} for ports; the server of each reports next",
        counted(workers.len(), "user has asked", "users have asked")
    ));
    for worker in workers.values() {
        let pid = rustix::process::Pid::from_child(&worker.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::USR1);
    }
}
