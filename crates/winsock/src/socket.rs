//! The ordinary socket functions: the system's own, with Winsock's errors.
//!
//! What differs from a bare system call differs because Windows does: `socket`
//! knows 23 for IPv6 and guesses a type left at 0, IPv6 sockets take IPv6 only
//! unless told otherwise, timeouts come in milliseconds, nothing raises SIGPIPE.

use std::{
    collections::HashMap,
    io, mem,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use portkeep_core::Transport;

use crate::{
    abi::{Buffer, INVALID_SOCKET, PollFd, Socket},
    error, held,
    memory::{self, Memory},
    pending::{self, Place},
    startup,
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

fn type_of(fd: i32) -> Option<i32> {
    option(fd, libc::SOL_SOCKET, libc::SO_TYPE)
}

fn option(fd: i32, level: i32, name: i32) -> Option<i32> {
    let (mut value, mut length) = (0i32, 4);
    // SAFETY: `value` and `length` are locals of the sizes the call is told.
    let result = unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &mut length) };
    (result == 0).then_some(value)
}

fn set_option(fd: i32, level: i32, name: i32, value: i32) -> Result<(), i32> {
    // SAFETY: `value` is a local of the size the call is told.
    check(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), 4) }).map(drop)
}

pub(crate) fn is_socket(s: Socket) -> bool {
    descriptor(s).is_ok_and(|fd| type_of(fd).is_some())
}

fn check(result: i32) -> Result<i32, i32> {
    if result < 0 { Err(error::of_last_errno()) } else { Ok(result) }
}

/// Byte counts of Winsock are `int`s, and so are the lengths that led to them.
fn check_count(result: isize) -> Result<i32, i32> {
    if result < 0 { Err(error::of_last_errno()) } else { Ok(result as i32) }
}

fn length(length: i32) -> Result<u32, i32> {
    u32::try_from(length).map_err(|_| error::WSAEFAULT)
}

fn count(length: i32) -> Result<usize, i32> {
    usize::try_from(length).map_err(|_| error::WSAEFAULT)
}

// ---- the overlapped attribute -----------------------------------------------

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

fn remember_without(fd: i32) {
    if let Some(inode) = inode(fd) {
        without().get_or_insert_default().insert(fd, inode);
    }
}

// ---- making and closing -----------------------------------------------------

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

// ---- duplicating ------------------------------------------------------------

/// Marks a WSAPROTOCOL_INFO as one of ours: "PKWS".
const DUPLICATE: u32 = 0x504b_5753;

