//! Names and connections: the calls with an address.

use std::net::SocketAddr;

use crate::{
    abi::{INVALID_SOCKET, Socket, WINDOWS_AF_INET6},
    descriptor::{check, descriptor, is_overlapped, length, option, remember_without, type_of},
    error, held,
    memory::Memory,
    startup,
};

/// The address in a sockaddr of the program's.
fn address(name: usize, size: i32) -> Option<SocketAddr> {
    let size = usize::try_from(size).ok()?.min(size_of::<libc::sockaddr_in6>());
    let mut bytes = [0u8; size_of::<libc::sockaddr_in6>()];
    bytes[..size].copy_from_slice(&Memory::default().read_list::<u8>(name, size).ok()?);
    let family = i32::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    match family {
        libc::AF_INET if size >= size_of::<libc::sockaddr_in>() => {
            Some(SocketAddr::from((<[u8; 4]>::try_from(&bytes[4..8]).ok()?, port)))
        }
        libc::AF_INET6 if size >= size_of::<libc::sockaddr_in6>() => {
            Some(SocketAddr::from((<[u8; 16]>::try_from(&bytes[8..24]).ok()?, port)))
        }
        _ => None,
    }
}

/// Whether the size is below that of an address of the socket's family. The pages of bind and connect have WSAEFAULT
/// for that, the kernel has EINVAL.
fn too_short(fd: i32, size: i32) -> bool {
    let needed = match option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN) {
        Some(libc::AF_INET) => size_of::<libc::sockaddr_in>(),
        Some(libc::AF_INET6) => size_of::<libc::sockaddr_in6>(),
        _ => 0,
    };
    usize::try_from(size).map_or(true, |size| size < needed)
}

/// An IPv6 address whose family is the number that Windows has for IPv6, with the system's number.
fn with_our_family(name: usize, size: i32) -> Option<libc::sockaddr_in6> {
    if usize::try_from(size).ok()? < size_of::<libc::sockaddr_in6>() {
        return None;
    }
    let bytes: Vec<u8> = Memory::default().read_list(name, size_of::<libc::sockaddr_in6>()).ok()?;
    // SAFETY: as many bytes as the structure has, of which every pattern is valid; no alignment is assumed.
    let mut address: libc::sockaddr_in6 = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) };
    (i32::from(address.sin6_family) == WINDOWS_AF_INET6).then(|| {
        address.sin6_family = libc::AF_INET6 as libc::sa_family_t;
        address
    })
}

pub(crate) fn bind(s: Socket, name: usize, size: i32) -> Result<(), i32> {
    startup::check()?;
    let fd = descriptor(s)?;
    if let Some(result) = held::bind(fd, || address(name, size)) {
        return result;
    }
    // SAFETY: the kernel checks the address.
    let result = check(unsafe { libc::bind(fd, name as *const _, length(size)?) }).map(drop);
    match result {
        Err(error::WSAEINVAL) if too_short(fd, size) => Err(error::WSAEFAULT),
        Err(error::WSAEAFNOSUPPORT) => {
            // The page of bind has WSAEFAULT for an address of another family than the socket's.
            let address = with_our_family(name, size).ok_or(error::WSAEFAULT)?;
            // SAFETY: a local of the size passed to the call.
            check(unsafe { libc::bind(fd, (&raw const address).cast(), size_of_val(&address) as u32) }).map(drop)
        }
        result => result,
    }
}

pub(crate) fn connect(s: Socket, name: usize, size: i32) -> Result<(), i32> {
    startup::check()?;
    let any = |peer: SocketAddr| match peer {
        SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0u16; 8], 0)),
    };
    if let Some(result) = held::bind(descriptor(s)?, || address(name, size).map(any)) {
        result?;
    }
    // SAFETY: the kernel checks the address.
    check(unsafe { libc::connect(descriptor(s)?, name as *const _, length(size)?) }).map(drop).map_err(|code| {
        let short = code == error::WSAEINVAL && descriptor(s).is_ok_and(|fd| too_short(fd, size));
        if short { error::WSAEFAULT } else { code }
    })
}

