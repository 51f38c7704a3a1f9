//! A socket for another process, or once more for this one.

use std::io;

use crate::{
    abi::{Socket, WSA_FLAG_NO_HANDLE_INHERIT, WSA_FLAG_OVERLAPPED},
    descriptor::{check, descriptor, inode, option, remember_without, type_of},
    error,
    memory::Memory,
    startup,
};

/// The part of WSAPROTOCOL_INFO before the text, in 32-bit words.
const INFO_WORDS: usize = 29;

/// Marks a WSAPROTOCOL_INFO as one of ours: "PKWS".
pub(super) const DUPLICATE: u32 = 0x504b_5753;

pub(super) fn read_info(info: usize) -> Result<[u32; INFO_WORDS], i32> {
    let words = Memory::default().read_list(info, INFO_WORDS).map_err(|_| error::WSAEFAULT)?;
    words.try_into().map_err(|_| error::WSAEFAULT)
}

pub(crate) fn duplicate(s: Socket, process: u32, info: usize) -> Result<(), i32> {
    startup::check()?;
    let fd = descriptor(s)?;
    let kind = type_of(fd).ok_or(error::WSAENOTSOCK)?;
    // SAFETY: signal 0 only asks whether there is such a process.
    let gone =
        unsafe { libc::kill(process as i32, 0) } != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH);
    if process == 0 || gone {
        return Err(error::WSAEINVAL);
    }
    let inode = inode(fd).ok_or(error::WSAENOTSOCK)?;
    let mut words = [0u32; INFO_WORDS];
    words[5] = DUPLICATE;
    words[6] = std::process::id();
    words[7] = inode as u32;
    words[8] = (inode >> 32) as u32;
    words[10] = 1;
    words[18] = 2;
    words[19] = option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN).unwrap_or(0) as u32;
    words[22] = kind as u32;
    words[23] = option(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL).unwrap_or(0) as u32;
    words[28] = fd as u32;
    Memory::default().write_list(info, &words).map_err(|_| error::WSAEFAULT)
}

/// A copy in this process of a descriptor of another process, or of this one.
fn fetch(process: u32, fd: i32) -> Result<i32, i32> {
    if process == std::process::id() {
        // SAFETY: three numbers.
        return check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) });
    }
    // SAFETY: two numbers.
    let pidfd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, process as libc::pid_t, 0) } as i32)
        .map_err(|_| error::WSAEINVAL)?;
    // SAFETY: three numbers; `pidfd` is ours.
    let fetched = check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, fd, 0) } as i32);
    // SAFETY: `pidfd` is ours and not used after this.
    unsafe { libc::close(pidfd) };
    fetched
}

/// The socket that another process (or this one) offered with WSADuplicateSocket. It must still be open there, and the
/// kernel must allow this process to access it.
pub(super) fn take_duplicate(words: &[u32; INFO_WORDS], flags: u32) -> Result<Socket, i32> {
    let fd = fetch(words[6], words[28] as i32)?;
    let wanted = u64::from(words[7]) | u64::from(words[8]) << 32;
    if type_of(fd).is_none() || inode(fd) != Some(wanted) {
        // SAFETY: `fd` was made by fetch just now.
        unsafe { libc::close(fd) };
        return Err(error::WSAEINVAL);
    }
    if flags & WSA_FLAG_NO_HANDLE_INHERIT == 0 {
        // SAFETY: clears close-on-exec of our own descriptor.
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    }
    if flags & WSA_FLAG_OVERLAPPED == 0 {
        remember_without(fd);
    }
    Ok(fd as Socket)
}

/// `WSADuplicateSocketW`.
#[unsafe(no_mangle)]
pub extern "C" fn WSADuplicateSocketW(s: Socket, process: u32, info: usize) -> i32 {
    crate::status(|| duplicate(s, process, info))
}

/// `WSADuplicateSocketA`.
#[unsafe(no_mangle)]
pub extern "C" fn WSADuplicateSocketA(s: Socket, process: u32, info: usize) -> i32 {
    WSADuplicateSocketW(s, process, info)
}
