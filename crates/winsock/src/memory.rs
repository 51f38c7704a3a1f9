//! The caller's memory: no pointer, however wrong, may crash the caller.
//!
//! A pointer is looked at in three ways, the cheap ones first. What lies on the
//! calling thread's own stack, above the frame that looks, is known to be there:
//! that is where nearly every program keeps the arguments of these calls, and it
//! costs no system call. Elsewhere the kernel is asked, in ways that change no
//! byte: by an impossible `rt_sigprocmask` for a token, by `MADV_POPULATE_*` else.
//! Where that has no answer (kernels before 5.14, special mappings, missing
//! rights) the bytes go through a pipe, which either copies them or says EFAULT.

use std::{cell::Cell, mem, ptr};

/// The memory is not there, or not writable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

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
unsafe impl Plain for crate::abi::PortRange {}
// SAFETY: as above; its padding is a field.
unsafe impl Plain for crate::abi::Instance {}
// SAFETY: as above.
unsafe impl Plain for crate::abi::Overlapped {}
// SAFETY: as above.
unsafe impl Plain for crate::abi::ThreadId {}

thread_local! {
    /// Lowest and highest address of this thread's stack, (0, 0) before the first look.
    static STACK: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

fn find_stack() -> (usize, usize) {
    // SAFETY: all-zero is a valid pthread_attr_t to be filled in, and it is destroyed only after it was.
    unsafe {
        let mut attributes: libc::pthread_attr_t = mem::zeroed();
        if libc::pthread_getattr_np(libc::pthread_self(), &mut attributes) != 0 {
            return (1, 1);
        }
        let (mut low, mut size) = (ptr::null_mut(), 0);
        let found = libc::pthread_attr_getstack(&attributes, &mut low, &mut size) == 0;
        libc::pthread_attr_destroy(&mut attributes);
        if found { (low as usize, low as usize + size) } else { (1, 1) }
    }
}

/// True for what lies between this frame and the end of the stack: those pages
/// hold live frames. A program on a stack of its own making (a coroutine) is
/// never in these bounds and takes the slower ways.
fn on_own_stack(address: usize, end: usize) -> bool {
    let marker = 0u8;
    let here = &raw const marker as usize;
    let mut bounds = STACK.get();
    if bounds == (0, 0) {
        bounds = find_stack();
        STACK.set(bounds);
    }
    bounds.0 <= here && here < bounds.1 && here <= address && end <= bounds.1
}

/// The kernel copies a signal mask in before it looks at what shall be done with
/// it: with an impossible wish nothing is done, and the answer tells whether the
/// eight bytes could be read. The quickest such question there is, and a token
/// has just that size.
fn token_readable(address: usize) -> Option<Result<(), Fault>> {
    const NO_SUCH_WISH: i32 = 100;
    // SAFETY: the kernel checks the address, changes no memory, and refuses the wish.
    let result = unsafe { libc::syscall(libc::SYS_rt_sigprocmask, NO_SUCH_WISH, address, 0usize, 8usize) };
    match (result, std::io::Error::last_os_error().raw_os_error()) {
        (-1, Some(libc::EINVAL)) => Some(Ok(())),
        (-1, Some(libc::EFAULT)) => Some(Err(Fault)),
        _ => None,
    }
}

fn populated(address: usize, end: usize, access: Access) -> Option<Result<(), Fault>> {
    // SAFETY: sysconf only looks up a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let first = address & !(page - 1);
    let advice = if access == Access::Read { libc::MADV_POPULATE_READ } else { libc::MADV_POPULATE_WRITE };
    // SAFETY: populating changes no byte of memory, and pages that are not there only make the call fail.
    if unsafe { libc::madvise(first as *mut _, end - first, advice) } == 0 {
        return Some(Ok(()));
    }
    match std::io::Error::last_os_error().raw_os_error() {
        Some(libc::ENOMEM | libc::EFAULT) => Some(Err(Fault)),
        _ => None,
    }
}

/// Bytes of a caller's structure never exceed this.
const MOST: usize = 4096;

struct Pipe([i32; 2]);

impl Pipe {
    fn new() -> Result<Self, Fault> {
        let mut ends = [0; 2];
        // SAFETY: `ends` has room for the two descriptors.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } != 0 {
            return Err(Fault);
        }
        Ok(Self(ends))
    }

    fn put(&self, from: usize, length: usize) -> Result<(), Fault> {
        // SAFETY: the kernel checks the address; a wrong one makes the call fail.
        let count = unsafe { libc::write(self.0[1], from as *const _, length) };
        if count == length as isize { Ok(()) } else { Err(Fault) }
    }

    fn take(&self, to: usize, length: usize) -> Result<(), Fault> {
        // SAFETY: the kernel checks the address; what lies there belongs to whoever passed it to be written.
        let count = unsafe { libc::read(self.0[0], to as *mut _, length) };
        if count == length as isize { Ok(()) } else { Err(Fault) }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // SAFETY: both descriptors are this value's own.
        unsafe {
            libc::close(self.0[0]);
            libc::close(self.0[1]);
        }
    }
}

