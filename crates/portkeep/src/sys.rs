//! The few calls that neither std nor socket2 has.

use std::{
    ffi::CString,
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
    time::{Duration, SystemTime},
};

use portkeep_core::{PortRange, Time, Token};

/// A token nobody can guess, for reservations that the BPF programs do not know.
pub(crate) fn random_token() -> io::Result<Token> {
    loop {
        let mut bytes = [0u8; 8];
        // SAFETY: `bytes` is writable for the length given, and outlives the call.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if got < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        } else if got as usize == bytes.len()
            && let Some(token) = Token::new(u64::from_ne_bytes(bytes))
        {
            return Ok(token);
        }
    }
}

/// An empty file in memory with a name for people; its descriptor closes on exec.
pub(crate) fn memory_file(name: &str) -> io::Result<OwnedFd> {
    let name = CString::new(name)?;
    // SAFETY: the name is a C string that outlives the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A point of `CLOCK_MONOTONIC`, the clock of the BPF programs, on the wall clock. (Time while the machine sleeps does
/// not count.)
pub fn wall_clock(point: Duration) -> Time {
    let ago = monotonic().saturating_sub(point);
    SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH).into()
}

/// (`Instant` uses the same clock, but does not give its value.)
fn monotonic() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec to write to; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Sleep; false if a signal that this thread handles came in between. (`std::thread::sleep` goes on sleeping.)
pub(crate) fn sleep(time: Duration) -> bool {
    let time = libc::timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    // SAFETY: `time` is a valid timespec for the duration of the call; no rest is asked for.
    let slept = unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
    slept == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted
}

/// The real uid, which quotas and the scope `user` use.
pub(crate) fn real_uid() -> u32 {
    // SAFETY: getuid takes nothing and cannot fail.
    unsafe { libc::getuid() }
}

/// Wait until a connect that a signal interrupted has ended.
pub(crate) fn wait_connected(fd: RawFd) -> io::Result<()> {
    let mut poll = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    loop {
        // SAFETY: `poll` is one valid pollfd, and outlives the call; a bad descriptor is reported, not undefined.
        if unsafe { libc::poll(&raw mut poll, 1, -1) } >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// A socket that can be read whenever a TCP or UDP socket of this network namespace has ended. No right is required.
pub(crate) fn ends_of_sockets() -> io::Result<OwnedFd> {
    // `SKNLGRP_INET_TCP_DESTROY`, `_INET_UDP_DESTROY`, `_INET6_TCP_DESTROY` and `_INET6_UDP_DESTROY` of
    // include/uapi/linux/sock_diag.h, as bits.
    const GROUPS: u32 = 0b1111;
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all-zero is a valid sockaddr_nl.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    (address.nl_family, address.nl_groups) = (libc::AF_NETLINK as libc::sa_family_t, GROUPS);
    let length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    // SAFETY: `address` is a valid address of this length, and outlives the call.
    match unsafe { libc::bind(fd, (&raw const address).cast(), length) } {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Wait until a descriptor can be read, or for `limit`; false if a signal that this thread handles came before.
pub(crate) fn wait_readable(fd: RawFd, limit: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // Round up: otherwise the caller would loop during the last fraction of a millisecond.
    let limit = i32::try_from(limit.as_millis().saturating_add(1)).unwrap_or(i32::MAX);
    // SAFETY: `poll` is one valid pollfd, and outlives the call; a bad descriptor is reported, not undefined.
    if unsafe { libc::poll(&raw mut poll, 1, limit) } >= 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        error => Err(error),
    }
}

/// Read all messages of a socket of [`ends_of_sockets`]. True if a socket has ended whose local port is one of `ports`,
/// or any socket if `ports` is `None`. If messages did not fit into its buffer, the kernel reports that once, as an
/// error. Then any socket may have ended.
pub(crate) fn has_ended(fd: RawFd, ports: Option<PortRange>) -> bool {
    // Behind `struct nlmsghdr`, in `struct inet_diag_msg`: four bytes, then the local port in network byte order.
    const PORT: usize = 16 + 4;
    let mut bytes = [0u8; 512];
    let mut ended = false;
    loop {
        // SAFETY: `bytes` is writable for the length given, and outlives the call.
        let got = unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(got) {
            Ok(length) => {
                let port = bytes[..length].get(PORT..PORT + 2).map(|port| u16::from_be_bytes([port[0], port[1]]));
                ended |= ports.is_none_or(|ports| port.is_none_or(|port| ports.contains(port)));
            }
            Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS) => ended = true,
            Err(_) => return ended,
        }
    }
}
