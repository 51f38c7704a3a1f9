//! The ordinary socket functions: the system's own, with Winsock's errors.
//!
//! The differences from a bare system call are those of Windows: `socket`
//! knows 23 for IPv6 and guesses a type left at 0, IPv6 sockets take IPv6 only
//! unless set otherwise, timeouts come in milliseconds, nothing raises SIGPIPE.

use crate::{
    abi::{INVALID_SOCKET, Socket, WINDOWS_AF_INET6, WSA_FLAG_NO_HANDLE_INHERIT, WSA_FLAG_OVERLAPPED},
    claim::Place,
    descriptor::{check, descriptor, forget_without, remember_without, set_option, type_of},
    error, held, pending, startup,
};

mod address;
mod data;
mod duplicate;
mod options;

use duplicate::{DUPLICATE, read_info, take_duplicate};

pub use self::{address::*, data::*, duplicate::*, options::*};
pub(crate) use self::{
    address::{accept_if, bind, connect, getpeername, getsockname, listen, shutdown},
    data::Transfer,
    duplicate::duplicate,
    options::{bytes_to_read, getsockopt, set_non_blocking, setsockopt},
};

const FROM_PROTOCOL_INFO: i32 = -1;

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
        // Not every kind of socket has the option. Sockets without it cannot use IPv4 either.
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
    forget_without(fd);
    // SAFETY: the descriptor is the program's, and it asks for this.
    let closed = check(unsafe { libc::close(fd) }).map(drop);
    // After the close, so that a request that begins at this moment is either found here, or finds the socket closed.
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

/// `WSASocketA`: its WSAPROTOCOL_INFO differs in a part that is not read.
#[unsafe(no_mangle)]
pub extern "C" fn WSASocketA(family: i32, kind: i32, protocol: i32, info: usize, group: u32, flags: u32) -> Socket {
    WSASocketW(family, kind, protocol, info, group, flags)
}

/// `closesocket`: cancels what is pending on the socket and closes it.
#[unsafe(no_mangle)]
pub extern "C" fn closesocket(s: Socket) -> i32 {
    crate::status(|| close(s))
}
