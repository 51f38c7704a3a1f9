//! The control codes: one function for each, without additions.
//!
//! Most programs use [`crate::Reservation`], which is built on these. They are
//! public for programs that manage tokens themselves, and for tests.
//!
//! Every port here is in host byte order. The errors are those of the kernel,
//! unchanged; [`crate::Errno`] names them.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use portkeep_core::{
    Token,
    wire::{self, AcquireRequest, AgentMark, Also, Grant, SelectRequest, State, Version},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `setsockopt(socket, SOL_PORTKEEP, option, value)` with any bytes.
pub fn set(socket: impl AsFd, option: i32, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `value` is readable for `length` bytes for the duration of the call, and setsockopt writes nothing.
    let result = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), wire::SOL_PORTKEEP, option, value.as_ptr().cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `getsockopt(socket, SOL_PORTKEEP, option)` into `buffer`; returns how many bytes the answer has.
pub fn get(socket: impl AsFd, option: i32, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `buffer` is writable for `length` bytes, `length` is a valid socklen_t, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            wire::SOL_PORTKEEP,
            option,
            buffer.as_mut_ptr().cast(),
            &mut length,
        )
    };
    if result == 0 { Ok(length as usize) } else { Err(io::Error::last_os_error()) }
}

fn get_struct<T: FromBytes + IntoBytes + Default>(socket: impl AsFd, option: i32) -> io::Result<T> {
    let mut value = T::default();
    get(socket, option, value.as_mut_bytes())?;
    Ok(value)
}

fn set_struct<T: IntoBytes + Immutable>(socket: impl AsFd, option: i32, value: &T) -> io::Result<()> {
    set(socket, option, value.as_bytes())
}

/// ACQUIRE. `EINPROGRESS` means that the request is pending; [`granted`] reports the outcome.
///
/// It sends the shortest form of the request, without the fields at its end
/// that are 0, because the kernel handles up to 32 bytes without allocating.
pub fn acquire(socket: impl AsFd, request: &AcquireRequest) -> io::Result<()> {
    let bytes = request.as_bytes();
    let length = [8, 16, 24].into_iter().find(|&n| bytes[n..].iter().all(|byte| *byte == 0)).unwrap_or(bytes.len());
    set(socket, wire::ACQUIRE, &bytes[..length])
}

/// ACQUIRE, and admit others in addition to the scope.
pub fn acquire_also(socket: impl AsFd, request: &AcquireRequest, also: &[Also]) -> io::Result<()> {
    if also.is_empty() {
        return acquire(socket, request);
    }
    let request = AcquireRequest { also: also.len().try_into().unwrap_or(u16::MAX), ..*request };
    set(socket, wire::ACQUIRE, &[request.as_bytes(), also.as_bytes()].concat())
}

/// RELEASE: end a reservation of this process.
pub fn release(socket: impl AsFd, token: Token) -> io::Result<()> {
    set_struct(socket, wire::RELEASE, &token.get())
}

/// ASSOCIATE: let this unbound socket take its port from a reservation.
pub fn associate(socket: impl AsFd, token: Token) -> io::Result<()> {
    set_struct(socket, wire::ASSOCIATE, &token.get())
}

/// The result of the last ACQUIRE on this socket. A refusal is reported once.
pub fn granted(socket: impl AsFd) -> io::Result<Grant> {
    get_struct(socket, wire::GRANTED)
}

/// The state of the reservation that `select` means.
pub fn state(socket: impl AsFd, select: &SelectRequest) -> io::Result<State> {
    let socket = socket.as_fd();
    set_struct(socket, wire::SELECT, select)?;
    get_struct(socket, wire::STATE)
}

/// The same, with the others that it admits in addition to its scope.
pub fn state_also(socket: impl AsFd, select: &SelectRequest) -> io::Result<(State, Vec<Also>)> {
    let socket = socket.as_fd();
    set_struct(socket, wire::SELECT, select)?;
    let mut tries = 0;
    loop {
        let mut buffer = [0; size_of::<State>() + wire::ALSO_MAX * size_of::<Also>()];
        let length = get(socket, wire::STATE, &mut buffer)?;
        let (state, rest) = State::read_from_prefix(&buffer[..length.min(buffer.len())])
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let also: Vec<Also> =
            rest.chunks_exact(size_of::<Also>()).filter_map(|one| Also::read_from_bytes(one).ok()).collect();
        // If the others change while the kernel reads them, the answer has fewer than it says: ask again. A refused
        // request has none any more.
        if also.len() == usize::from(state.also) || state.state == wire::REFUSED || tries == TRIES {
            return Ok((state, also));
        }
        tries += 1;
    }
}

/// How often to ask again if an answer is incomplete.
const TRIES: u32 = 10;

/// The BPF programs that serve this socket. `ENOPROTOOPT` or `EOPNOTSUPP`: there are none.
pub fn version(socket: impl AsFd) -> io::Result<Version> {
    get_struct(socket, wire::VERSION)
}

/// Mark a socket as one of the agent's. Requires the secret of the `config` map.
pub fn agent_mark(socket: impl AsFd, mark: &AgentMark) -> io::Result<()> {
    set_struct(socket, wire::AGENT, mark)
}
