//! The caller's memory: no pointer, however wrong, may crash the caller.
//!
//! Where a system call is made anyhow, it is handed the caller's pointer, and
//! its EFAULT is the answer ([`crate::ioctl`] does so with tokens and grants).
//! For the rest a pointer is looked at, the cheap way first:
//!
//! * Memory on the calling thread's own stack, above the frame that looks, is
//!   known to be there: that is where nearly every program keeps the arguments
//!   of these calls, and it costs no system call.
//! * Elsewhere the kernel is asked, once for each page and call, in a way that changes
//!   no byte. Whether a page can be read: by an `rt_sigprocmask` with an
//!   impossible wish. Whether it can be written: by a `futex` operation that
//!   ORs a word of it with 0.
//! * Where that has no answer (a filter of system calls) the bytes go through a
//!   pipe, which either copies them or says EFAULT.
//!
//! Nothing is remembered from one call to the next: memory can go at any time.

use std::{cell::Cell, mem, ptr, sync::atomic::AtomicU32};

/// The memory is not there, or not writable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// A page is this large or a multiple of it.
const PAGE: usize = 4096;

fn page_of(address: usize) -> usize {
    address & !(PAGE - 1)
}

/// The kernel copies a signal mask in before it looks at what shall be done with
/// it: with an impossible wish nothing is done, and the answer shows whether the
/// eight bytes could be read. Aligned, they are all on one page.
fn page_readable(address: usize) -> Option<Result<(), Fault>> {
    const NO_SUCH_WISH: i32 = 100;
    let mask = address & !7;
    if mask == 0 {
        // To the kernel that is "no mask".
        return Some(Err(Fault));
    }
    // SAFETY: the kernel checks the address, changes no memory, and refuses the wish.
    let result = unsafe { libc::syscall(libc::SYS_rt_sigprocmask, NO_SUCH_WISH, mask, 0usize, 8usize) };
    match (result, std::io::Error::last_os_error().raw_os_error()) {
        (-1, Some(libc::EINVAL)) => Some(Ok(())),
        (-1, Some(libc::EFAULT)) => Some(Err(Fault)),
        _ => None,
    }
}

/// A word of the page is ORed with 0, in one atomic step, by the kernel. Nobody
/// waits at the word that the operation is nominally about; whoever waits at
/// the other one, and has nearly all its bits set, may be woken for nothing, which a futex always may.
fn page_writable(address: usize) -> Option<Result<(), Fault>> {
    static NOBODY: AtomicU32 = AtomicU32::new(0);
    const OR_0_THEN_IF_LESS_THAN_MINUS_2048: u32 = 2 << 28 | 2 << 24 | 0x800;
    let (nobody, word) = (NOBODY.as_ptr(), address & !3);
    let operation = libc::FUTEX_WAKE_OP | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the kernel checks the address, and an OR with 0 changes nothing, whoever else writes there.
    let result = unsafe {
        libc::syscall(libc::SYS_futex, nobody, operation, 0, 0usize, word, OR_0_THEN_IF_LESS_THAN_MINUS_2048)
    };
    match (result, std::io::Error::last_os_error().raw_os_error()) {
        (0.., _) => Some(Ok(())),
        (_, Some(libc::EFAULT)) => Some(Err(Fault)),
        _ => None,
    }
}

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

fn through_pipe(address: usize, access: Access) -> Result<(), Fault> {
    let pipe = Pipe::new()?;
    pipe.put(address, 1)?;
    if access == Access::Write {
        // The same byte back to where it came from: only the right to write is tried.
        pipe.take(address, 1)?;
    }
    Ok(())
}

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

    /// Write 0, which is also the quickest way to find out whether one can: by `getcpu`, which writes a number.
    pub(crate) fn zero(&self, address: usize) -> Result<(), Fault> {
        let end = address.checked_add(4).ok_or(Fault)?;
        let known = on_own_stack(address, end) || self.seen.get() == Some((page_of(address), Access::Write));
        if address != 0 && !known && page_of(address) == page_of(end - 1) {
            // SAFETY: the kernel checks the address; the four bytes are the caller's to have written.
            let result = unsafe { libc::syscall(libc::SYS_getcpu, address, 0usize, 0usize) };
            match (result, std::io::Error::last_os_error().raw_os_error()) {
                (0, _) => self.seen.set(Some((page_of(address), Access::Write))),
                (_, Some(libc::EFAULT)) => return Err(Fault),
                // Not to be had here.
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

/// The pages of `address..end`, which is not empty.
fn pages(address: usize, end: usize) -> impl Iterator<Item = usize> {
    (page_of(address)..=page_of(end - 1)).step_by(PAGE)
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

/// As [`write`], for memory that may have gone since it was passed: an
/// operation completes on a thread of its own, and the caller may by then have
/// unmapped what it promised to keep.
pub(crate) fn write_late<T: Plain>(address: usize, value: T) -> Result<(), Fault> {
    let pipe = Pipe::new()?;
    pipe.put(&raw const value as usize, size_of::<T>())?;
    pipe.take(address, size_of::<T>())
}

/// Whether a routine can be there: code of the program, of a library, or made
/// at run time. That it is a routine of the right type is the caller's word.
pub(crate) fn executable(address: usize) -> Result<(), Fault> {
    /// Nonzero, which ends the walk, once the address is found in a segment of code.
    unsafe extern "C" fn look(object: *mut libc::dl_phdr_info, _size: usize, wanted: *mut libc::c_void) -> i32 {
        // SAFETY: the walk passes a valid description, with as many headers as it says.
        let (base, headers) = unsafe {
            let object = &*object;
            (object.dlpi_addr as usize, std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()))
        };
        let code = headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_X != 0);
        let found = code.into_iter().any(|header| {
            let start = base.wrapping_add(header.p_vaddr as usize);
            (start..start.wrapping_add(header.p_memsz as usize)).contains(&(wanted as usize))
        });
        found.into()
    }
    if address == 0 {
        return Err(Fault);
    }
    // SAFETY: `look` has the type the walk wants, and the number passed through is no pointer to it.
    if unsafe { libc::dl_iterate_phdr(Some(look), address as *mut libc::c_void) } != 0 {
        return Ok(());
    }
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return Memory::default().readable(address, 1);
    };
    let found = maps.lines().any(|line| {
        let mut words = line.split_ascii_whitespace();
        let (Some(range), Some(rights)) = (words.next(), words.next()) else { return false };
        let Some((start, end)) = range.split_once('-') else { return false };
        let number = |text| usize::from_str_radix(text, 16);
        rights.contains('x')
            && number(start).is_ok_and(|start| start <= address)
            && number(end).is_ok_and(|end| address < end)
    });
    if found { Ok(()) } else { Err(Fault) }
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
    fn code_is_told_from_data() {
        let data = Box::new(7u64);
        assert!(executable(Pages::new as *const () as usize).is_ok());
        assert!(executable(libc::getpid as *const () as usize).is_ok());
        assert!(executable(&raw const *data as usize).is_err());
        assert!(executable(0).is_err() && executable(8).is_err() && executable(usize::MAX).is_err());
        let made = Pages::new(libc::PROT_READ | libc::PROT_EXEC);
        assert!(executable(made.0).is_ok() && executable(made.0 + 4096).is_err());
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
