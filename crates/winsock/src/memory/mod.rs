//! The caller's memory: no pointer, however wrong, may crash the caller.
//!
//! If a system call is made in any case, it gets the caller's pointer, and
//! its EFAULT is the answer ([`crate::ioctl`] does so with tokens and grants).
//! For the rest, a pointer is checked, in the cheap way first:
//!
//! * Memory on the calling thread's own stack, above the frame that checks, is
//!   known to be there: that is where nearly every program keeps the arguments
//!   of these calls, and it costs no system call.
//! * Elsewhere the kernel is asked, once for each page and call, in a way that changes
//!   no byte. Whether a page can be read: by an `rt_sigprocmask` with an
//!   operation that does not exist. Whether it can be written: by a `futex` operation that
//!   ORs a word of it with 0.
//! * Where that has no answer (a filter of system calls) the bytes go through a
//!   pipe, which either copies them or says EFAULT.
//!
//! Nothing is remembered from one call to the next: memory can be unmapped at any time.

mod code;
mod plain;
mod probe;

use std::{cell::Cell, ptr};

pub(crate) use code::executable;
pub(crate) use plain::Plain;
pub(crate) use probe::Fault;
use probe::{Access, Pipe, on_own_stack, page_of, page_readable, page_writable, pages, through_pipe};

/// The knowledge of one call of the program about memory: the last page it looked at.
#[derive(Default)]
pub(crate) struct Memory {
    seen: Cell<Option<(usize, Access)>>,
}

impl Memory {
    fn check(&self, address: usize, length: usize, access: Access) -> Result<(), Fault> {
        let end = address.checked_add(length).ok_or(Fault)?;
        if address == 0 {
            return Err(Fault);
        }
        if length == 0 || on_own_stack(address, end) {
            return Ok(());
        }
        for page in pages(address, end) {
            // Writable memory is readable.
            if self.seen.get().is_some_and(|seen| seen == (page, access) || seen == (page, Access::Write)) {
                continue;
            }
            // A byte of the caller's in this page.
            let byte = page.max(address);
            let answer = if access == Access::Read { page_readable(byte) } else { page_writable(byte) };
            answer.unwrap_or_else(|| through_pipe(byte, access))?;
            self.seen.set(Some((page, access)));
        }
        Ok(())
    }

    /// Whether `length` bytes can be read there.
    pub(crate) fn readable(&self, address: usize, length: usize) -> Result<(), Fault> {
        self.check(address, length, Access::Read)
    }

    /// Whether `length` bytes can be written there. Nothing is changed.
    pub(crate) fn writable(&self, address: usize, length: usize) -> Result<(), Fault> {
        self.check(address, length, Access::Write)
    }

    /// Write 0. `getcpu` writes a number, so it is also the quickest way to check whether the memory can be written.
    pub(crate) fn zero(&self, address: usize) -> Result<(), Fault> {
        let end = address.checked_add(4).ok_or(Fault)?;
        let known = on_own_stack(address, end) || self.seen.get() == Some((page_of(address), Access::Write));
        if address != 0 && !known && page_of(address) == page_of(end - 1) {
            // SAFETY: the kernel checks the address; the four bytes are the caller's to have written.
            let result = unsafe { libc::syscall(libc::SYS_getcpu, address, 0usize, 0usize) };
            match (result, std::io::Error::last_os_error().raw_os_error()) {
                (0, _) => self.seen.set(Some((page_of(address), Access::Write))),
                (_, Some(libc::EFAULT)) => return Err(Fault),
                // The system call does not exist here or is not allowed.
                _ => {}
            }
        }
        self.write(address, 0u32)
    }

    /// Read a structure from wherever the caller said it is, aligned or not.
    pub(crate) fn read<T: Plain>(&self, address: usize) -> Result<T, Fault> {
        self.readable(address, size_of::<T>())?;
        // SAFETY: the bytes were just found readable, any bytes are a T, and no alignment is assumed.
        Ok(unsafe { ptr::read_unaligned(address as *const T) })
    }

    /// Read `count` structures that lie one behind the other.
    pub(crate) fn read_list<T: Plain>(&self, address: usize, count: usize) -> Result<Vec<T>, Fault> {
        self.readable(address, count.checked_mul(size_of::<T>()).ok_or(Fault)?)?;
        // SAFETY: found readable just now, in the whole length; any bytes are a T, and no alignment is assumed.
        Ok((0..count).map(|index| unsafe { (address as *const T).add(index).read_unaligned() }).collect())
    }

    /// Write a structure to wherever the caller said it shall go, aligned or not.
    pub(crate) fn write<T: Plain>(&self, address: usize, value: T) -> Result<(), Fault> {
        self.writable(address, size_of::<T>())?;
        // SAFETY: the bytes were just found writable, they are the caller's to have written, and no alignment is assumed.
        unsafe { ptr::write_unaligned(address as *mut T, value) };
        Ok(())
    }

    /// Write structures one behind the other.
    pub(crate) fn write_list<T: Plain>(&self, address: usize, values: &[T]) -> Result<(), Fault> {
        self.writable(address, size_of_val(values))?;
        for (index, value) in values.iter().enumerate() {
            // SAFETY: found writable just now, in the whole length, and no alignment is assumed.
            unsafe { (address as *mut T).add(index).write_unaligned(*value) };
        }
        Ok(())
    }

    /// The units of a string, without the 0 at its end.
    pub(crate) fn string<T: Plain + Default + PartialEq>(&self, address: usize) -> Result<Vec<T>, Fault> {
        let mut units = Vec::new();
        let mut at = address;
        loop {
            let unit: T = self.read(at)?;
            if unit == T::default() {
                return Ok(units);
            }
            units.push(unit);
            at = at.checked_add(size_of::<T>()).ok_or(Fault)?;
        }
    }
}

