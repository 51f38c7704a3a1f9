//! The ordinary socket functions: the system's own, with Winsock's errors.
//!
//! The differences from a bare system call are those of Windows: `socket`
//! knows 23 for IPv6 and guesses a type left at 0, IPv6 sockets take IPv6 only
//! unless set otherwise, timeouts come in milliseconds, nothing raises SIGPIPE.

use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    abi::{INVALID_SOCKET, Socket},
    claim::Place,
    error, held, pending, startup,
};

mod address;
mod data;
mod duplicate;
mod options;

use duplicate::{DUPLICATE, read_info, take_duplicate};

pub use self::{address::*, data::*, duplicate::*, options::*};
pub(crate) use self::{
    address::{accept_if, bind, connect, getpeername, getsockname, is_bound, listen, shutdown, transport},
    data::Transfer,
    duplicate::duplicate,
    options::{bytes_to_read, getsockopt, set_non_blocking, setsockopt},
};

/// `AF_INET6` of Windows, which programs read from their command line.
const WINDOWS_AF_INET6: i32 = 23;
const FROM_PROTOCOL_INFO: i32 = -1;
const WSA_FLAG_OVERLAPPED: u32 = 0x01;
const WSA_FLAG_NO_HANDLE_INHERIT: u32 = 0x80;
/// The part of WSAPROTOCOL_INFO before the text, in 32-bit words.
const INFO_WORDS: usize = 29;

pub(crate) fn descriptor(s: Socket) -> Result<i32, i32> {
    i32::try_from(s).map_err(|_| error::WSAENOTSOCK)
}

pub(crate) fn type_of(fd: i32) -> Option<i32> {
    option(fd, libc::SOL_SOCKET, libc::SO_TYPE)
}

pub(crate) fn option(fd: i32, level: i32, name: i32) -> Option<i32> {
    let (mut value, mut length) = (0i32, 4);
    // SAFETY: `value` and `length` are locals of the sizes passed to the call.
    let result = unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &mut length) };
    (result == 0).then_some(value)
}

pub(crate) fn set_option(fd: i32, level: i32, name: i32, value: i32) -> Result<(), i32> {
    // SAFETY: `value` is a local of the size passed to the call.
    check(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), 4) }).map(drop)
}

pub(crate) fn is_socket(s: Socket) -> bool {
    descriptor(s).is_ok_and(|fd| type_of(fd).is_some())
}

pub(crate) fn check(result: i32) -> Result<i32, i32> {
    if result < 0 { Err(error::of_last_errno()) } else { Ok(result) }
}

/// Byte counts of Winsock are `int`s, and so are the lengths that led to them.
pub(crate) fn check_count(result: isize) -> Result<i32, i32> {
    if result < 0 { Err(error::of_last_errno()) } else { Ok(result as i32) }
}

pub(crate) fn length(length: i32) -> Result<u32, i32> {
    u32::try_from(length).map_err(|_| error::WSAEFAULT)
}

pub(crate) fn count(length: i32) -> Result<usize, i32> {
    usize::try_from(length).map_err(|_| error::WSAEFAULT)
}

/// Sockets made without the overlapped attribute, by descriptor and inode: a
/// descriptor closed behind our back and used again is another socket.
static WITHOUT: Mutex<Option<HashMap<i32, u64>>> = Mutex::new(None);

fn without() -> MutexGuard<'static, Option<HashMap<i32, u64>>> {
    WITHOUT.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn inode(fd: i32) -> Option<u64> {
    // SAFETY: all-zero is a valid stat to be filled in.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    // SAFETY: `stat` is a local of the right type.
    (unsafe { libc::fstat(fd, &mut stat) } == 0).then_some(stat.st_ino)
}

/// Every socket is, except those WSASocket made without the flag.
pub(crate) fn is_overlapped(s: Socket) -> bool {
    let Ok(fd) = descriptor(s) else { return true };
    let known = without().as_ref().and_then(|list| list.get(&fd).copied());
    known.is_none() || inode(fd) != known
}

pub(crate) fn remember_without(fd: i32) {
    if let Some(inode) = inode(fd) {
        without().get_or_insert_default().insert(fd, inode);
    }
}

fn open(family: i32, kind: i32, protocol: i32, flags: u32) -> Result<Socket, i32> {
    startup::check()?;
    let family = if family == WINDOWS_AF_INET6 { libc::AF_INET6 } else { family };
    let inet = family == libc::AF_INET || family == libc::AF_INET6;
    let mut kind = match (kind, protocol) {
        (0, libc::IPPROTO_UDP) if inet => libc::SOCK_DGRAM,
        (0, 0 | libc::IPPROTO_TCP) if inet => libc::SOCK_STREAM,
        _ => kind,
    };
    if flags & WSA_FLAG_NO_HANDLE_INHERIT != 0 {
        kind |= libc::SOCK_CLOEXEC;
    }
    // SAFETY: three numbers.
    let fd = check(unsafe { libc::socket(family, kind, protocol) })?;
    if family == libc::AF_INET6 {
        // Not every kind of socket has the option; those that do not cannot take IPv4 either.
        let _ = set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1);
    }
    if flags & WSA_FLAG_OVERLAPPED == 0 {
        remember_without(fd);
    }
    Ok(fd as Socket)
}

pub(crate) fn wsa_socket(family: i32, kind: i32, protocol: i32, info: usize, flags: u32) -> Result<Socket, i32> {
    if info == 0 {
        return open(family, kind, protocol, flags);
    }
    startup::check()?;
    let words = read_info(info)?;
    if words[5] == DUPLICATE {
        return take_duplicate(&words, flags);
    }
    let or = |given, word: u32| if given == FROM_PROTOCOL_INFO { word as i32 } else { given };
    open(or(family, words[19]), or(kind, words[22]), or(protocol, words[23]), flags)
}

pub(crate) fn close(s: Socket) -> Result<(), i32> {
    startup::check()?;
    let fd = descriptor(s)?;
    if type_of(fd).is_none() {
        return Err(error::WSAENOTSOCK);
    }
    let place = Place::of(s);
    held::close(fd);
    if let Some(list) = without().as_mut() {
        list.remove(&fd);
    }
    // SAFETY: the descriptor is the program's, and it asks for this.
    let closed = check(unsafe { libc::close(fd) }).map(drop);
    // After the close, so that a request that begins at this moment is found, or finds the socket closed.
    if let Some(place) = place {
        pending::abort_socket(place);
    }
    closed
}

/// `socket`.
#[unsafe(no_mangle)]
pub extern "C" fn portkeep_ws_socket(family: i32, kind: i32, protocol: i32) -> Socket {
    crate::value(INVALID_SOCKET, || open(family, kind, protocol, WSA_FLAG_OVERLAPPED))
}

/// `WSASocketW`.
#[unsafe(no_mangle)]
pub extern "C" fn WSASocketW(family: i32, kind: i32, protocol: i32, info: usize, _group: u32, flags: u32) -> Socket {
    crate::value(INVALID_SOCKET, || wsa_socket(family, kind, protocol, info, flags))
}

/// `WSASocketA`: what differs in its WSAPROTOCOL_INFO is not read.
#[unsafe(no_mangle)]
pub extern "C" fn WSASocketA(family: i32, kind: i32, protocol: i32, info: usize, group: u32, flags: u32) -> Socket {
    WSASocketW(family, kind, protocol, info, group, flags)
}

/// `closesocket`: cancels what is pending on the socket and closes it.
#[unsafe(no_mangle)]
pub extern "C" fn closesocket(s: Socket) -> i32 {
    crate::status(|| close(s))
}
