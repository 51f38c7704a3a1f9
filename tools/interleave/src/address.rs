//! Addresses inside the machine: what a pointer points to is in its upper half, the offset in its lower half.

pub(crate) const STACK: u64 = 1 << 32;
/// The context a program is called with.
pub(crate) const CONTEXT: u64 = 2 << 32;
/// Option value, packet, or whatever else the kernel copied for this call.
pub(crate) const BUFFER: u64 = 3 << 32;
pub(crate) const MAP: u64 = 4 << 32;
pub(crate) const READ_ONLY: u64 = 5 << 32;
pub(crate) const FUNCTION: u64 = 6 << 32;
/// A socket; its number is in bits 16 to 31.
pub(crate) const SOCKET: u64 = 7 << 32;
/// A socket's number plus this: the MPTCP socket over it.
pub(crate) const MPTCP: usize = 0x80;
/// The kernel's own structures.
pub(crate) const KERNEL: u64 = 8 << 32;
/// Map values and socket storage: the only memory that CPUs share.
pub(crate) const SHARED: u64 = 0x1_0000 << 32;

/// The region without the offset.
pub(crate) const fn region(address: u64) -> u64 {
    address & !0xffff_ffff
}

pub(crate) const fn offset(address: u64) -> usize {
    (address & 0xffff_ffff) as usize
}

/// The TCP socket with a number.
pub(crate) const fn socket(number: usize) -> u64 {
    SOCKET | (number as u64) << 16
}

/// The MPTCP socket over it.
pub(crate) const fn mptcp(number: usize) -> u64 {
    socket(number + MPTCP)
}

pub(crate) const fn shared(object: u32) -> u64 {
    SHARED + ((object as u64) << 32)
}

/// Which shared object an address lies in.
pub(crate) const fn object(address: u64) -> Option<u32> {
    if address >= SHARED && address < SHARED * 2 { Some(((address - SHARED) >> 32) as u32) } else { None }
}
