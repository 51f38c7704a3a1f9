//! WSAStartup: a count of its calls, and the answer to "which version".

use std::sync::atomic::{AtomicU32, Ordering};

use crate::{abi::WsaData, error, memory};

static STARTED: AtomicU32 = AtomicU32::new(0);

const HIGHEST: u16 = 0x0202;

pub(crate) fn check() -> Result<(), i32> {
    if STARTED.load(Ordering::Relaxed) == 0 { Err(error::WSANOTINITIALISED) } else { Ok(()) }
}

fn text<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    field[..text.len()].copy_from_slice(text.as_bytes());
    field
}

/// `WSAStartup`: the error is the return value, not the last error.
#[unsafe(no_mangle)]
pub extern "C" fn WSAStartup(wanted: u16, data: usize) -> i32 {
    crate::boundary(error::WSASYSNOTREADY, || {
        let (major, minor) = (wanted & 0xff, wanted >> 8);
        if memory::writable(data, size_of::<WsaData>()).is_err() {
            return error::WSAEFAULT;
        }
        let version = if major > 2 || (major == 2 && minor > 2) { HIGHEST } else { wanted };
        let answer = WsaData {
            version,
            high_version: HIGHEST,
            max_sockets: 0,
            max_datagram: 0,
            vendor_info: 0,
            description: text("Portkeep, port reservations for Linux"),
            status: text("Running"),
        };
        // SAFETY: found writable above for its whole size; no alignment is assumed.
        unsafe { std::ptr::write_unaligned(data as *mut WsaData, answer) };
        if major == 0 {
            return error::WSAVERNOTSUPPORTED;
        }
        count();
        0
    })
}

pub(crate) fn count() {
    STARTED.fetch_add(1, Ordering::Relaxed);
}

/// Undo one WSAStartup. Returns whether it was the last.
pub(crate) fn uncount() -> Result<bool, i32> {
    let before = STARTED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
    before.map(|count| count == 1).map_err(|_| error::WSANOTINITIALISED)
}
