//! `WSAIoctl` and `WSPIoctl`. They check which control code it is, whether the sizes are right, whether the pointers
//! are valid, and whether the call is overlapped.
//!
//! The caller's token and output buffer go to the kernel as they are. The kernel reads the token and writes the buffer
//! itself, and returns EFAULT if it cannot. So these two pointers are not checked before the call.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use portkeep::control;
use portkeep_core::wire::{self, AcquireRequest, Grant, SelectRequest};

use crate::{
    abi::{CompletionRoutine, Instance, Overlapped, PortRange, Socket, ThreadId},
    claim::{self, Claim, Place},
    descriptor::{descriptor, is_overlapped, is_socket},
    error, held, memory,
    overlapped::Completion,
    pending::{self, Operation},
    socket, upcall, wait,
};

const SIO_ACQUIRE_PORT_RESERVATION: u32 = 0x9800_0064;
const SIO_RELEASE_PORT_RESERVATION: u32 = 0x9800_0065;
const SIO_ASSOCIATE_PORT_RESERVATION: u32 = 0x9800_0066;
const SIO_FLUSH: u32 = 0x2800_0004;
const FIONBIO: u32 = 0x8004_667e;
const FIONREAD: u32 = 0x4004_667f;
/// The codes with the same names in `<sys/ioctl.h>`, for programs that include it too.
const SYSTEM_FIONBIO: u32 = libc::FIONBIO as u32;
const SYSTEM_FIONREAD: u32 = libc::FIONREAD as u32;

const TOKEN: u32 = 8;

/// The arguments of `WSAIoctl`, addresses as numbers.
struct Call {
    memory: memory::Memory,
    socket: Socket,
    code: u32,
    input: usize,
    input_size: u32,
    output: usize,
    output_size: u32,
    returned: usize,
    overlapped: usize,
    routine: usize,
    /// `None`: `WSAIoctl`, which means the calling thread.
    thread: Option<usize>,
}

fn fault(_: memory::Fault) -> i32 {
    error::WSAEFAULT
}

/// The error of GRANTED. Without an entry an administrator ended the reservation at once.
fn ended(error: &io::Error) -> i32 {
    match error.raw_os_error() {
        Some(libc::ENOENT) => error::WSA_OPERATION_ABORTED,
        _ => error::of_control(error),
    }
}

/// How an accepted call goes on.
enum Mode {
    Blocking,
    Overlapped(Completion),
}

impl Call {
    fn run(&self) -> Result<(), i32> {
        crate::startup::check()?;
        match self.code {
            SIO_ACQUIRE_PORT_RESERVATION => self.acquire(),
            SIO_RELEASE_PORT_RESERVATION => self.use_token(wire::RELEASE),
            SIO_ASSOCIATE_PORT_RESERVATION => self.use_token(wire::ASSOCIATE),
            SIO_FLUSH => self.flush(),
            FIONBIO | SYSTEM_FIONBIO => self.set_non_blocking(),
            FIONREAD | SYSTEM_FIONREAD => self.bytes_to_read(),
            _ => Err(self.blame(error::WSAEOPNOTSUPP)),
        }
    }

    /// If `s` is not a socket, this error comes before all others.
    fn blame(&self, code: i32) -> i32 {
        if is_socket(self.socket) { code } else { error::WSAENOTSOCK }
    }

