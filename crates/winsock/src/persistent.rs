//! The persistent calls: their parameters are checked as documented; what
//! would come next needs the persistent store and answers ERROR_NOT_SUPPORTED.

use crate::{error, memory};

/// The highest port plus one.
const END: u32 = 65536;

fn check(start: u16, count: u16) -> Result<(), i32> {
    if start == 0 || count == 0 { Err(error::WSA_INVALID_PARAMETER) } else { Ok(()) }
}

fn check_token(token: usize) -> Result<(), i32> {
    memory::writable(token, 8).map_err(|_| error::WSA_INVALID_PARAMETER)
}

fn create(start: u16, count: u16, token: usize) -> Result<(), i32> {
    check(start, count)?;
    check_token(token)?;
    if u32::from(u16::from_be(start)) + u32::from(count) > END {
        return Err(error::WSA_INVALID_PARAMETER);
    }
    // SAFETY: only reads who we are.
    if unsafe { libc::geteuid() } != 0 {
        return Err(error::ERROR_ACCESS_DENIED);
    }
    Err(error::ERROR_NOT_SUPPORTED)
}

fn delete(start: u16, count: u16) -> Result<(), i32> {
    check(start, count)?;
    // SAFETY: only reads who we are.
    if unsafe { libc::geteuid() } != 0 {
        return Err(error::ERROR_ACCESS_DENIED);
    }
    Err(error::ERROR_NOT_SUPPORTED)
}

fn lookup(start: u16, count: u16, token: usize) -> Result<(), i32> {
    check(start, count)?;
    check_token(token)?;
    Err(error::ERROR_NOT_SUPPORTED)
}

/// The error is the return value.
fn answer(body: impl FnOnce() -> Result<(), i32>) -> u32 {
    crate::boundary(error::ERROR_NOT_SUPPORTED as u32, || body().err().unwrap_or(0) as u32)
}

/// `CreatePersistentTcpPortReservation`. `start` is in network byte order.
#[unsafe(no_mangle)]
pub extern "C" fn CreatePersistentTcpPortReservation(start: u16, count: u16, token: usize) -> u32 {
    answer(|| create(start, count, token))
}

/// `CreatePersistentUdpPortReservation`.
#[unsafe(no_mangle)]
pub extern "C" fn CreatePersistentUdpPortReservation(start: u16, count: u16, token: usize) -> u32 {
    answer(|| create(start, count, token))
}

/// `DeletePersistentTcpPortReservation`.
#[unsafe(no_mangle)]
pub extern "C" fn DeletePersistentTcpPortReservation(start: u16, count: u16) -> u32 {
    answer(|| delete(start, count))
}

/// `DeletePersistentUdpPortReservation`.
#[unsafe(no_mangle)]
pub extern "C" fn DeletePersistentUdpPortReservation(start: u16, count: u16) -> u32 {
    answer(|| delete(start, count))
}

/// `LookupPersistentTcpPortReservation`.
#[unsafe(no_mangle)]
pub extern "C" fn LookupPersistentTcpPortReservation(start: u16, count: u16, token: usize) -> u32 {
    answer(|| lookup(start, count, token))
}

/// `LookupPersistentUdpPortReservation`.
#[unsafe(no_mangle)]
pub extern "C" fn LookupPersistentUdpPortReservation(start: u16, count: u16, token: usize) -> u32 {
    answer(|| lookup(start, count, token))
}
