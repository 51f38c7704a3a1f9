//! The ways to check memory, the cheap ones first.

use std::{cell::Cell, mem, ptr, sync::atomic::AtomicU32};

/// The memory is not there, or not writable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

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
/// never in these bounds and uses the slower ways.
pub(super) fn on_own_stack(address: usize, end: usize) -> bool {
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
pub(super) const PAGE: usize = 4096;

pub(super) fn page_of(address: usize) -> usize {
    address & !(PAGE - 1)
}

/// The kernel copies a signal mask in before it checks what to do with it. The operation asked for here does not exist:
/// so nothing is done, and the answer shows whether the eight bytes could be read. They are aligned, so all are on one
/// page.
pub(super) fn page_readable(address: usize) -> Option<Result<(), Fault>> {
    const NO_SUCH_WISH: i32 = 100;
    let mask = address & !7;
    if mask == 0 {
        // To the kernel this means that there is no mask.
        return Some(Err(Fault));
    }
    // SAFETY: the kernel checks the address, changes no memory, and refuses the operation.
    let result = unsafe { libc::syscall(libc::SYS_rt_sigprocmask, NO_SUCH_WISH, mask, 0usize, 8usize) };
    match (result, std::io::Error::last_os_error().raw_os_error()) {
        (-1, Some(libc::EINVAL)) => Some(Ok(())),
        (-1, Some(libc::EFAULT)) => Some(Err(Fault)),
        _ => None,
    }
}

/// The kernel ORs a word of the page with 0, in one atomic step. No thread waits at the first word of the operation. A
/// thread that waits at the second word may be woken without a reason, if nearly all bits of the word are set; a futex
/// always allows that.
pub(super) fn page_writable(address: usize) -> Option<Result<(), Fault>> {
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

pub(super) struct Pipe([i32; 2]);

impl Pipe {
    pub(super) fn new() -> Result<Self, Fault> {
        let mut ends = [0; 2];
        // SAFETY: `ends` has room for the two descriptors.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } != 0 {
            return Err(Fault);
        }
        Ok(Self(ends))
    }

    pub(super) fn put(&self, from: usize, length: usize) -> Result<(), Fault> {
        // SAFETY: the kernel checks the address; a wrong one makes the call fail.
        let count = unsafe { libc::write(self.0[1], from as *const _, length) };
        if count == length as isize { Ok(()) } else { Err(Fault) }
    }

    pub(super) fn take(&self, to: usize, length: usize) -> Result<(), Fault> {
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

pub(super) fn through_pipe(address: usize, access: Access) -> Result<(), Fault> {
    let pipe = Pipe::new()?;
    pipe.put(address, 1)?;
    if access == Access::Write {
        // The same byte back to where it came from: only the right to write is tried.
        pipe.take(address, 1)?;
    }
    Ok(())
}

/// The pages of `address..end`, which is not empty.
pub(super) fn pages(address: usize, end: usize) -> impl Iterator<Item = usize> {
    (page_of(address)..=page_of(end - 1)).step_by(PAGE)
}