    fn fd(&self) -> Result<BorrowedFd<'_>, i32> {
        let fd = descriptor(self.socket)?;
        // SAFETY: for the duration of this call the descriptor is the program's to keep open. If it does not, the
        // kernel answers EBADF, or the call goes to whatever took its number, as with every system call.
        Ok(unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// Check the sizes that the page requires.
    fn check_sizes(&self, input: u32, output_ok: bool) -> Result<(), i32> {
        if !output_ok {
            if self.returned != 0 {
                self.memory.zero(self.returned).map_err(|e| self.blame(fault(e)))?;
            }
            return Err(self.blame(error::WSAEINVAL));
        }
        if self.input_size < input { Err(self.blame(error::WSAEINVAL)) } else { Ok(()) }
    }

    /// The memory written at the end has to be writable before anything is
    /// done: a RELEASE cannot be taken back. A call that blocks leaves 0 bytes
    /// behind if it fails after this; one that is overlapped leaves nothing.
    fn mode(&self) -> Result<Mode, i32> {
        if self.overlapped == 0 || !is_overlapped(self.socket) {
            self.memory.zero(self.returned).map_err(|e| self.blame(fault(e)))?;
            return Ok(Mode::Blocking);
        }
        let check = || {
            if self.returned != 0 {
                self.memory.writable(self.returned, 4)?;
            }
            self.memory.writable(self.overlapped, size_of::<Overlapped>())?;
            if self.routine != 0 {
                memory::executable(self.routine)?;
            }
            self.memory.read::<Overlapped>(self.overlapped)
        };
        let structure = check().map_err(|e| self.blame(fault(e)))?;
        let thread = match self.thread {
            Some(address) => {
                let id: ThreadId = self.memory.read(address).map_err(|e| self.blame(fault(e)))?;
                match wait::thread_of(id) {
                    Some(thread) => ThreadId { reserved: thread, ..id },
                    // The program's own WPUQueueApc may know it.
                    None if self.routine == 0 || upcall::is_set() => id,
                    None => return Err(self.blame(error::WSAEFAULT)),
                }
            }
            None => ThreadId { handle: 0, reserved: wait::this_thread() },
        };
        // SAFETY: a non-null address with code at it; that a routine of this type is there is the caller's word, and
        // it is only called as one when the program asked for it.
        let routine =
            (self.routine != 0).then(|| unsafe { std::mem::transmute::<usize, CompletionRoutine>(self.routine) });
        if routine.is_none() && structure.event != 0 && !wait::is_event(structure.event) {
            return Err(self.blame(error::WSA_INVALID_HANDLE));
        }
        Ok(Mode::Overlapped(Completion::new(self.overlapped, &structure, routine, thread)))
    }

    /// The call is done at once: report that in every way that the mode has.
    fn done(&self, mode: Mode, bytes: u32) -> Result<(), i32> {
        if self.returned != 0 {
            // SAFETY: `mode` found it writable, and nothing has waited since; no alignment is assumed.
            unsafe { ptr::write_unaligned(self.returned as *mut u32, bytes) };
        }
        match mode {
            Mode::Blocking => Ok(()),
            Mode::Overlapped(completion) => completion.deliver_at_once(bytes),
        }
    }

    fn use_token(&self, option: i32) -> Result<(), i32> {
        self.check_sizes(TOKEN, self.output_size == 0)?;
        let mode = self.mode()?;
        let fd = self.fd()?;
        // SAFETY: the kernel checks the address, reads a token's length, and writes nothing.
        let result = unsafe {
            libc::setsockopt(fd.as_raw_fd(), wire::SOL_PORTKEEP, option, self.input as *const libc::c_void, TOKEN)
        };
        if result != 0 {
            self.without_kernel(fd, option, &io::Error::last_os_error())?;
        }
        self.done(mode, 0)
    }

    /// The control code failed. Without kernel enforcement the held mode serves it; otherwise this is the result.
    fn without_kernel(&self, fd: BorrowedFd<'_>, option: i32, error: &io::Error) -> Result<(), i32> {
        match error.raw_os_error() {
            Some(libc::ENOPROTOOPT) => {
                let token = self.memory.read(self.input).map_err(fault)?;
                if option == wire::RELEASE {
                    held::release(fd.as_raw_fd(), token)
                } else {
                    held::associate(fd.as_raw_fd(), token)
                }
            }
            Some(libc::EPERM) if option == wire::ASSOCIATE && self.is_persistent(fd) => Err(error::WSAEACCES),
            _ => Err(error::of_control(error)),
        }
    }

    /// The page has two errors for a token that may not be used. This decides which one it is.
    fn is_persistent(&self, fd: BorrowedFd<'_>) -> bool {
        let Ok(token) = self.memory.read(self.input) else { return false };
        let select = SelectRequest { by: wire::BY_TOKEN, token, ..Default::default() };
        let _locked = claim::two_calls();
        control::state(fd, &select).is_ok_and(|state| u32::from(state.flags) & wire::PERSISTENT != 0)
    }

    fn acquire(&self) -> Result<(), i32> {
        const SIZE: u32 = size_of::<Instance>() as u32;
        self.check_sizes(size_of::<PortRange>() as u32, self.output_size >= SIZE)?;
        let mode = self.mode()?;
        let range: PortRange = self.memory.read(self.input).map_err(|e| self.blame(fault(e)))?;
        if self.output == 0 {
            // To the kernel, NULL would mean that there is no output.
            return Err(self.blame(error::WSAEFAULT));
        }
        let fd = self.fd()?;
        let request =
            AcquireRequest { start: u16::from_be(range.start), count: range.count, ..AcquireRequest::default() };
        let locked = claim::two_calls();
        match control::acquire(fd, &request) {
            Ok(()) => {
                let token = self.take_grant(fd)?;
                drop(locked);
                self.done(mode, SIZE).inspect_err(|_| claim::give_back(fd, token))
            }
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
                let grant = control::granted(fd).map_err(|error| ended(&error))?;
                drop(locked);
                self.wait(mode, fd, grant)
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                drop(locked);
                self.memory.writable(self.output, SIZE as usize).map_err(fault)?;
                let grant = held::acquire(fd.as_raw_fd(), &request)?;
                self.memory.write(self.output, claim::instance(&grant)).map_err(fault)?;
                self.done(mode, SIZE)
            }
            Err(error) => Err(error::of_control(&error)),
        }
    }

