//! The agent's socket: who asks, what, and within which bounds.
//!
//! One thread serves everybody, so nothing here waits for anybody. A connection
//! that is slow, talks too much or has too many siblings is closed; one that
//! only watches and does not read misses events.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    io::{Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::PathBuf,
    time::{Duration, Instant},
};

use portkeep::persistent::protocol::{self, Answer, Event, LONGEST, Reason, Refused, Request};
use rustix::net::sockopt::socket_peercred;

/// Connections at a time, and of one user other than root.
const MOST: usize = 64;
const MOST_OF_A_USER: usize = 8;
/// A request has to be whole, and an answer taken, within this; and this long a connection may be silent.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of events that a watcher may have left unread.
const UNREAD: usize = 256 * 1024;

/// Who is at the other end, as the kernel says (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    peer: Peer,
    /// Read and not understood yet.
    heard: Vec<u8>,
    /// To be written.
    unsaid: VecDeque<u8>,
    watches: bool,
    /// Closed when all is said.
    ends: bool,
    /// Nothing more will come.
    gone: bool,
    last: Instant,
}

/// The socket and who is connected.
#[derive(Debug)]
pub(super) struct Server {
    listener: UnixListener,
    path: PathBuf,
    connections: Vec<Connection>,
    /// A descriptor to give up when there are no more: somebody who cannot be accepted would otherwise be left without
    /// an answer, and the listener would wake the agent again and again.
    spare: Option<File>,
}

impl Server {
    /// Listen at this path. What a killed agent left there is removed; there is one agent at a time.
    pub(super) fn listen(path: PathBuf) -> io::Result<Self> {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        // Anybody may ask what is declared; who may change it is looked at for each request.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        Ok(Self { listener, path, connections: Vec::new(), spare: spare() })
    }

    /// What to poll, and whether for output, too.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        let connections = self.connections.iter().map(|c| (c.stream.as_fd(), !c.unsaid.is_empty()));
        std::iter::once((self.listener.as_fd(), false)).chain(connections)
    }

    /// Take what can be taken without waiting: requests, and of which connection.
    pub(super) fn hear(&mut self) -> Vec<(usize, Peer, Request)> {
        self.accept();
        let heard = self.connections.iter_mut().enumerate();
        heard.flat_map(|(number, c)| c.hear().into_iter().map(move |(peer, request)| (number, peer, request))).collect()
    }

    /// Answer a request that was just [heard](Server::hear).
    pub(super) fn answer(&mut self, number: usize, answer: &Answer) {
        let connection = &mut self.connections[number];
        connection.watches |= *answer == Answer::Watching;
        connection.unsaid.extend(line_of(answer));
    }

    /// Say what can be said without waiting, and close what is finished or hopeless.
    pub(super) fn say(&mut self) {
        self.connections.retain_mut(|connection| !connection.is_over());
    }

    fn accept(&mut self) {
        // Whatever is wrong with one that wants in is its own affair, or passes.
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
                    self.turn_one_away();
                    break;
                }
                Err(_) => break,
            };
            if let Ok(connection) = Connection::of(stream) {
                let siblings = self.connections.iter().filter(|c| c.peer.uid == connection.peer.uid).count();
                let room = self.connections.len() < MOST && (connection.peer.uid == 0 || siblings < MOST_OF_A_USER);
                self.connections.push(if room { connection } else { connection.turned_away("too many connections") });
            }
            if self.connections.len() > 2 * MOST {
                break;
            }
        }
    }

    /// The process has no descriptor left.
    fn turn_one_away(&mut self) {
        self.spare = None;
        if let Ok((stream, _)) = self.listener.accept()
            && let Ok(connection) = Connection::of(stream)
        {
            // Its buffer is empty, so the sentence is written at once.
            connection.turned_away("no descriptor left for another connection").is_over();
        }
        self.spare = spare();
    }

    /// Tell the watchers.
    pub(super) fn publish(&mut self, event: &Event) {
        if !self.connections.iter().any(|connection| connection.watches) {
            return;
        }
        let line = line_of(&Answer::Event(event.clone()));
        for connection in self.connections.iter_mut().filter(|connection| connection.watches) {
            if connection.unsaid.len() + line.len() <= UNREAD {
                connection.unsaid.extend(&line);
                connection.last = Instant::now();
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

fn line_of(answer: &Answer) -> Vec<u8> {
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    line
}

pub(super) fn refusal(reason: Reason, message: impl Into<String>) -> Answer {
    Answer::Refused(Refused { reason, message: message.into() })
}

impl Connection {
    fn of(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let credentials = socket_peercred(&stream)?;
        let peer = Peer { uid: credentials.uid.as_raw(), gid: credentials.gid.as_raw() };
        Ok(Self {
            stream,
            peer,
            heard: Vec::new(),
            unsaid: VecDeque::new(),
            watches: false,
            ends: false,
            gone: false,
            last: Instant::now(),
        })
    }

    fn turned_away(mut self, why: &str) -> Self {
        self.say_and_end(&refusal(Reason::Failed, format!("the agent has {why}; try again")));
        self
    }

    fn say_and_end(&mut self, answer: &Answer) {
        self.unsaid.extend(line_of(answer));
        self.ends = true;
    }

    /// The requests that are whole.
    fn hear(&mut self) -> Vec<(Peer, Request)> {
        self.gone |= self.read().is_err();
        let mut requests = Vec::new();
        while !self.ends
            && let Some(line) = self.next_line()
        {
            self.last = Instant::now();
            match serde_json::from_slice(&line) {
                Ok(request) => requests.push((self.peer, request)),
                Err(error) => self.say_and_end(&refusal(Reason::Malformed, format!("not a request: {error}"))),
            }
        }
        if !self.ends && self.heard.len() >= LONGEST {
            self.say_and_end(&refusal(Reason::Malformed, format!("a request has at most {LONGEST} bytes")));
        }
        requests
    }

    fn is_over(&mut self) -> bool {
        let blocked = self.write().is_err();
        let silent = self.last.elapsed() > PATIENCE && (!self.watches || !self.unsaid.is_empty());
        let finished = (self.ends || self.gone) && self.unsaid.is_empty();
        blocked || silent || finished
    }

    fn next_line(&mut self) -> Option<Vec<u8>> {
        let end = self.heard.iter().position(|byte| *byte == b'\n')?;
        let rest = self.heard.split_off(end + 1);
        Some(std::mem::replace(&mut self.heard, rest))
    }

    /// An error means that nothing more will come.
    fn read(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        while !self.ends && self.heard.len() < LONGEST {
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.heard.extend_from_slice(&bytes[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        while !self.unsaid.is_empty() {
            let (front, _) = self.unsaid.as_slices();
            match self.stream.write(front) {
                Ok(length) => {
                    self.unsaid.drain(..length);
                    self.last = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Path of the socket in the agent's folder.
pub(super) fn path_in(folder: &std::path::Path) -> PathBuf {
    protocol::socket_in(folder)
}