fn through_pipe(address: usize, length: usize, access: Access) -> Result<(), Fault> {
    let pipe = Pipe::new()?;
    pipe.put(address, length)?;
    if access == Access::Write {
        // The same bytes back to where they came from: only the right to write is tried.
        pipe.take(address, length)?;
    }
    Ok(())
}

fn check(address: usize, length: usize, access: Access) -> Result<(), Fault> {
    let end = address.checked_add(length).ok_or(Fault)?;
    if address == 0 || length > MOST {
        return Err(Fault);
    }
    if length == 0 || on_own_stack(address, end) {
        return Ok(());
    }
    let answer = match (access, length) {
        (Access::Read, 8) => token_readable(address),
        _ => populated(address, end, access),
    };
    answer.unwrap_or_else(|| through_pipe(address, length, access))
}

/// Whether `length` bytes can be read there.
pub(crate) fn readable(address: usize, length: usize) -> Result<(), Fault> {
    check(address, length, Access::Read)
}

/// Whether `length` bytes can be written there. Nothing is changed.
pub(crate) fn writable(address: usize, length: usize) -> Result<(), Fault> {
    check(address, length, Access::Write)
}

/// Read a structure from wherever the caller said it is, aligned or not.
pub(crate) fn read<T: Plain>(address: usize) -> Result<T, Fault> {
    readable(address, size_of::<T>())?;
    // SAFETY: the bytes were just found readable, any bytes are a T, and no alignment is assumed.
    Ok(unsafe { ptr::read_unaligned(address as *const T) })
}

/// Write a structure to wherever the caller said it shall go, aligned or not.
pub(crate) fn write<T: Plain>(address: usize, value: T) -> Result<(), Fault> {
    writable(address, size_of::<T>())?;
    // SAFETY: the bytes were just found writable, they are the caller's to have written, and no alignment is assumed.
    unsafe { ptr::write_unaligned(address as *mut T, value) };
    Ok(())
}

/// As [`write`], for memory that may have gone since it was passed: an
/// operation completes on a thread of its own, and the caller may by then have
/// unmapped what it promised to keep.
pub(crate) fn write_late<T: Plain>(address: usize, value: T) -> Result<(), Fault> {
    let pipe = Pipe::new()?;
    pipe.put(&raw const value as usize, size_of::<T>())?;
    pipe.take(address, size_of::<T>())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pages(usize);

    impl Pages {
        /// One page of `protection`, and after it one that is not there.
        fn new(protection: i32) -> Self {
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
            (usize::MAX - 3, false, false),
            (usize::MAX / 2 + 1, false, false),
        ];
        for (address, can_read, can_write) in cases {
            assert_eq!(readable(address, 8).is_ok(), can_read, "read {address:#x}");
            assert_eq!(writable(address, 8).is_ok(), can_write, "write {address:#x}");
            if address.checked_add(8).is_some() {
                assert_eq!(through_pipe(address, 8, Access::Read).is_ok(), can_read, "pipe read {address:#x}");
                assert_eq!(through_pipe(address, 8, Access::Write).is_ok(), can_write, "pipe write {address:#x}");
            }
            assert_eq!(write_late(address, 0u64).is_ok(), can_write, "late write {address:#x}");
        }
        assert_eq!(read::<u32>(0), Err(Fault));
    }

    #[test]
    fn looking_for_the_right_to_write_changes_nothing() {
        let value = Box::new(0x0123_4567_89ab_cdefu64);
        let address = &raw const *value as usize;
        writable(address, 8).unwrap();
        through_pipe(address, 8, Access::Write).unwrap();
        assert_eq!(*value, 0x0123_4567_89ab_cdef);
        assert_eq!(read::<u64>(address), Ok(*value));
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
