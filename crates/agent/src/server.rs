//! The agent's socket: accepts connections within limits, reads requests and writes answers.
//!
//! One thread serves all connections, so no step here waits for a peer. Each connection has one request a round, and
//! each account has few connections. Some connections are kept for root.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::PathBuf,
};

use portkeep::persistent::protocol::{Answer, Event, Reason, Request};
use portkeep_observe::subordinate::Owners;
use rustix::event::PollFlags;

use super::{
    connection::{Connection, Line, line_of, refusal},
    peer::Peer,
};

/// The limits: connections at a time, those of them that only root gets, and those of one account other than root.
const MOST: usize = 64;
const OF_ROOT: usize = 8;
const MOST_OF_AN_ACCOUNT: usize = 8;
/// Connections that are accepted in a round.
const ACCEPTED: usize = 2 * MOST;

/// The socket and its connections.
#[derive(Debug)]
pub(super) struct Server {
    listener: UnixListener,
    path: PathBuf,
    connections: Vec<Connection>,
    /// A descriptor to close when none is left. Otherwise a peer could not be accepted and would get no answer, and the
    /// listener would wake the agent again and again.
    spare: Option<File>,
}

impl Server {
    /// Listen at this path. The socket of a killed agent is removed; there is one agent at a time.
    pub(super) fn listen(path: PathBuf) -> io::Result<Self> {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        // Any process may ask for the list; each request is checked for whether its peer may change anything.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        Ok(Self { listener, path, connections: Vec::new(), spare: spare() })
    }

    /// The descriptors to poll, and the events for each.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let connections = self.connections.iter().map(Connection::interest);
        std::iter::once((self.listener.as_fd(), PollFlags::IN)).chain(connections)
    }

    /// Whether requests are waiting that polling does not report.
    pub(super) fn is_busy(&self) -> bool {
        self.connections.iter().any(Connection::has_request)
    }

    /// Read without waiting: one request of each connection.
    pub(super) fn hear(&mut self, owners: &Owners) -> Vec<(usize, Peer, Request)> {
        self.accept(owners);
        let connections = self.connections.iter_mut().enumerate();
        connections.filter_map(|(number, c)| Some((number, c.peer, c.hear()?))).collect()
    }

    /// Whether the client of a request that was just [heard](Server::hear) has closed the connection. Then the request
    /// must not be carried out: the client was informed that it failed (R13).
    pub(super) fn is_deserted(&self, number: usize) -> bool {
        self.connections[number].is_deserted()
    }

    /// Answer a request that was just [heard](Server::hear).
    pub(super) fn answer(&mut self, number: usize, answer: &Answer) {
        self.connections[number].watches |= *answer == Answer::Watching;
        self.say_line(number, line_of(answer));
    }

    /// The same with an answer that several connections may share.
    pub(super) fn say_line(&mut self, number: usize, line: Line) {
        self.connections[number].say(line);
    }

    /// Write what can be written without waiting, and close connections that are finished or cannot continue.
    pub(super) fn say(&mut self) {
        self.connections.retain_mut(|connection| !connection.is_over());
    }

    fn accept(&mut self, owners: &Owners) {
        // An error of one connection concerns only its client, or it is temporary.
        for _ in 0..ACCEPTED {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
                    self.turn_one_away();
                    break;
                }
                Err(_) => break,
            };
            let Some(connection) = connection_of(stream) else { continue };
            if !self.has_room_for(connection.peer, owners) {
                self.connections.retain(|connection| !connection.is_deserted());
            }
            if self.has_room_for(connection.peer, owners) {
                self.connections.push(connection);
            } else {
                turn_away(connection, "too many connections");
            }
        }
    }

    fn has_room_for(&self, peer: Peer, owners: &Owners) -> bool {
        if peer.is_root {
            return self.connections.len() < MOST;
        }
        let account = owners.account(peer.uid);
        let others = self.connections.iter().filter(|c| !c.peer.is_root);
        let (mut all, mut siblings) = (0, 0);
        for connection in others {
            all += 1;
            siblings += usize::from(owners.account(connection.peer.uid) == account);
        }
        all < MOST - OF_ROOT && self.connections.len() < MOST && siblings < MOST_OF_AN_ACCOUNT
    }

    /// The process has no descriptor left.
    fn turn_one_away(&mut self) {
        self.spare = None;
        if let Ok((stream, _)) = self.listener.accept()
            && let Some(connection) = connection_of(stream)
        {
            turn_away(connection, "no descriptor left for another connection");
        }
        self.spare = spare();
    }

    /// Send it to the watchers.
    pub(super) fn publish(&mut self, event: &Event) {
        if !self.connections.iter().any(|connection| connection.watches) {
            return;
        }
        let line = line_of(&Answer::Event(Box::new(event.clone())));
        self.connections.iter_mut().filter(|connection| connection.watches).for_each(|c| c.publish(&line));
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

fn connection_of(stream: UnixStream) -> Option<Connection> {
    stream.set_nonblocking(true).ok()?;
    let peer = Peer::of(&stream).ok()?;
    Some(Connection::new(stream, peer))
}

/// The connection's buffer is empty, so the sentence is written at once.
fn turn_away(mut connection: Connection, why: &str) {
    connection.say_and_end(&refusal(Reason::Failed, format!("the agent has {why}; try again")));
    connection.is_over();
}
