//! Messages with at most one descriptor each, over a Unix socket that keeps message boundaries.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Serialize, de::DeserializeOwned};

use crate::process::{receive, send};

/// One end.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

impl Channel {
    /// Both ends, closed on exec.
    pub(super) fn pair() -> io::Result<(OwnedFd, Self)> {
        let (theirs, ours) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((theirs, Self(ours)))
    }

    pub(super) fn new(end: OwnedFd) -> Self {
        Self(end)
    }

    pub(super) fn send(&self, message: &impl Serialize, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        send(&self.0, &serde_json::to_vec(message)?, descriptor)
    }

    /// `UnexpectedEof`: the other end is closed.
    pub(super) fn receive<T: DeserializeOwned>(&self) -> io::Result<(T, Option<OwnedFd>)> {
        let mut text = vec![0; 4096];
        let (length, descriptor) = receive(&self.0, &mut text)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((serde_json::from_slice(&text[..length])?, descriptor))
    }
}
