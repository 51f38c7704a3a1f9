//! The types that cross the boundary, as `include/` declares them.
//!
//! Sizes and offsets are those of Windows on the same pointer width; the C side
//! asserts the same numbers in `tests/c/layout.c`.

use std::mem::{offset_of, size_of};

/// `SOCKET`: the descriptor's number, in an integer as wide as on Windows.
pub type Socket = usize;
/// `HANDLE`, as a number: it is never dereferenced here.
pub type Handle = usize;
/// `INVALID_SOCKET`.
pub const INVALID_SOCKET: Socket = usize::MAX;
/// `SOCKET_ERROR`.
pub const SOCKET_ERROR: i32 = -1;
/// `AF_INET6` of Windows, which programs read from their command line.
pub const WINDOWS_AF_INET6: i32 = 23;
/// `WSA_FLAG_OVERLAPPED`.
pub const WSA_FLAG_OVERLAPPED: u32 = 0x01;
/// `WSA_FLAG_NO_HANDLE_INHERIT`.
pub const WSA_FLAG_NO_HANDLE_INHERIT: u32 = 0x80;

/// `INET_PORT_RANGE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortRange {
    /// Network byte order, 0 for "the system chooses".
    pub start: u16,
    /// Host byte order.
    pub count: u16,
}

/// `INET_PORT_RESERVATION_INSTANCE`. The padding is a field, so that every byte of it is set, and so that 32-bit
/// targets agree with Windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Instance {
    /// The grant.
    pub range: PortRange,
    /// Always 0.
    pub padding: u32,
    /// The token.
    pub token: u64,
}

/// `WSAOVERLAPPED`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Overlapped {
    /// Status: [`STATUS_PENDING`] until the operation is complete.
    pub internal: usize,
    /// Bytes transferred.
    pub internal_high: usize,
    /// Not used for sockets.
    pub offset: u32,
    /// Not used for sockets.
    pub offset_high: u32,
    /// Event handle.
    pub event: Handle,
}

/// `STATUS_PENDING`: `HasOverlappedIoCompleted` checks for this value.
pub const STATUS_PENDING: usize = 0x103;

/// `WSATHREADID`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct ThreadId {
    /// `ThreadHandle`.
    pub handle: Handle,
    /// `Reserved`: the number this layer knows the thread by.
    pub reserved: usize,
}

/// `LPWSAOVERLAPPED_COMPLETION_ROUTINE`.
pub type CompletionRoutine = unsafe extern "C" fn(error: u32, bytes: u32, overlapped: *mut Overlapped, flags: u32);
/// `LPWSAUSERAPC`.
pub type UserApc = unsafe extern "C" fn(context: usize);

/// `WSABUF`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Buffer {
    /// Bytes.
    pub len: u32,
    /// None where pointers are no wider than lengths.
    pub padding: [u8; PTR - 4],
    /// Where.
    pub data: usize,
}

/// `WSAPOLLFD`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PollFd {
    /// The socket.
    pub socket: Socket,
    /// Asked for, in the system's own `POLL` bits.
    pub events: i16,
    /// Seen.
    pub revents: i16,
    /// None where sockets have 32 bits.
    pub padding: [u8; PTR - 4],
}

/// `WSADATA`, in the order 64-bit Windows has it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct WsaData {
    /// Version the program shall use.
    pub version: u16,
    /// Highest version there is.
    pub high_version: u16,
    /// No longer used since version 2.
    pub max_sockets: u16,
    /// No longer used since version 2.
    pub max_datagram: u16,
    /// No longer used since version 2.
    pub vendor_info: usize,
    /// Text.
    pub description: [u8; 257],
    /// Text.
    pub status: [u8; 129],
}

const PTR: usize = size_of::<usize>();
const _: () = {
    assert!(size_of::<PortRange>() == 4);
    assert!(size_of::<Instance>() == 16 && offset_of!(Instance, token) == 8);
    assert!(size_of::<Overlapped>() == 3 * PTR + 8 && offset_of!(Overlapped, event) == 2 * PTR + 8);
    assert!(size_of::<ThreadId>() == 2 * PTR);
    assert!(size_of::<PollFd>() == if PTR == 8 { 16 } else { 8 });
};
