//! One user's requests and reservations.

use std::{
    collections::HashMap,
    io::{self, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    time::{Duration, Instant},
};

use portkeep::{AcquireError, Require, Reservation, Scope};
use rustix::{
    event::{Timespec, epoll},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::Pid,
};

use super::{
    client::{self, Refusal},
    request::Malformed,
    signals::SignalPipe,
};
use crate::Io;

/// A connection that sends no request is closed after this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections that may be open without a request; the oldest is closed for the next one.
const WAITING: usize = 256;

/// The origin of connections.
#[derive(Debug)]
pub(super) enum Source {
    Listener(UnixListener),
    /// Root's server passes them over a Unix socket.
    Channel(UnixStream),
}

impl AsFd for Source {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Listener(listener) => listener.as_fd(),
            Self::Channel(channel) => channel.as_fd(),
        }
    }
}

/// The numbers that epoll reports.
const SOURCE: u64 = 0;
const END: u64 = 1;
const STATISTICS: u64 = 2;
const FIRST: u64 = 3;

/// A process that has ports.
#[derive(Debug)]
struct Holder {
    pidfd: OwnedFd,
    reservations: Vec<Reservation>,
}

#[derive(Debug, Default)]
struct Statistics {
    allocated: u64,
    denied: u64,
    malformed: u64,
}

/// The loop that answers requests and ends reservations.
pub(super) struct Server {
    source: Source,
    signals: SignalPipe,
    epoll: OwnedFd,
    next: u64,
    /// Connections that have not sent their request, with the time they came.
    connections: HashMap<u64, (UnixStream, Instant)>,
    processes: HashMap<u64, Pid>,
    holders: HashMap<Pid, Holder>,
    statistics: Statistics,
    complaint: Complaint,
}