pub(crate) fn listen(s: Socket, backlog: i32) -> Result<(), i32> {
    startup::check()?;
    // SAFETY: two numbers.
    check(unsafe { libc::listen(descriptor(s)?, backlog) }).map(drop)
}

pub(crate) fn accept(s: Socket, name: usize, size: usize) -> Result<Socket, i32> {
    startup::check()?;
    // SAFETY: the kernel checks both addresses.
    let fd = check(unsafe { libc::accept(descriptor(s)?, name as *mut _, size as *mut _) })?;
    if !is_overlapped(s) {
        remember_without(fd);
    }
    Ok(fd as Socket)
}

/// Conditions are not served.
pub(crate) fn accept_if(s: Socket, name: usize, size: usize, condition: usize) -> Result<Socket, i32> {
    if condition != 0 { Err(error::WSAEOPNOTSUPP) } else { accept(s, name, size) }
}

pub(crate) fn getsockname(s: Socket, name: usize, size: usize) -> Result<(), i32> {
    startup::check()?;
    // SAFETY: the kernel checks both addresses.
    check(unsafe { libc::getsockname(descriptor(s)?, name as *mut _, size as *mut _) }).map(drop)
}

pub(crate) fn getpeername(s: Socket, name: usize, size: usize) -> Result<(), i32> {
    startup::check()?;
    // SAFETY: the kernel checks both addresses.
    check(unsafe { libc::getpeername(descriptor(s)?, name as *mut _, size as *mut _) }).map(drop)
}

pub(crate) fn shutdown(s: Socket, how: i32) -> Result<(), i32> {
    startup::check()?;
    let fd = descriptor(s)?;
    // SAFETY: two numbers.
    match check(unsafe { libc::shutdown(fd, how) }) {
        // The page has this error for connection-oriented sockets only. The kernel has shut the socket down.
        Err(error::WSAENOTCONN) if type_of(fd) == Some(libc::SOCK_DGRAM) => Ok(()),
        result => result.map(drop),
    }
}

/// `bind`.
#[unsafe(no_mangle)]
pub extern "C" fn portkeep_ws_bind(s: Socket, name: usize, size: i32) -> i32 {
    crate::status(|| bind(s, name, size))
}

/// `connect`.
#[unsafe(no_mangle)]
pub extern "C" fn portkeep_ws_connect(s: Socket, name: usize, size: i32) -> i32 {
    crate::status(|| connect(s, name, size))
}

/// `listen`.
#[unsafe(no_mangle)]
pub extern "C" fn portkeep_ws_listen(s: Socket, backlog: i32) -> i32 {
    crate::status(|| listen(s, backlog))
}

/// `accept`.
#[unsafe(no_mangle)]
pub extern "C" fn portkeep_ws_accept(s: Socket, name: usize, size: usize) -> Socket {
    crate::value(INVALID_SOCKET, || accept(s, name, size))
}

/// `WSAAccept`.
#[unsafe(no_mangle)]
pub extern "C" fn WSAAccept(s: Socket, name: usize, size: usize, condition: usize, _data: usize) -> Socket {
    crate::value(INVALID_SOCKET, || accept_if(s, name, size, condition))
}

/// `WSAConnect`.
#[unsafe(no_mangle)]
pub extern "C" fn WSAConnect(
    s: Socket,
    name: usize,
    size: i32,
    _caller: usize,
    _callee: usize,
    _quality: usize,
    _group: usize,
) -> i32 {
    crate::status(|| connect(s, name, size))
}

/// `getsockname`.
#[unsafe(no_mangle)]
pub extern "C" fn portkeep_ws_getsockname(s: Socket, name: usize, size: usize) -> i32 {
    crate::status(|| getsockname(s, name, size))
}

/// `getpeername`.
#[unsafe(no_mangle)]
pub extern "C" fn portkeep_ws_getpeername(s: Socket, name: usize, size: usize) -> i32 {
    crate::status(|| getpeername(s, name, size))
}

/// `shutdown`.
#[unsafe(no_mangle)]
pub extern "C" fn portkeep_ws_shutdown(s: Socket, how: i32) -> i32 {
    crate::status(|| shutdown(s, how))
}
