//! One connection to the agent's socket: what is read, what is to be written, and when it ends.
//!
//! The cost of one connection is bounded. Nothing is read from it while an answer is unread, so there is at most one
//! answer. Only a list is long, and all connections that ask for it share it.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    rc::Rc,
    time::{Duration, Instant},
};

use portkeep::persistent::protocol::{Answer, LONGEST, Reason, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{peer::Peer, refused::refused};

/// The limit for receiving a whole request, and for the peer's reading of an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of events that a watcher may leave unread.
const UNREAD: usize = 256 * 1024;

/// One line of an answer, which several connections may share.
pub(super) type Line = Rc<[u8]>;

pub(super) fn line_of(answer: &Answer) -> Line {
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

pub(super) fn refusal(reason: Reason, message: impl Into<String>) -> Answer {
    Answer::Refused(refused(reason, message))
}

/// The bytes to write.
#[derive(Debug, Default)]
struct Outbox {
    lines: VecDeque<Line>,
    /// Bytes of the first line that are written already.
    written: usize,
    bytes: usize,
}

impl Outbox {
    fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    fn push(&mut self, line: Line) {
        self.bytes += line.len();
        self.lines.push_back(line);
    }

    /// Write what the peer accepts without waiting. True if it accepted any.
    fn write_to(&mut self, mut stream: &UnixStream) -> io::Result<bool> {
        let mut any = false;
        while let Some(line) = self.lines.front() {
            match stream.write(&line[self.written..]) {
                Ok(length) => {
                    any = true;
                    self.written += length;
                    self.bytes -= length;
                    if self.written == line.len() {
                        self.lines.pop_front();
                        self.written = 0;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(any)
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    pub(super) peer: Peer,
    /// Bytes that were read and not parsed yet.
    heard: Vec<u8>,
    unsaid: Outbox,
    pub(super) watches: bool,
    /// Close it once everything is written.
    ends: bool,
    /// No more input will come.
    gone: bool,
    /// When the peer last read bytes, or when bytes for it were last added to an empty outbox.
    last: Instant,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, peer: Peer) -> Self {
        Self {
            stream,
            peer,
            heard: Vec::new(),
            unsaid: Outbox::default(),
            watches: false,
            ends: false,
            gone: false,
            last: Instant::now(),
        }
    }

    /// The events to poll for. While an answer is unread, input is not among them: a peer cannot request more than it
    /// reads.
    pub(super) fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        let flags = if !self.unsaid.is_empty() {
            PollFlags::OUT
        } else if self.gone || self.ends {
            PollFlags::empty()
        } else {
            PollFlags::IN
        };
        (self.stream.as_fd(), flags)
    }

    /// Whether a whole request is in the buffer already. Polling does not report it.
    pub(super) fn has_request(&self) -> bool {
        self.unsaid.is_empty() && !self.ends && self.heard.contains(&b'\n')
    }

    /// The next request, if it is complete.
    pub(super) fn hear(&mut self) -> Option<Request> {
        if self.ends || !self.unsaid.is_empty() {
            return None;
        }
        if !self.heard.contains(&b'\n') {
            self.gone |= self.read().is_err();
        }
        let Some(line) = self.next_line() else {
            if self.heard.len() >= LONGEST {
                self.say_and_end(&refusal(Reason::Malformed, format!("a request has at most {LONGEST} bytes")));
            }
            return None;
        };
        match serde_json::from_slice(&line) {
            Ok(request) => Some(request),
            Err(error) => {
                self.say_and_end(&refusal(Reason::Malformed, format!("not a request: {error}")));
                None
            }
        }
    }

    /// Whether the peer has closed the connection. A peer that has only closed its writing side still waits for its
    /// answer.
    pub(super) fn is_deserted(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.stream.as_fd(), PollFlags::empty())];
        let asked = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        asked.is_ok() && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    pub(super) fn say(&mut self, line: Line) {
        if self.unsaid.is_empty() {
            self.last = Instant::now();
        }
        self.unsaid.push(line);
    }

    pub(super) fn say_and_end(&mut self, answer: &Answer) {
        self.say(line_of(answer));
        self.ends = true;
    }

    /// Send it to a watcher, unless it has left too much unread.
    pub(super) fn publish(&mut self, line: &Line) {
        if self.unsaid.bytes + line.len() <= UNREAD {
            self.say(line.clone());
        }
    }

    /// Write what can be written. True if the connection is finished or cannot continue.
    pub(super) fn is_over(&mut self) -> bool {
        let blocked = match self.unsaid.write_to(&self.stream) {
            Ok(true) => {
                self.last = Instant::now();
                false
            }
            Ok(false) => false,
            Err(_) => true,
        };
        let silent = self.last.elapsed() > PATIENCE && (!self.watches || !self.unsaid.is_empty());
        let finished = (self.ends || self.gone) && self.unsaid.is_empty() && !self.has_request();
        blocked || silent || finished
    }

    fn next_line(&mut self) -> Option<Vec<u8>> {
        let end = self.heard.iter().position(|byte| *byte == b'\n')?;
        let rest = self.heard.split_off(end + 1);
        Some(std::mem::replace(&mut self.heard, rest))
    }

    /// An error means that no more input will come.
    fn read(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        while self.heard.len() < LONGEST {
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
}