    /// Have the kernel write the grant to the caller's buffer, and convert it there to the caller's structure. Returns
    /// the token.
    fn take_grant(&self, fd: BorrowedFd<'_>) -> Result<u64, i32> {
        const { assert!(size_of::<Grant>() == size_of::<Instance>()) };
        let mut length = size_of::<Grant>() as libc::socklen_t;
        let at = self.output as *mut libc::c_void;
        // SAFETY: the kernel checks the address; the caller said that there is room for this much.
        let result =
            unsafe { libc::getsockopt(fd.as_raw_fd(), wire::SOL_PORTKEEP, wire::GRANTED, at, &raw mut length) };
        if result == 0 {
            // SAFETY: the kernel has just written there, the whole of a Grant; no alignment is assumed.
            let grant = unsafe { ptr::read_unaligned(self.output as *const Grant) };
            // SAFETY: as above, and an instance is no longer than a grant.
            unsafe { ptr::write_unaligned(self.output as *mut Instance, claim::instance(&grant)) };
            return Ok(grant.token);
        }
        let error = io::Error::last_os_error();
        // The grant could not be reported, so it must end.
        if let Ok(grant) = control::granted(fd) {
            claim::give_back(fd, grant.token);
        }
        Err(ended(&error))
    }

    /// The agent has to confirm it first.
    fn wait(&self, mode: Mode, fd: BorrowedFd<'_>, grant: Grant) -> Result<(), i32> {
        const SIZE: usize = size_of::<Instance>();
        if grant.state == wire::REFUSED && grant.error != 0 {
            claim::give_back(fd, grant.token);
            return Err(error::of_control(&io::Error::from_raw_os_error(i32::from(grant.error))));
        }
        let claim = Claim::new(self.socket, fd, grant).map_err(|error| error::of_control(&error))?;
        self.memory.writable(self.output, SIZE).map_err(fault)?;
        match mode {
            Mode::Overlapped(completion) if grant.state != wire::ACTIVE => {
                completion.begin()?;
                pending::start(Operation::new(claim, self.output, completion))?;
                Err(error::WSA_IO_PENDING)
            }
            _ => {
                let grant = pending::block(claim)?;
                // The memory may have been unmapped meanwhile.
                let again = memory::Memory::default();
                let written = again.write(self.output, claim::instance(&grant)).and_then(|()| match mode {
                    Mode::Blocking => again.writable(self.returned, 4),
                    Mode::Overlapped(_) => Ok(()),
                });
                written
                    .map_err(fault)
                    .and_then(|()| self.done(mode, SIZE as u32))
                    .inspect_err(|_| claim::give_back(fd, grant.token))
            }
        }
    }