/// Whether `length` bytes can be written there. Nothing is changed.
pub(crate) fn writable(address: usize, length: usize) -> Result<(), Fault> {
    Memory::default().writable(address, length)
}

/// Read a structure from wherever the caller said it is, aligned or not.
pub(crate) fn read<T: Plain>(address: usize) -> Result<T, Fault> {
    Memory::default().read(address)
}

/// Write a structure to wherever the caller said it shall go, aligned or not.
pub(crate) fn write<T: Plain>(address: usize, value: T) -> Result<(), Fault> {
    Memory::default().write(address, value)
}

/// As [`write`], for memory that may have been unmapped since it was passed: an operation completes on a thread of its
/// own, and by then the caller may have unmapped memory that it promised to keep.
pub(crate) fn write_late<T: Plain>(address: usize, value: T) -> Result<(), Fault> {
    let pipe = Pipe::new()?;
    pipe.put(&raw const value as usize, size_of::<T>())?;
    pipe.take(address, size_of::<T>())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) struct Pages(pub(super) usize);

    impl Pages {
        /// One page of `protection`, and after it one that is not there.
        pub(super) fn new(protection: i32) -> Self {
            // SAFETY: an anonymous mapping at an address of the kernel's choice, and a part of it unmapped again.
            unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                let address = libc::mmap(ptr::null_mut(), 8192, protection, flags, -1, 0);
                assert_ne!(address, libc::MAP_FAILED);
                libc::munmap(address.byte_add(4096), 4096);
                Self(address as usize)
            }
        }
    }

    impl Drop for Pages {
        fn drop(&mut self) {
            // SAFETY: the mapping is this value's own.
            unsafe { libc::munmap(self.0 as *mut _, 4096) };
        }
    }

    #[test]
    fn every_way_of_looking_gives_the_same_answer() {
        let both = Pages::new(libc::PROT_READ | libc::PROT_WRITE);
        let read_only = Pages::new(libc::PROT_READ);
        let closed = Pages::new(libc::PROT_NONE);
        let cases = [
            (both.0, true, true),
            (both.0 + 4088, true, true),
            (both.0 + 4089, false, false),
            (both.0 + 4096, false, false),
            (both.0 + 3, true, true),
            (read_only.0, true, false),
            (read_only.0 + 4089, false, false),
            (closed.0, false, false),
            (8, false, false),
            (1, false, false),
            (usize::MAX - 3, false, false),
            (usize::MAX / 2 + 1, false, false),
        ];
        for (address, can_read, can_write) in cases {
            let memory = Memory::default;
            assert_eq!(memory().readable(address, 8).is_ok(), can_read, "read {address:#x}");
            assert_eq!(memory().writable(address, 8).is_ok(), can_write, "write {address:#x}");
            // The last byte, where the first is on another page.
            let last = address.wrapping_add(7);
            assert_eq!(through_pipe(last, Access::Read).is_ok(), can_read, "pipe read {address:#x}");
            assert_eq!(through_pipe(last, Access::Write).is_ok(), can_write, "pipe write {address:#x}");
            assert_eq!(write_late(address, 0u64).is_ok(), can_write, "late write {address:#x}");
            let first_four = can_write || address == both.0 + 4089;
            assert_eq!(memory().zero(address).is_ok(), first_four, "zero {address:#x}");
        }
        assert_eq!(read::<u32>(0), Err(Fault));
    }

    #[test]
    fn every_page_of_a_long_range_is_looked_at() {
        let first = Pages::new(libc::PROT_READ | libc::PROT_WRITE);
        assert!(Memory::default().readable(first.0 + 10, 4086).is_ok());
        assert!(Memory::default().readable(first.0 + 10, 3 * 4096).is_err());
        // The answer for one page is not used for another.
        let memory = Memory::default();
        memory.writable(first.0, 8).unwrap();
        assert!(memory.writable(first.0 + 4096, 8).is_err());
        assert!(memory.writable(first.0, 8).is_ok());
        let read_only = Pages::new(libc::PROT_READ);
        assert!(memory.readable(read_only.0, 8).is_ok() && memory.writable(read_only.0, 8).is_err());
    }

    #[test]
    fn looking_for_the_right_to_write_changes_nothing() {
        let value = Box::new(0x0123_4567_89ab_cdefu64);
        let address = &raw const *value as usize;
        writable(address, 8).unwrap();
        through_pipe(address, Access::Write).unwrap();
        assert_eq!(*value, 0x0123_4567_89ab_cdef);
        assert_eq!(read::<u64>(address), Ok(*value));
    }

    #[test]
    fn strings_end_at_their_end_and_never_beyond_their_memory() {
        let page = Pages::new(libc::PROT_READ | libc::PROT_WRITE);
        Memory::default().write_list(page.0 + 4092, b"abc\0").unwrap();
        assert_eq!(Memory::default().string::<u8>(page.0 + 4092), Ok(b"abc".to_vec()));
        Memory::default().write_list(page.0 + 4092, b"abcd").unwrap();
        assert_eq!(Memory::default().string::<u8>(page.0 + 4092), Err(Fault));
    }

    #[test]
    fn a_local_variable_needs_no_system_call() {
        fn callee(address: usize) -> bool {
            on_own_stack(address, address + 8)
        }
        let local = 7u64;
        assert!(callee(&raw const local as usize));
        assert!(!callee(&raw const *Box::new(7u64) as usize));
    }
}
