//! Types that are no more than their bytes.

/// Types without padding that any bytes are a value of.
///
/// # Safety
///
/// Both must be so: values are made from, and given out as, the caller's bytes.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: integers and structures of integers without padding.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for usize {}
// SAFETY: as above.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for i16 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for crate::abi::PortRange {}
// SAFETY: as above; its padding is a field.
unsafe impl Plain for crate::abi::Instance {}
// SAFETY: as above.
unsafe impl Plain for crate::abi::Overlapped {}
// SAFETY: as above.
unsafe impl Plain for crate::abi::ThreadId {}

// SAFETY: two integers.
unsafe impl Plain for libc::timeval {}
// SAFETY: as above; its padding is a field.
unsafe impl Plain for crate::abi::PollFd {}
// SAFETY: as above.
unsafe impl Plain for crate::abi::Buffer {}
