//! Asking for the result of an overlapped operation.

use crate::{
    abi::{Handle, Overlapped, STATUS_PENDING, Socket},
    descriptor::is_socket,
    error, memory,
    overlapped::code_of,
    pending, startup, wait,
};

pub(crate) fn result(socket: Socket, at: usize, bytes: usize, may_wait: bool, flags: usize) -> Result<(), i32> {
    startup::check()?;
    if !is_socket(socket) {
        return Err(error::WSAENOTSOCK);
    }
    let fault = |_| error::WSAEFAULT;
    memory::writable(bytes, 4).map_err(fault)?;
    memory::writable(flags, 4).map_err(fault)?;
    let mut overlapped: Overlapped = memory::read(at).map_err(fault)?;
    if overlapped.internal == STATUS_PENDING {
        if !may_wait {
            return Err(error::WSA_IO_INCOMPLETE);
        }
        if overlapped.event != 0 && !wait::is_event(overlapped.event) {
            return Err(error::WSA_INVALID_HANDLE);
        }
        pending::wait_for(at);
        overlapped = memory::read(at).map_err(fault)?;
        if overlapped.internal == STATUS_PENDING {
            // The layer did not start this operation, so a wait would never end.
            return Err(error::WSA_INVALID_PARAMETER);
        }
    }
    match code_of(overlapped.internal) {
        0 => {
            memory::write(flags, 0u32).map_err(fault)?;
            memory::write(bytes, overlapped.internal_high as u32).map_err(fault)
        }
        code => Err(code),
    }
}

/// `WSAGetOverlappedResult`.
#[unsafe(no_mangle)]
pub extern "C" fn WSAGetOverlappedResult(s: Socket, overlapped: usize, bytes: usize, wait: i32, flags: usize) -> i32 {
    crate::truth(|| result(s, overlapped, bytes, wait != 0, flags))
}

/// `GetOverlappedResult`: the same for a socket as a handle.
#[unsafe(no_mangle)]
pub extern "C" fn GetOverlappedResult(handle: Handle, overlapped: usize, bytes: usize, wait: i32) -> i32 {
    let mut flags = 0u32;
    crate::truth(|| {
        result(handle, overlapped, bytes, wait != 0, &raw mut flags as usize).map_err(|code| match code {
            error::WSAENOTSOCK => error::WSA_INVALID_HANDLE,
            code => code,
        })
    })
}
