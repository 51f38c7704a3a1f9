//! The Winsock layer: programs written for the Windows page on `SIO_ACQUIRE_PORT_RESERVATION` and the related control
//! codes build on Linux and behave as the page says. C programs use it through the headers in `include/`.
//!
//! # The rules of this C interface
//!
//! * Names, parameters, return values and error numbers are Winsock's. A
//!   function that libc has under the same name (`socket`, `bind`, ...) is exported
//!   as `portkeep_ws_...`, and the headers give it its Winsock name by an
//!   assembler label: the system's own functions stay what they are for
//!   everybody else in the process.
//! * A call fails with `SOCKET_ERROR` (or `INVALID_SOCKET`, FALSE, NULL) and the
//!   reason in `WSAGetLastError`, which is one value per thread; the functions
//!   of the provider interface write the reason to `*lpErrno` instead.
//! * Outputs are written on success only. The exception is `*lpcbBytesReturned`:
//!   a control code that fails for its output buffer's size, or later than its
//!   arguments, leaves 0 there (the page has it for the first).
//! * Every pointer is checked before it is used; a wrong one is WSAEFAULT.
//!   Pointers to tokens, instances, sockaddr, option and data buffers go to the
//!   kernel unchecked: the kernel checks them.
//! * No panic crosses the boundary: it becomes WSASYSCALLFAILURE.
//! * No lock is held while a routine of the program runs.
//! * Every port in a structure of this interface is in network byte order;
//!   below it, in the crates that this one uses, in host byte order.
//!
//! The functions are `extern "C"` and have addresses as integers: no pointer may be trusted here before it was checked,
//! and an integer cannot be dereferenced by mistake.
#![allow(non_snake_case, reason = "the functions have the names Windows gave them")]

use std::panic::{AssertUnwindSafe, catch_unwind};

pub mod abi;
pub mod byte_order;
mod claim;
mod descriptor;
mod error;
mod held;
pub mod ioctl;
mod memory;
pub mod message;
pub mod overlapped;
pub mod pending;
pub mod persistent;
pub mod result;
pub mod select;
pub mod socket;
pub mod spi;
pub mod startup;
pub mod text;
mod upcall;
pub mod wait;

/// Run the body of an exported function. A panic is the layer's fault, not the program's: the program gets an error.
fn boundary<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        error::set_last(error::WSASYSCALLFAILURE);
        fallback
    })
}

/// A function that returns a value, or a fixed one and the last error.
fn value<T: Copy>(failure: T, body: impl FnOnce() -> Result<T, i32>) -> T {
    boundary(failure, || {
        body().unwrap_or_else(|code| {
            error::set_last(code);
            failure
        })
    })
}

/// A function that returns 0 or SOCKET_ERROR.
fn status(body: impl FnOnce() -> Result<(), i32>) -> i32 {
    value(abi::SOCKET_ERROR, || body().map(|()| 0))
}

/// A function that returns TRUE or FALSE.
fn truth(body: impl FnOnce() -> Result<(), i32>) -> i32 {
    value(0, || body().map(|()| 1))
}

/// As [`value`], of the provider interface: the reason goes to the address `error`.
fn provider_value<T: Copy>(error: usize, failure: T, body: impl FnOnce() -> Result<T, i32>) -> T {
    boundary(failure, || {
        body().unwrap_or_else(|code| {
            // If the place for the error cannot be written, the call fails all the same.
            let _ = memory::write(error, code);
            failure
        })
    })
}

/// As [`status`], of the provider interface.
fn provider_status(error: usize, body: impl FnOnce() -> Result<(), i32>) -> i32 {
    provider_value(error, abi::SOCKET_ERROR, || body().map(|()| 0))
}

/// `WSAGetLastError`.
#[unsafe(no_mangle)]
pub extern "C" fn WSAGetLastError() -> i32 {
    error::last()
}

/// `WSASetLastError`.
#[unsafe(no_mangle)]
pub extern "C" fn WSASetLastError(code: i32) {
    error::set_last(code);
}

/// `GetLastError`: the same value.
#[unsafe(no_mangle)]
pub extern "C" fn GetLastError() -> u32 {
    error::last() as u32
}

/// `SetLastError`: the same value.
#[unsafe(no_mangle)]
pub extern "C" fn SetLastError(code: u32) {
    error::set_last(code as i32);
}

/// `GetCurrentProcessId`.
#[unsafe(no_mangle)]
pub extern "C" fn GetCurrentProcessId() -> u32 {
    std::process::id()
}
