//! The few calls that neither std nor socket2 has.

use std::{
    ffi::CString,
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
    time::{Duration, SystemTime},
};

use portkeep_core::{Time, Token};

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

/// A point of `CLOCK_MONOTONIC`, the clock of the BPF programs, on the wall clock. (Time asleep does not count.)
pub fn wall_clock(point: Duration) -> Time {
    let ago = monotonic().saturating_sub(point);
    SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH).into()
}

/// (`Instant` is the same clock, but does not say its number.)
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

/// The real uid, which is what quotas and the scope `user` go by.
pub(crate) fn real_uid() -> u32 {
    // SAFETY: getuid takes nothing and cannot fail.
    unsafe { libc::getuid() }
}

/// Wait until a connect that a signal interrupted has come to its end.
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