fn read_info(info: usize) -> Result<[u32; INFO_WORDS], i32> {
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

/// A descriptor of another process, or of this one, as one of ours.
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

/// The socket another process (or this one) offered with WSADuplicateSocket.
/// It has to be open there still, and the kernel has to let us look.
fn take_duplicate(words: &[u32; INFO_WORDS], flags: u32) -> Result<Socket, i32> {
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

// ---- names and connections --------------------------------------------------

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
    // SAFETY: a local of the size the call is told.
    unsafe { libc::getsockname(fd, name.as_mut_ptr().cast(), &mut size) == 0 && name[2..4] != [0, 0] }
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
            // SAFETY: a local of the size the call is told.
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

// ---- options ----------------------------------------------------------------

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
        // Nobody shares with a socket here unless both sides ask for it: being exclusive is not asking.
        if number()? != 0 {
            set_option(fd, level, libc::SO_REUSEADDR, 0)?;
            return set_option(fd, level, libc::SO_REUSEPORT, 0);
        }
        return type_of(fd).map(drop).ok_or(error::WSAENOTSOCK);
    }
    if level == libc::SOL_SOCKET && name == SO_DONTLINGER {
        let linger = libc::linger { l_onoff: (number()? == 0).into(), l_linger: 0 };
        // SAFETY: a local of the size the call is told.
        return check(unsafe {
            libc::setsockopt(fd, level, libc::SO_LINGER, (&raw const linger).cast(), size_of_val(&linger) as u32)
        })
        .map(drop);
    }
    if is_timeout(level, name) && size == 4 {
        let ms = number()? as u32;
        let time = libc::timeval { tv_sec: (ms / 1000).into(), tv_usec: (ms % 1000 * 1000).into() };
        // SAFETY: a local of the size the call is told.
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
        // SAFETY: locals of the sizes the call is told.
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

/// `ioctlsocket`: FIONBIO and FIONREAD. Its argument is a `u_long`, which is the system's.
#[unsafe(no_mangle)]
pub extern "C" fn ioctlsocket(s: Socket, command: libc::c_long, argument: usize) -> i32 {
    let mut returned = 0u32;
    let size = size_of::<libc::c_ulong>() as u32;
    let (input, output) = match command as u32 {
        code if code == libc::FIONREAD as u32 || code == 0x4004_667f => ((0, 0), (argument, size)),
        _ => ((argument, size), (0, 0)),
    };
    let returned = &raw mut returned as usize;
    crate::ioctl::WSAIoctl(s, command as u32, input.0, input.1, output.0, output.1, returned, 0, 0)
}

// ---- data -------------------------------------------------------------------

/// A program for Windows has never heard of SIGPIPE.
const QUIET: i32 = libc::MSG_NOSIGNAL;

/// `send`.
#[unsafe(no_mangle)]
pub extern "C" fn portkeep_ws_send(s: Socket, data: usize, size: i32, flags: i32) -> i32 {
    portkeep_ws_sendto(s, data, size, flags, 0, 0)
}

/// `sendto`.
#[unsafe(no_mangle)]
pub extern "C" fn portkeep_ws_sendto(s: Socket, data: usize, size: i32, flags: i32, to: usize, to_size: i32) -> i32 {
    crate::value(-1, || {
        startup::check()?;
        let (fd, size, to_size) = (descriptor(s)?, count(size)?, length(to_size)?);
        // SAFETY: the kernel checks both addresses.
        check_count(unsafe { libc::sendto(fd, data as *const _, size, flags | QUIET, to as *const _, to_size) })
    })
}

/// `recv`.
#[unsafe(no_mangle)]
pub extern "C" fn portkeep_ws_recv(s: Socket, data: usize, size: i32, flags: i32) -> i32 {
    portkeep_ws_recvfrom(s, data, size, flags, 0, 0)
}

/// `recvfrom`.
#[unsafe(no_mangle)]
pub extern "C" fn portkeep_ws_recvfrom(
    s: Socket,
    data: usize,
    size: i32,
    flags: i32,
    from: usize,
    from_size: usize,
) -> i32 {
    crate::value(-1, || {
        startup::check()?;
        let (fd, size) = (descriptor(s)?, count(size)?);
        // SAFETY: the kernel checks all addresses.
        check_count(unsafe { libc::recvfrom(fd, data as *mut _, size, flags, from as *mut _, from_size as *mut _) })
    })
}

/// The buffers of WSASend and WSARecv as the kernel wants them.
fn vectors(buffers: usize, count: u32) -> Result<Vec<libc::iovec>, i32> {
    if count > 1024 {
        return Err(error::WSAEINVAL);
    }
    let buffers = Memory::default().read_list::<Buffer>(buffers, count as usize).map_err(|_| error::WSAEFAULT)?;
    let vector = |buffer: &Buffer| libc::iovec { iov_base: buffer.data as *mut _, iov_len: buffer.len as usize };
    Ok(buffers.iter().map(vector).collect())
}

/// What WSASend and its three siblings have in common.
pub(crate) struct Transfer {
    pub(crate) s: Socket,
    pub(crate) buffers: usize,
    pub(crate) count: u32,
    pub(crate) moved: usize,
    pub(crate) overlapped: usize,
}

impl Transfer {
    fn run(&self, act: impl FnOnce(i32, &mut libc::msghdr) -> isize) -> Result<(), i32> {
        startup::check()?;
        if self.overlapped != 0 && is_overlapped(self.s) {
            // Only the control codes are overlapped in this layer.
            return Err(error::WSAEOPNOTSUPP);
        }
        memory::writable(self.moved, 4).map_err(|_| error::WSAEFAULT)?;
        let mut vectors = vectors(self.buffers, self.count)?;
        // SAFETY: all-zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = vectors.as_mut_ptr();
        message.msg_iovlen = vectors.len() as _;
        let moved = check_count(act(descriptor(self.s)?, &mut message))?;
        memory::write(self.moved, moved as u32).map_err(|_| error::WSAEFAULT)
    }

    pub(crate) fn send(&self, flags: u32, to: usize, to_size: i32) -> Result<(), i32> {
        let to_size = length(to_size)?;
        self.run(|fd, message| {
            message.msg_name = to as *mut _;
            message.msg_namelen = if to == 0 { 0 } else { to_size };
            // SAFETY: the kernel checks every address in the message, which lives until the call returns.
            unsafe { libc::sendmsg(fd, message, flags as i32 | QUIET) }
        })
    }

    pub(crate) fn receive(&self, flags: usize, from: usize, from_size: usize) -> Result<(), i32> {
        let asked: u32 = memory::read(flags).map_err(|_| error::WSAEFAULT)?;
        let size: i32 = if from == 0 { 0 } else { memory::read(from_size).map_err(|_| error::WSAEFAULT)? };
        let size = length(size)?;
        let mut said = (0, 0);
        self.run(|fd, message| {
            message.msg_name = from as *mut _;
            message.msg_namelen = size;
            // SAFETY: the kernel checks every address in the message, which lives until the call returns.
            let result = unsafe { libc::recvmsg(fd, message, asked as i32) };
            said = (message.msg_namelen, message.msg_flags);
            result
        })?;
        if from != 0 {
            memory::write(from_size, said.0).map_err(|_| error::WSAEFAULT)?;
        }
        memory::write(flags, said.1 as u32 & libc::MSG_OOB as u32).map_err(|_| error::WSAEFAULT)?;
        if said.1 & libc::MSG_TRUNC != 0 { Err(error::WSAEMSGSIZE) } else { Ok(()) }
    }
}

/// `WSASend`, not overlapped.
#[unsafe(no_mangle)]
pub extern "C" fn WSASend(
    s: Socket,
    buffers: usize,
    count: u32,
    moved: usize,
    flags: u32,
    overlapped: usize,
    _routine: usize,
) -> i32 {
    crate::status(|| Transfer { s, buffers, count, moved, overlapped }.send(flags, 0, 0))
}

/// `WSASendTo`, not overlapped.
#[unsafe(no_mangle)]
pub extern "C" fn WSASendTo(
    s: Socket,
    buffers: usize,
    count: u32,
    moved: usize,
    flags: u32,
    to: usize,
    to_size: i32,
    overlapped: usize,
    _routine: usize,
) -> i32 {
    crate::status(|| Transfer { s, buffers, count, moved, overlapped }.send(flags, to, to_size))
}

/// `WSARecv`, not overlapped.
#[unsafe(no_mangle)]
pub extern "C" fn WSARecv(
    s: Socket,
    buffers: usize,
    count: u32,
    moved: usize,
    flags: usize,
    overlapped: usize,
    _routine: usize,
) -> i32 {
    crate::status(|| Transfer { s, buffers, count, moved, overlapped }.receive(flags, 0, 0))
}

/// `WSARecvFrom`, not overlapped.
#[unsafe(no_mangle)]
pub extern "C" fn WSARecvFrom(
    s: Socket,
    buffers: usize,
    count: u32,
    moved: usize,
    flags: usize,
    from: usize,
    from_size: usize,
    overlapped: usize,
    _routine: usize,
) -> i32 {
    crate::status(|| Transfer { s, buffers, count, moved, overlapped }.receive(flags, from, from_size))
}

/// `WSAPoll`.
#[unsafe(no_mangle)]
pub extern "C" fn WSAPoll(list: usize, count: u32, timeout: i32) -> i32 {
    crate::value(-1, || {
        startup::check()?;
        let fault = |_| error::WSAEFAULT;
        if count == 0 || count > 65536 {
            return Err(error::WSAEINVAL);
        }
        let memory = Memory::default();
        memory.writable(list, count as usize * size_of::<PollFd>()).map_err(fault)?;
        let mut entries: Vec<PollFd> = memory.read_list(list, count as usize).map_err(fault)?;
        let mut polled: Vec<_> = entries
            .iter()
            .map(|entry| libc::pollfd { fd: descriptor(entry.socket).unwrap_or(-1), events: entry.events, revents: 0 })
            .collect();
        // SAFETY: the vector has `count` entries.
        let ready = check(unsafe { libc::poll(polled.as_mut_ptr(), count.into(), timeout) })?;
        for (entry, seen) in entries.iter_mut().zip(&polled) {
            entry.revents = seen.revents;
        }
        Memory::default().write_list(list, &entries).map_err(fault)?;
        Ok(ready)
    })
}
