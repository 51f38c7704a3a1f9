use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    time::Duration,
};

use portkeep_core::defaults::TIMEOUT;
use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    Name, PersistentError,
    protocol::{self, Answer, Change, Counters, Event, Lifetime, Proposal, Reloaded, Request, Which},
};

use crate::Info;

/// The longest list: 65,535 reservations with the longest texts.
const LONGEST_ANSWER: u64 = 256 << 20;

/// A connection to the agent. The functions beside it open one for each call.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// Connect to the agent of this machine.
    pub fn open() -> Result<Self, PersistentError> {
        Self::open_within(TIMEOUT)
    }

    /// Connect to the agent of this machine, and wait for each of its answers no longer than `patience`
    /// ([`PersistentError::Lost`]); 30 seconds with [`open`](Self::open).
    pub fn open_within(patience: Duration) -> Result<Self, PersistentError> {
        Self::connect(&protocol::socket_path(), patience)
    }

    /// Connect to the agent with this socket.
    pub fn open_at(path: &Path) -> Result<Self, PersistentError> {
        Self::connect(path, TIMEOUT)
    }

    fn connect(path: &Path, patience: Duration) -> Result<Self, PersistentError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                PersistentError::AgentAbsent { path: path.to_owned() }
            }
            // If the queue of the socket is full, connect waits for the agent too.
            io::ErrorKind::WouldBlock => lost(error),
            _ => PersistentError::ConnectCall(error),
        };
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
        // A timeout of zero would be no limit.
        let patience = Some(patience.max(Duration::from_millis(1)));
        socket.set_read_timeout(patience).and_then(|()| socket.set_write_timeout(patience)).map_err(failed)?;
        SockAddr::unix(path).and_then(|address| socket.connect(&address)).map_err(failed)?;
        Ok(Self { stream: BufReader::new(OwnedFd::from(socket).into()) })
    }

    /// See [`create`](super::create).
    pub fn create(&mut self, proposal: &Proposal, kept: Lifetime) -> Result<Info, PersistentError> {
        match self.ask(&Request::Create { proposal: proposal.clone(), kept })? {
            Answer::Created(created) => Ok(*created),
            other => Err(unexpected(&other)),
        }
    }

    /// See [`delete`](super::delete).
    pub fn delete(&mut self, which: &Which) -> Result<Info, PersistentError> {
        match self.ask(&Request::Delete(which.clone()))? {
            Answer::Deleted(deleted) => Ok(*deleted),
            other => Err(unexpected(&other)),
        }
    }

    /// See [`change`](super::change()).
    pub fn change(&mut self, name: &Name, change: &Change) -> Result<Info, PersistentError> {
        match self.ask(&Request::Change { name: name.clone(), change: change.clone() })? {
            Answer::Changed(changed) => Ok(*changed),
            other => Err(unexpected(&other)),
        }
    }

    /// See [`list`](super::list).
    pub fn list(&mut self) -> Result<Vec<Info>, PersistentError> {
        match self.ask(&Request::List)? {
            Answer::List(entries) => Ok(entries),
            other => Err(unexpected(&other)),
        }
    }

    /// Let the agent read its configuration and the drop-ins again. Requires an administrator.
    pub fn reload(&mut self) -> Result<Reloaded, PersistentError> {
        match self.ask(&Request::Reload)? {
            Answer::Reloaded(reloaded) => Ok(reloaded),
            other => Err(unexpected(&other)),
        }
    }

    /// The agent's counters. Requires an administrator, or a member of the group `watchers` of the configuration.
    pub fn counters(&mut self) -> Result<Counters, PersistentError> {
        match self.ask(&Request::Counters)? {
            Answer::Counters(counters) => Ok(*counters),
            other => Err(unexpected(&other)),
        }
    }

    /// The events from now on. Requires the same as [`counters`](Self::counters). The iterator ends when the agent
    /// ends. A slow reader misses events, so that it does not delay the agent.
    pub fn watch(mut self) -> Result<impl Iterator<Item = Result<Event, PersistentError>>, PersistentError> {
        match self.ask(&Request::Watch)? {
            Answer::Watching => {}
            other => return Err(unexpected(&other)),
        }
        self.stream.get_ref().set_read_timeout(None).map_err(PersistentError::ConnectCall)?;
        Ok(std::iter::from_fn(move || match self.hear() {
            Ok(Answer::Event(event)) => Some(Ok(*event)),
            Ok(other) => Some(Err(unexpected(&other))),
            Err(PersistentError::Lost(_)) => None,
            Err(error) => Some(Err(error)),
        }))
    }

    fn ask(&mut self, request: &Request) -> Result<Answer, PersistentError> {
        let mut line = serde_json::to_vec(request).map_err(|error| PersistentError::Malformed(error.to_string()))?;
        line.push(b'\n');
        // If the write fails, the agent may have refused and closed the connection. Its reason can still be read.
        let written = self.stream.get_mut().write_all(&line);
        match self.hear() {
            Err(PersistentError::Lost(lost)) => Err(PersistentError::Lost(written.err().unwrap_or(lost))),
            heard => heard,
        }
    }

    fn hear(&mut self) -> Result<Answer, PersistentError> {
        let mut line = Vec::new();
        (&mut self.stream).take(LONGEST_ANSWER).read_until(b'\n', &mut line).map_err(lost)?;
        if line.last() != Some(&b'\n') {
            return Err(PersistentError::Lost(io::ErrorKind::UnexpectedEof.into()));
        }
        match serde_json::from_slice(&line) {
            Ok(Answer::Refused(refused)) => Err(refused.into()),
            Ok(answer) => Ok(answer),
            Err(error) => Err(PersistentError::Answer(error.to_string())),
        }
    }
}

fn lost(error: io::Error) -> PersistentError {
    PersistentError::Lost(match error.kind() {
        // The error of a socket whose timeout has passed.
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "it runs, but hangs or was stopped"),
        _ => error,
    })
}

fn unexpected(answer: &Answer) -> PersistentError {
    PersistentError::Answer(format!("{answer:?}").chars().take(200).collect())
}
