//! A request that waits for the agent: its token, its descriptor, and how to ask for its outcome.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use portkeep::control;
use portkeep_core::{
    Token,
    wire::{self, Grant, SelectRequest},
};

use crate::{
    abi::{Instance, Socket},
    descriptor::{descriptor, inode},
    error,
};

pub(crate) const FIRST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(5);
/// How often a waiting operation makes sure that there still is an agent to wait for.
const AGENT_CHECK: Duration = Duration::from_millis(200);

/// The instance that a program sees.
pub(crate) fn instance(grant: &Grant) -> Instance {
    Instance {
        range: crate::abi::PortRange { start: grant.start.to_be(), count: grant.count },
        padding: 0,
        token: grant.token,
    }
}

/// ACQUIRE and GRANTED are two calls, and so are SELECT and STATE. No other call of this process may come between them
/// on one socket. The lock is one for all sockets, because one socket can have several descriptors.
pub(crate) fn two_calls() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request of which the ports are claimed. Dropping it gives them back, unless the request was granted.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) socket: Socket,
    own: OwnedFd,
    pub(crate) grant: Grant,
    granted: bool,
    /// Until the next question.
    pub(crate) pause: Duration,
    next_agent_check: Instant,
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.granted {
            give_back(self.own.as_fd(), self.grant.token);
        }
    }
}

impl Claim {
    pub(crate) fn new(socket: Socket, fd: BorrowedFd<'_>, grant: Grant) -> io::Result<Self> {
        let own = fd.try_clone_to_owned().inspect_err(|_| give_back(fd, grant.token))?;
        let next_agent_check = Instant::now() + AGENT_CHECK;
        Ok(Self { socket, own, grant, granted: false, pause: FIRST_PAUSE, next_agent_check })
    }

    /// Whether the program has closed the socket the request is on.
    pub(crate) fn is_closed(&self) -> bool {
        Place::of(self.socket).is_none_or(|place| Some(place.inode) != inode(self.own.as_raw_fd()))
    }

    /// The reservation is the program's from here on.
    pub(crate) fn keep(mut self) -> Grant {
        self.granted = true;
        self.grant
    }

    /// The number of a socket alone does not say which socket it is: it may have been closed and given out again.
    pub(crate) fn is_on(&self, place: Place) -> bool {
        self.socket == place.socket && inode(self.own.as_raw_fd()) == Some(place.inode)
    }

    /// `None`: not yet.
    ///
    /// Asks for this request's own token. GRANTED would answer for the socket's last request, and would report that
    /// one's refusal to the wrong caller.
    pub(crate) fn poll(&mut self) -> Option<Result<(), i32>> {
        let select = SelectRequest { by: wire::BY_TOKEN, token: self.grant.token, ..Default::default() };
        let state = {
            let _locked = two_calls();
            control::state(&self.own, &select)
        };
        match state.map(|state| (state.state, state.error)) {
            Ok((wire::ACTIVE, _)) => return Some(Ok(())),
            // Without a reason the request is being refused at this moment.
            Ok((wire::PENDING, _) | (_, 0)) => {}
            Ok((_, reason)) => {
                return Some(Err(error::of_control(&io::Error::from_raw_os_error(i32::from(reason)))));
            }
            // An administrator, or another thread, ended it while it was pending.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Some(Err(error::WSA_OPERATION_ABORTED)),
            Err(error) => return Some(Err(error::of_control(&error))),
        }
        if Instant::now() >= self.next_agent_check {
            self.next_agent_check = Instant::now() + AGENT_CHECK;
            if control::version(&self.own).is_ok_and(|version| version.agent == 0) {
                return Some(Err(error::WSAENETDOWN));
            }
        }
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        None
    }
}

/// RELEASE also drops what is left of a refused request.
pub(crate) fn give_back(fd: BorrowedFd<'_>, token: u64) {
    if let Some(token) = Token::new(token) {
        // ENOENT: it has ended already.
        let _ = control::release(fd, token);
    }
}

/// The identity of a socket, which does not change when its number is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    socket: Socket,
    inode: u64,
}

impl Place {
    /// `None`: the number is not that of a socket.
    pub(crate) fn of(socket: Socket) -> Option<Self> {
        Some(Self { socket, inode: inode(descriptor(socket).ok()?)? })
    }
}
