//! `FormatMessage`: what the error numbers of this layer mean, in English.

use crate::{error, memory::Memory, text::Wide};

const ALLOCATE_BUFFER: u32 = 0x100;
const FROM_SYSTEM: u32 = 0x1000;
/// `FORMAT_MESSAGE_FROM_STRING` and `FORMAT_MESSAGE_FROM_HMODULE`.
const OTHER_SOURCES: u32 = 0xc00;
const ERROR_INSUFFICIENT_BUFFER: i32 = 122;
const ERROR_MR_MID_NOT_FOUND: i32 = 317;

/// The end of every message, as on Windows, where programs cut it off.
const END: &str = "\r\n";

fn message(code: i32) -> Option<&'static str> {
    Some(match code {
        0 => "Success.",
        error::ERROR_ACCESS_DENIED => "Access is denied.",
        error::WSA_INVALID_HANDLE => "The handle is invalid.",
        8 => "Not enough memory.",
        error::ERROR_SHARING_VIOLATION => "A port of the block is in use or reserved.",
        error::ERROR_NOT_SUPPORTED => "This is not supported here.",
        error::WSA_INVALID_PARAMETER => "A parameter is invalid.",
        ERROR_INSUFFICIENT_BUFFER => "The buffer is too small.",
        ERROR_MR_MID_NOT_FOUND => "There is no message for this number.",
        error::WSA_OPERATION_ABORTED => "The operation was cancelled.",
        error::WSA_IO_INCOMPLETE => "The overlapped operation is not complete.",
        error::WSA_IO_PENDING => "The overlapped operation is pending.",
        error::ERROR_NOT_FOUND => "There is no such element.",
        error::WSAEINTR => "A signal interrupted the call.",
        error::WSAEACCES => "The socket may not do this.",
        error::WSAEFAULT => "A pointer or the length of its buffer is invalid.",
        error::WSAEINVAL => "An argument is invalid.",
        error::WSAEMFILE => "Too many files or sockets are open.",
        error::WSAEWOULDBLOCK => "The call would block.",
        error::WSAEALREADY => "The operation is already in progress.",
        error::WSAENOTSOCK => "This is not a socket.",
        error::WSAEDESTADDRREQ => "A destination address is required.",
        error::WSAEMSGSIZE => "The message is too long.",
        error::WSAEPROTOTYPE => "The protocol does not fit the type of the socket.",
        error::WSAENOPROTOOPT => "There is no such option at this level.",
        error::WSAEPROTONOSUPPORT => "The protocol is not supported.",
        error::WSAESOCKTNOSUPPORT => "The type of socket is not supported in this family.",
        error::WSAEOPNOTSUPP => "This kind of socket does not support the operation.",
        error::WSAEPFNOSUPPORT => "The protocol family is not supported.",
        error::WSAEAFNOSUPPORT => "The address family is not supported.",
        error::WSAEADDRINUSE => "The address is in use or reserved.",
        error::WSAEADDRNOTAVAIL => "The address is not one of this machine.",
        error::WSAENETDOWN => "The network, or the agent of Portkeep, is down.",
        error::WSAENETUNREACH => "The network cannot be reached.",
        error::WSAENETRESET => "The network dropped the connection.",
        error::WSAECONNABORTED => "The connection was aborted.",
        error::WSAECONNRESET => "The peer reset the connection.",
        error::WSAENOBUFS => "There is no room: no buffers, no run of free ports that long, or over the quota.",
        error::WSAEISCONN => "The socket is already connected.",
        error::WSAENOTCONN => "The socket is not connected.",
        error::WSAESHUTDOWN => "The socket is shut down.",
        error::WSAETIMEDOUT => "The connection timed out.",
        error::WSAECONNREFUSED => "The connection was refused.",
        error::WSAELOOP => "The name has too many symbolic links.",
        error::WSAENAMETOOLONG => "The name is too long.",
        error::WSAEHOSTDOWN => "The host is down.",
        error::WSAEHOSTUNREACH => "The host cannot be reached.",
        error::WSASYSNOTREADY => "The network is not ready.",
        error::WSAVERNOTSUPPORTED => "This version of Winsock is not supported.",
        error::WSANOTINITIALISED => "WSAStartup has not been called.",
        error::WSASYSCALLFAILURE => "A system call failed.",
        _ => return None,
    })
}

/// Write the message with the width of `T`. Returns its length without the zero.
fn format<T>(flags: u32, code: u32, at: usize, size: u32) -> Result<u32, i32>
where
    T: crate::memory::Plain + From<u8>,
{
    if flags & FROM_SYSTEM == 0 || flags & OTHER_SOURCES != 0 {
        return Err(error::WSA_INVALID_PARAMETER);
    }
    let text = message(code as i32).ok_or(ERROR_MR_MID_NOT_FOUND)?;
    let units: Vec<T> = text.bytes().chain(END.bytes()).chain([0]).map(T::from).collect();
    let fault = |_| error::WSA_INVALID_PARAMETER;
    let memory = Memory::default();
    if flags & ALLOCATE_BUFFER != 0 {
        memory.writable(at, size_of::<usize>()).map_err(fault)?;
        let length = size_of_val(units.as_slice()).max(size as usize * size_of::<T>());
        // SAFETY: a length; the result is checked. LocalFree gives it back.
        let buffer = unsafe { libc::malloc(length) };
        if buffer.is_null() {
            return Err(error::WSAENOBUFS);
        }
        // SAFETY: the buffer was made with room for all units and is aligned for any of them.
        unsafe { std::ptr::copy_nonoverlapping(units.as_ptr(), buffer.cast(), units.len()) };
        memory.write(at, buffer as usize).map_err(fault)?;
    } else if (size as usize) < units.len() {
        return Err(ERROR_INSUFFICIENT_BUFFER);
    } else {
        memory.write_list(at, &units).map_err(fault)?;
    }
    Ok(units.len() as u32 - 1)
}

/// `FormatMessageA`: the system's messages only.
#[unsafe(no_mangle)]
pub extern "C" fn FormatMessageA(
    flags: u32,
    _source: usize,
    code: u32,
    _language: u32,
    text: usize,
    size: u32,
    _arguments: usize,
) -> u32 {
    crate::value(0, || format::<u8>(flags, code, text, size))
}

/// `FormatMessageW`.
#[unsafe(no_mangle)]
pub extern "C" fn FormatMessageW(
    flags: u32,
    _source: usize,
    code: u32,
    _language: u32,
    text: usize,
    size: u32,
    _arguments: usize,
) -> u32 {
    crate::value(0, || format::<Wide>(flags, code, text, size))
}

/// `LocalFree`, for what FormatMessage allocated.
///
/// # Safety
///
/// As for the system's `free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn LocalFree(memory: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: the caller's promise is passed on.
    unsafe { libc::free(memory) };
    std::ptr::null_mut()
}