    /// The kernel already has the data that Winsock queues to send; only control codes can be pending.
    fn flush(&self) -> Result<(), i32> {
        let mode = self.mode()?;
        let place = Place::of(self.socket).filter(|_| is_socket(self.socket)).ok_or(error::WSAENOTSOCK)?;
        pending::abort_socket(place);
        self.done(mode, 0)
    }

    fn set_non_blocking(&self) -> Result<(), i32> {
        if self.input_size < 4 {
            return Err(self.blame(error::WSAEFAULT));
        }
        let on = if self.input_size as usize >= size_of::<libc::c_ulong>() {
            self.memory.read::<usize>(self.input).map(|value| value != 0)
        } else {
            self.memory.read::<u32>(self.input).map(|value| value != 0)
        };
        let on = on.map_err(|e| self.blame(fault(e)))?;
        socket::set_non_blocking(self.socket, on)?;
        self.plain_done(0)
    }

    fn bytes_to_read(&self) -> Result<(), i32> {
        if self.output_size < 4 {
            return Err(self.blame(error::WSAEFAULT));
        }
        let wide = self.output_size as usize >= size_of::<libc::c_ulong>();
        let count = socket::bytes_to_read(self.socket)?;
        let memory = &self.memory;
        let written = if wide { memory.write(self.output, count as usize) } else { memory.write(self.output, count) };
        written.map_err(fault)?;
        self.plain_done(if wide { size_of::<libc::c_ulong>() as u32 } else { 4 })
    }

    fn plain_done(&self, bytes: u32) -> Result<(), i32> {
        let mode = self.mode()?;
        self.done(mode, bytes)
    }
}

/// `WSAIoctl`.
#[unsafe(no_mangle)]
pub extern "C" fn WSAIoctl(
    s: Socket,
    code: u32,
    input: usize,
    input_size: u32,
    output: usize,
    output_size: u32,
    returned: usize,
    overlapped: usize,
    routine: usize,
) -> i32 {
    crate::status(|| {
        let (socket, memory) = (s, memory::Memory::default());
        let thread = None;
        Call { memory, socket, code, input, input_size, output, output_size, returned, overlapped, routine, thread }
            .run()
    })
}

/// `WSPIoctl`: as [`WSAIoctl`], with the thread named and the error in `*lpErrno`.
#[unsafe(no_mangle)]
pub extern "C" fn WSPIoctl(
    s: Socket,
    code: u32,
    input: usize,
    input_size: u32,
    output: usize,
    output_size: u32,
    returned: usize,
    overlapped: usize,
    routine: usize,
    thread: usize,
    error: usize,
) -> i32 {
    crate::provider_status(error, || {
        let thread = (thread != 0).then_some(thread);
        let (socket, memory) = (s, memory::Memory::default());
        Call { memory, socket, code, input, input_size, output, output_size, returned, overlapped, routine, thread }
            .run()
    })
}

/// `ioctlsocket`: FIONBIO and FIONREAD. Its argument is a `u_long`, which is the system's.
#[unsafe(no_mangle)]
pub extern "C" fn ioctlsocket(s: Socket, command: libc::c_long, argument: usize) -> i32 {
    let mut returned = 0u32;
    let size = size_of::<libc::c_ulong>() as u32;
    let (input, output) = match command as u32 {
        code if code == libc::FIONREAD as u32 || code == 0x4004_667f => ((0, 0), (argument, size)),
        _ => ((argument, size), (0, 0)),
    };
    let returned = &raw mut returned as usize;
    WSAIoctl(s, command as u32, input.0, input.1, output.0, output.1, returned, 0, 0)
}