impl Server {
    pub(super) fn new(source: Source) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let signals = SignalPipe::new()?;
        match &source {
            Source::Listener(listener) => listener.set_nonblocking(true)?,
            Source::Channel(channel) => channel.set_nonblocking(true)?,
        }
        watch(&epoll, &source, SOURCE)?;
        watch(&epoll, &signals.end, END)?;
        watch(&epoll, &signals.statistics, STATISTICS)?;
        Ok(Self {
            source,
            signals,
            epoll,
            next: FIRST,
            connections: HashMap::new(),
            processes: HashMap::new(),
            holders: HashMap::new(),
            statistics: Statistics::default(),
            complaint: Complaint::default(),
        })
    }

    /// Serve until SIGTERM or SIGINT, or until root's server has ended. The reservations end with the server.
    pub(super) fn run(mut self, io: &mut Io<'_>) -> io::Result<()> {
        loop {
            let mut events = [MaybeUninit::<epoll::Event>::uninit(); 64];
            let (ready, _) = match epoll::wait(&self.epoll, &mut events, self.next_deadline().as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                waited => waited?,
            };
            for event in ready {
                match event.data.u64() {
                    SOURCE => {
                        if !self.take_connections()? {
                            return Ok(());
                        }
                    }
                    END => return Ok(()),
                    STATISTICS => self.print_statistics(io),
                    number if self.connections.contains_key(&number) => self.answer(number, io),
                    number => self.process_ended(number),
                }
            }
            self.connections.retain(|_, (_, since)| since.elapsed() < PATIENCE);
        }
    }

    fn next_deadline(&self) -> Option<Timespec> {
        let oldest = self.connections.values().map(|(_, since)| *since).min()?;
        let left = PATIENCE.saturating_sub(oldest.elapsed()) + Duration::from_millis(1);
        Timespec::try_from(left).ok()
    }

    /// Returns false if there will be no more.
    fn take_connections(&mut self) -> io::Result<bool> {
        loop {
            let taken = match &self.source {
                Source::Listener(listener) => listener.accept().map(|(connection, _)| Some(connection)),
                Source::Channel(channel) => receive(channel),
            };
            match taken {
                // If epoll does not accept a connection, it is closed. It must not end the others.
                Ok(Some(connection)) => drop(self.admit(connection)),
                Ok(None) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                // The client has closed the connection, or no descriptors are left. The next connection may succeed.
                Err(_) => return Ok(true),
            }
        }
    }

    fn admit(&mut self, connection: UnixStream) -> io::Result<()> {
        connection.set_nonblocking(true)?;
        if self.connections.len() >= WAITING {
            let oldest = self.connections.iter().min_by_key(|(_, (_, since))| *since).map(|(number, _)| *number);
            oldest.and_then(|number| self.connections.remove(&number));
        }
        let number = self.number();
        watch(&self.epoll, &connection, number)?;
        self.connections.insert(number, (connection, Instant::now()));
        Ok(())
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The request has arrived. It is read once, as in portpicker's server: bytes that arrive later are not part of it.
    fn answer(&mut self, number: u64, io: &mut Io<'_>) {
        let Some((mut connection, _)) = self.connections.remove(&number) else { return };
        let mut request = [0; 100];
        let Ok(length) = connection.read(&mut request) else { return };
        if length == request.len() {
            // A close with unread bytes would look like a reset to the client.
            let _ = connection.read(&mut [0; 64 * 1024]);
        }
        match self.allocate(&request[..length], &connection) {
            Ok(port) => {
                self.statistics.allocated += 1;
                let _ = connection.write_all(format!("{port}\n").as_bytes());
            }
            Err(error) => {
                let malformed = matches!(error.downcast_ref(), Some(Refusal::Malformed(Malformed::NotANumber)));
                *(if malformed { &mut self.statistics.malformed } else { &mut self.statistics.denied }) += 1;
                self.complaint.make(&error, io);
            }
        }
    }

    fn allocate(&mut self, request: &[u8], connection: &UnixStream) -> anyhow::Result<u16> {
        let client = client::named(request, connection)?;
        let reservation = Reservation::tcp()
            .both()
            .scope(Scope::User)
            .require(Require::Kernel)
            .label(format!("portserver {}", client.pid.as_raw_nonzero()))
            .acquire()
            .map_err(|error: AcquireError| {
                anyhow::Error::new(error).context(format!("no port for process {}", client.pid.as_raw_nonzero()))
            })?;
        let port = reservation.ports().start();
        if !self.holders.contains_key(&client.pid) {
            let number = self.number();
            watch(&self.epoll, &client.pidfd, number)?;
            self.processes.insert(number, client.pid);
            self.holders.insert(client.pid, Holder { pidfd: client.pidfd, reservations: Vec::new() });
        }
        if let Some(holder) = self.holders.get_mut(&client.pid) {
            holder.reservations.push(reservation);
        }
        Ok(port)
    }

    /// The number may soon belong to another process, so nothing of it is kept.
    fn process_ended(&mut self, number: u64) {
        let holder = self.processes.remove(&number).and_then(|pid| self.holders.remove(&pid));
        if let Some(holder) = holder {
            let _ = epoll::delete(&self.epoll, &holder.pidfd);
        }
    }

    fn print_statistics(&mut self, io: &mut Io<'_>) {
        let mut bytes = [0; 64];
        let _ = self.signals.statistics.read(&mut bytes);
        let held: usize = self.holders.values().map(|holder| holder.reservations.len()).sum();
        let Statistics { allocated, denied, malformed } = self.statistics;
        io.note(format_args!(
            "{held} ports for {} processes; {allocated} requests granted, {denied} refused, {malformed} malformed",
            self.holders.len()
        ));
    }
}

fn watch(epoll: &OwnedFd, what: impl AsFd, number: u64) -> io::Result<()> {
    Ok(epoll::add(epoll, what, epoll::EventData::new_u64(number), epoll::EventFlags::IN)?)
}

/// The next connection that root's server passes. `None` if that server has ended.
fn receive(channel: &UnixStream) -> io::Result<Option<UnixStream>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = recvmsg(channel, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let connection = descriptors.flatten().next().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(Some(connection.into()))
}

/// Refusals in the log, one a second at most.
#[derive(Debug, Default)]
struct Complaint {
    last: Option<Instant>,
    unsaid: u64,
}

impl Complaint {
    fn make(&mut self, error: &anyhow::Error, io: &mut Io<'_>) {
        if self.last.is_some_and(|last| last.elapsed() < Duration::from_secs(1)) {
            self.unsaid += 1;
            return;
        }
        match std::mem::take(&mut self.unsaid) {
            0 => io.note(format_args!("{error:#}")),
            unsaid => io.note(format_args!("{error:#} ({unsaid} more refusals before)")),
        }
        self.last = Some(Instant::now());
    }
}
