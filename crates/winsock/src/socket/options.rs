//! Socket options, and the two requests of `ioctlsocket`.

use crate::{
    abi::Socket,
    descriptor::{check, descriptor, length, option, set_option, type_of},
    error, memory, startup,
};

const SO_EXCLUSIVEADDRUSE: i32 = !libc::SO_REUSEADDR;
const SO_DONTLINGER: i32 = !libc::SO_LINGER;

fn is_timeout(level: i32, name: i32) -> bool {
    level == libc::SOL_SOCKET && (name == libc::SO_RCVTIMEO || name == libc::SO_SNDTIMEO)
}

pub(crate) fn setsockopt(s: Socket, level: i32, name: i32, value: usize, size: i32) -> Result<(), i32> {
    startup::check()?;
    let fd = descriptor(s)?;
    let number = || memory::read::<i32>(value).map_err(|_| error::WSAEFAULT);
    if level == libc::SOL_SOCKET && name == SO_EXCLUSIVEADDRUSE {
        // Sockets share a port here only if both sides ask for it. So a socket is exclusive if it does not ask.
        if number()? != 0 {
            set_option(fd, level, libc::SO_REUSEADDR, 0)?;
            return set_option(fd, level, libc::SO_REUSEPORT, 0);
        }
        return type_of(fd).map(drop).ok_or(error::WSAENOTSOCK);
    }
    if level == libc::SOL_SOCKET && name == SO_DONTLINGER {
        let linger = libc::linger { l_onoff: (number()? == 0).into(), l_linger: 0 };
        // SAFETY: a local of the size passed to the call.
        return check(unsafe {
            libc::setsockopt(fd, level, libc::SO_LINGER, (&raw const linger).cast(), size_of_val(&linger) as u32)
        })
        .map(drop);
    }
    if is_timeout(level, name) && size == 4 {
        let ms = number()? as u32;
        let time = libc::timeval { tv_sec: (ms / 1000).into(), tv_usec: (ms % 1000 * 1000).into() };
        // SAFETY: a local of the size passed to the call.
        return check(unsafe {
            libc::setsockopt(fd, level, name, (&raw const time).cast(), size_of_val(&time) as u32)
        })
        .map(drop);
    }
    // SAFETY: the kernel checks the address.
    check(unsafe { libc::setsockopt(fd, level, name, value as *const _, length(size)?) }).map(drop)
}

pub(crate) fn getsockopt(s: Socket, level: i32, name: i32, value: usize, size: usize) -> Result<(), i32> {
    startup::check()?;
    let fd = descriptor(s)?;
    let fault = |_| error::WSAEFAULT;
    if is_timeout(level, name) && memory::read::<i32>(size).map_err(fault)? == 4 {
        let mut time = libc::timeval { tv_sec: 0, tv_usec: 0 };
        let mut length = size_of_val(&time) as u32;
        // SAFETY: locals of the sizes passed to the call.
        check(unsafe { libc::getsockopt(fd, level, name, (&raw mut time).cast(), &mut length) })?;
        let ms = time.tv_sec * 1000 + time.tv_usec / 1000;
        return memory::write(value, ms as i32).map_err(fault);
    }
    if level == libc::SOL_SOCKET && name == SO_EXCLUSIVEADDRUSE {
        let shared = option(fd, level, libc::SO_REUSEADDR).ok_or(error::WSAENOTSOCK)?;
        memory::write(value, i32::from(shared == 0)).map_err(fault)?;
        return memory::write(size, 4i32).map_err(fault);
    }
    // SAFETY: the kernel checks both addresses.
    check(unsafe { libc::getsockopt(fd, level, name, value as *mut _, size as *mut _) }).map(drop)
}

/// `setsockopt`.
#[unsafe(no_mangle)]
pub extern "C" fn portkeep_ws_setsockopt(s: Socket, level: i32, name: i32, value: usize, size: i32) -> i32 {
    crate::status(|| setsockopt(s, level, name, value, size))
}

/// `getsockopt`.
#[unsafe(no_mangle)]
pub extern "C" fn portkeep_ws_getsockopt(s: Socket, level: i32, name: i32, value: usize, size: usize) -> i32 {
    crate::status(|| getsockopt(s, level, name, value, size))
}

pub(crate) fn set_non_blocking(s: Socket, on: bool) -> Result<(), i32> {
    let fd = descriptor(s)?;
    type_of(fd).ok_or(error::WSAENOTSOCK)?;
    let value = i32::from(on);
    // SAFETY: FIONBIO reads an int, and `value` is one.
    check(unsafe { libc::ioctl(fd, libc::FIONBIO as _, &raw const value) }).map(drop)
}

pub(crate) fn bytes_to_read(s: Socket) -> Result<u32, i32> {
    let fd = descriptor(s)?;
    type_of(fd).ok_or(error::WSAENOTSOCK)?;
    let mut value = 0i32;
    // SAFETY: FIONREAD writes an int, and `value` is one.
    check(unsafe { libc::ioctl(fd, libc::FIONREAD as _, &raw mut value) })?;
    Ok(value as u32)
}
