//! One user's requests and reservations.

use std::{
    collections::HashMap,
    io::{self, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    net::Shutdown,
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
    complaints::Complaints,
    request::{LONGEST, Malformed},
    signals::SignalPipe,
};
use crate::Io;

/// A connection that sends no complete request is closed after this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections that may be open without a complete request; the oldest is closed for the next one.
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

/// A connection whose request is not complete, or whose answer has been given.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    since: Instant,
    request: Vec<u8>,
    /// Later bytes of the client are read and ignored: a close with unread bytes would look like a reset to it.
    answered: bool,
}

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
    connections: HashMap<u64, Connection>,
    processes: HashMap<u64, Pid>,
    holders: HashMap<Pid, Holder>,
    statistics: Statistics,
    complaints: Complaints,
}

impl Server {
    pub(super) fn new(source: Source, signals: SignalPipe) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
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
            complaints: Complaints::default(),
        })
    }

    /// Serve until SIGTERM or SIGINT, or until root's server has ended. The reservations end with the server.
    pub(super) fn run(mut self, io: &mut Io<'_>) -> io::Result<()> {
        let ended = self.serve(io);
        self.complaints.print(io);
        ended
    }

    fn serve(&mut self, io: &mut Io<'_>) -> io::Result<()> {
        loop {
            let mut events = [MaybeUninit::<epoll::Event>::uninit(); 64];
            let (ready, _) = match epoll::wait(&self.epoll, &mut events, self.next_deadline().as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                waited => waited?,
            };
            for event in ready {
                match event.data.u64() {
                    SOURCE => {
                        if !self.take_connections(io)? {
                            return Ok(());
                        }
                    }
                    END => return Ok(()),
                    STATISTICS => self.print_statistics(io),
                    number if self.connections.contains_key(&number) => self.read(number, io),
                    number => self.process_ended(number),
                }
            }
            self.close_slow(io);
            self.complaints.print_due(io);
        }
    }

    fn next_deadline(&self) -> Option<Timespec> {
        let oldest = self.connections.values().map(|connection| connection.since).min();
        let patience = oldest.map(|since| PATIENCE.saturating_sub(since.elapsed()));
        let left = patience.into_iter().chain(self.complaints.wait()).min()?;
        Timespec::try_from(left + Duration::from_millis(1)).ok()
    }

    /// Returns false if there will be no more.
    fn take_connections(&mut self, io: &mut Io<'_>) -> io::Result<bool> {
        loop {
            let taken = match &self.source {
                Source::Listener(listener) => listener.accept().map(|(connection, _)| Some(connection)),
                Source::Channel(channel) => receive(channel),
            };
            match taken {
                // If epoll does not accept a connection, it is closed. It must not end the others.
                Ok(Some(connection)) => drop(self.admit(connection, io)),
                Ok(None) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                // The client has closed the connection, or no descriptors are left. The next connection may succeed.
                Err(_) => return Ok(true),
            }
        }
    }

    fn admit(&mut self, stream: UnixStream, io: &mut Io<'_>) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        if self.connections.len() >= WAITING {
            let oldest = self.connections.iter().min_by_key(|(_, each)| each.since).map(|(number, _)| *number);
            if oldest.and_then(|number| self.connections.remove(&number)).is_some_and(|oldest| !oldest.answered) {
                self.refuse(&Refusal::Crowded(WAITING).into(), io);
            }
        }
        let number = self.number();
        watch(&self.epoll, &stream, number)?;
        let connection = Connection { stream, since: Instant::now(), request: Vec::new(), answered: false };
        self.connections.insert(number, connection);
        Ok(())
    }

    fn close_slow(&mut self, io: &mut Io<'_>) {
        let slow = self.connections.extract_if(|_, connection| connection.since.elapsed() >= PATIENCE);
        let refused = slow.filter(|(_, connection)| !connection.answered).count();
        for _ in 0..refused {
            self.refuse(&Refusal::Slow(PATIENCE.as_secs()).into(), io);
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Bytes have arrived. A request is complete at the end of its line or of the input, or if it is too long.
    fn read(&mut self, number: u64, io: &mut Io<'_>) {
        let Some(mut connection) = self.connections.remove(&number) else { return };
        let mut bytes = [0; 64 * 1024];
        loop {
            let wanted = if connection.answered { bytes.len() } else { LONGEST + 1 - connection.request.len() };
            let length = match connection.stream.read(&mut bytes[..wanted]) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !connection.answered || connection.request.len() > LONGEST {
                        self.connections.insert(number, connection);
                    }
                    return;
                }
                Err(_) => return,
            };
            if !connection.answered {
                let request = &mut connection.request;
                request.extend(&bytes[..length]);
                if length == 0 || request.contains(&b'\n') || request.len() > LONGEST {
                    self.answer(&mut connection, io);
                }
            }
            if length == 0 {
                return;
            }
        }
    }

    fn answer(&mut self, connection: &mut Connection, io: &mut Io<'_>) {
        connection.answered = true;
        match self.allocate(&connection.request, &connection.stream) {
            Ok(port) => {
                self.statistics.allocated += 1;
                let _ = connection.stream.write_all(format!("{port}\n").as_bytes());
            }
            Err(error) => self.refuse(&error, io),
        }
        let _ = connection.stream.shutdown(Shutdown::Write);
    }

    fn refuse(&mut self, error: &anyhow::Error, io: &mut Io<'_>) {
        let malformed = matches!(
            error.downcast_ref(),
            Some(Refusal::Malformed(Malformed::NotANumber) | Refusal::Slow(_) | Refusal::Crowded(_))
        );
        *(if malformed { &mut self.statistics.malformed } else { &mut self.statistics.denied }) += 1;
        self.complaints.make(error, io);
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
            "{} for {}; {allocated} requests granted, {denied} refused, {malformed} malformed",
            counted(held, "port", "ports"),
            counted(self.holders.len(), "process", "processes"),
        ));
    }
}

pub(super) fn counted(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
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
