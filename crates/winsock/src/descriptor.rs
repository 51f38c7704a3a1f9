//! A socket by its descriptor: what it is, and what this layer remembers of it.

use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use portkeep_core::Transport;

use crate::{abi::Socket, error};

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

/// Byte counts of Winsock are `int`s, and so are the lengths that the program passed.
pub(crate) fn check_count(result: isize) -> Result<i32, i32> {
    if result < 0 { Err(error::of_last_errno()) } else { Ok(result as i32) }
}

pub(crate) fn length(length: i32) -> Result<u32, i32> {
    u32::try_from(length).map_err(|_| error::WSAEFAULT)
}

pub(crate) fn count(length: i32) -> Result<usize, i32> {
    usize::try_from(length).map_err(|_| error::WSAEFAULT)
}

/// Sockets made without the overlapped attribute, by descriptor and inode. If a descriptor was closed without this
/// layer and used again, it is another socket.
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

/// Every socket is overlapped, except those that WSASocket made without the flag.
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

/// The descriptor is about to be closed.
pub(crate) fn forget_without(fd: i32) {
    if let Some(list) = without().as_mut() {
        list.remove(&fd);
    }
}

/// TCP or UDP; every other socket is not for port reservations.
pub(crate) fn transport(fd: i32) -> Result<Transport, i32> {
    let family = option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN).ok_or(error::WSAENOTSOCK)?;
    match option(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL) {
        _ if family != libc::AF_INET && family != libc::AF_INET6 => Err(error::WSAEOPNOTSUPP),
        Some(libc::IPPROTO_TCP) if type_of(fd) == Some(libc::SOCK_STREAM) => Ok(Transport::Tcp),
        Some(libc::IPPROTO_UDP) if type_of(fd) == Some(libc::SOCK_DGRAM) => Ok(Transport::Udp),
        _ => Err(error::WSAEOPNOTSUPP),
    }
}

pub(crate) fn is_bound(fd: i32) -> bool {
    let mut name = [0u8; 128];
    let mut size = 128;
    // SAFETY: a local of the size passed to the call.
    unsafe { libc::getsockname(fd, name.as_mut_ptr().cast(), &mut size) == 0 && name[2..4] != [0, 0] }
}
