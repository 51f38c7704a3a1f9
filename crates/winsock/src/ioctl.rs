//! `WSAIoctl` and `WSPIoctl`: which control code, are the sizes right, do the
//! pointers hold, and is it to be overlapped.

use std::os::fd::BorrowedFd;

use portkeep::control;
use portkeep_core::wire::{self, AcquireRequest, Grant};

use crate::{
    abi::{CompletionRoutine, Instance, Overlapped, PortRange, Socket, ThreadId},
    error, held, memory, overlapped,
    pending::{self, Claim, Operation},
    socket, spi, wait,
};

const SIO_ACQUIRE_PORT_RESERVATION: u32 = 0x9800_0064;
const SIO_RELEASE_PORT_RESERVATION: u32 = 0x9800_0065;
const SIO_ASSOCIATE_PORT_RESERVATION: u32 = 0x9800_0066;
const FIONBIO: u32 = 0x8004_667e;
const FIONREAD: u32 = 0x4004_667f;
/// What `<sys/ioctl.h>` calls by the same names, for programs that include it too.
const SYSTEM_FIONBIO: u32 = libc::FIONBIO as u32;
const SYSTEM_FIONREAD: u32 = libc::FIONREAD as u32;

const TOKEN: u32 = 8;

/// The arguments of `WSAIoctl`, addresses as numbers.
#[derive(Clone, Copy)]
struct Call {
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

/// How an accepted call goes on.
enum Mode {
    Blocking,
    Overlapped(overlapped::Completion),
}

impl Call {
    fn run(&self) -> Result<(), i32> {
        crate::startup::check()?;
        match self.code {
            SIO_ACQUIRE_PORT_RESERVATION => self.acquire(),
            SIO_RELEASE_PORT_RESERVATION => self.use_token(wire::RELEASE),
            SIO_ASSOCIATE_PORT_RESERVATION => self.use_token(wire::ASSOCIATE),
            FIONBIO | SYSTEM_FIONBIO => self.set_non_blocking(),
            FIONREAD | SYSTEM_FIONREAD => self.bytes_to_read(),
            _ => Err(self.blame(error::WSAEOPNOTSUPP)),
        }
    }

    /// That `s` is no socket comes before whatever else is wrong.
    fn blame(&self, code: i32) -> i32 {
        if socket::is_socket(self.socket) { code } else { error::WSAENOTSOCK }
    }

    fn fd(&self) -> Result<BorrowedFd<'_>, i32> {
        let fd = socket::descriptor(self.socket)?;
        // SAFETY: for the duration of this call the descriptor is the program's to keep open. If it does not, the
        // kernel answers EBADF, or the call goes to whatever took its number, as with every system call.
        Ok(unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// The sizes the page demands.
    fn check_sizes(&self, input: u32, output_ok: bool) -> Result<(), i32> {
        if !output_ok {
            if self.returned != 0 {
                memory::write(self.returned, 0u32).map_err(|e| self.blame(fault(e)))?;
            }
            return Err(self.blame(error::WSAEINVAL));
        }
        if self.input_size < input { Err(self.blame(error::WSAEINVAL)) } else { Ok(()) }
    }

    fn mode(&self) -> Result<Mode, i32> {
        if self.overlapped == 0 || !socket::is_overlapped(self.socket) {
            memory::writable(self.returned, 4).map_err(|e| self.blame(fault(e)))?;
            return Ok(Mode::Blocking);
        }
        let check = || {
            if self.returned != 0 {
                memory::writable(self.returned, 4)?;
            }
            memory::writable(self.overlapped, size_of::<Overlapped>())?;
            if self.routine != 0 {
                memory::readable(self.routine, 1)?;
            }
            memory::read::<Overlapped>(self.overlapped)
        };
        let structure = check().map_err(|e| self.blame(fault(e)))?;
        let thread = match self.thread {
            Some(address) => {
                let id: ThreadId = memory::read(address).map_err(|e| self.blame(fault(e)))?;
                wait::thread_of(id).map_or(id, |thread| ThreadId { reserved: thread, ..id })
            }
            None => ThreadId { handle: 0, reserved: wait::this_thread() },
        };
        // SAFETY: a non-null address that is mapped; that a routine of this type is there is the caller's word, and
        // it is only called as one when the program asked for it.
        let routine =
            (self.routine != 0).then(|| unsafe { std::mem::transmute::<usize, CompletionRoutine>(self.routine) });
        if routine.is_none() && structure.event != 0 && !wait::is_event(structure.event) {
            return Err(self.blame(error::WSA_INVALID_HANDLE));
        }
        Ok(Mode::Overlapped(pending::completion(self.overlapped, &structure, routine, thread)))
    }

    /// Done at once: say so in every way the mode has.
    fn done(&self, mode: Mode, bytes: u32) -> Result<(), i32> {
        if self.returned != 0 {
            memory::write(self.returned, bytes).map_err(fault)?;
        }
        if let Mode::Overlapped(completion) = mode {
            completion.begin()?;
            completion.deliver(Ok(bytes));
        }
        Ok(())
    }

    fn use_token(&self, option: i32) -> Result<(), i32> {
        self.check_sizes(TOKEN, self.output_size == 0)?;
        let mode = self.mode()?;
        let token: u64 = memory::read(self.input).map_err(|e| self.blame(fault(e)))?;
        match control::set(self.fd()?, option, &token.to_ne_bytes()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                let fd = socket::descriptor(self.socket)?;
                if option == wire::RELEASE { held::release(token) } else { held::associate(fd, token) }?;
            }
            Err(error) => return Err(error::of_control(&error)),
        }
        self.done(mode, 0)
    }

    fn acquire(&self) -> Result<(), i32> {
        let size = size_of::<Instance>();
        self.check_sizes(size_of::<PortRange>() as u32, self.output_size as usize >= size)?;
        let mode = self.mode()?;
        let range: PortRange = memory::read(self.input).map_err(|e| self.blame(fault(e)))?;
        memory::writable(self.output, size).map_err(|e| self.blame(fault(e)))?;
        let grant = match self.claim(range)? {
            Claimed::Granted(grant) => grant,
            Claimed::Pending(claim) => match mode {
                Mode::Blocking => pending::block(claim)?,
                Mode::Overlapped(completion) => {
                    completion.begin()?;
                    pending::start(Operation::new(claim, self.output, completion, wait::this_thread()))?;
                    return Err(error::WSA_IO_PENDING);
                }
            },
        };
        memory::write(self.output, pending::instance(&grant)).map_err(fault)?;
        self.done(mode, size as u32)
    }

    fn claim(&self, range: PortRange) -> Result<Claimed, i32> {
        let fd = self.fd()?;
        let request =
            AcquireRequest { start: u16::from_be(range.start), count: range.count, ..AcquireRequest::default() };
        let locked = pending::socket_lock(self.socket);
        let waits = match control::acquire(fd, &request) {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                return held::acquire(socket::descriptor(self.socket)?, &request).map(Claimed::Granted);
            }
            Err(error) => return Err(error::of_control(&error)),
        };
        let grant = control::granted(fd).map_err(|error| error::of_control(&error))?;
        drop(locked);
        if !waits || grant.state == wire::ACTIVE {
            return Ok(Claimed::Granted(grant));
        }
        if grant.state == wire::REFUSED {
            let refusal = std::io::Error::from_raw_os_error(i32::from(grant.error));
            return Err(error::of_control(&refusal));
        }
        Claim::new(self.socket, fd, grant).map(Claimed::Pending).map_err(|error| error::of_control(&error))
    }

    fn set_non_blocking(&self) -> Result<(), i32> {
        if self.input_size < 4 {
            return Err(self.blame(error::WSAEFAULT));
        }
        let on = if self.input_size as usize >= size_of::<libc::c_ulong>() {
            memory::read::<usize>(self.input).map(|value| value != 0)
        } else {
            memory::read::<u32>(self.input).map(|value| value != 0)
        };
        let on = on.map_err(|e| self.blame(fault(e)))?;
        socket::set_non_blocking(self.socket, on)?;
        self.plain_done(0)
    }

    fn bytes_to_read(&self) -> Result<(), i32> {
        if self.output_size < 4 {
            return Err(self.blame(error::WSAEFAULT));
        }
        let count = socket::bytes_to_read(self.socket)?;
        let wide = self.output_size as usize >= size_of::<libc::c_ulong>();
        let written = if wide { memory::write(self.output, count as usize) } else { memory::write(self.output, count) };
        written.map_err(fault)?;
        self.plain_done(if wide { size_of::<libc::c_ulong>() as u32 } else { 4 })
    }

    fn plain_done(&self, bytes: u32) -> Result<(), i32> {
        let mode = self.mode()?;
        self.done(mode, bytes)
    }
}

enum Claimed {
    Granted(Grant),
    Pending(Claim),
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
        let socket = s;
        Call { socket, code, input, input_size, output, output_size, returned, overlapped, routine, thread: None }.run()
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
    spi::status(error, || {
        let thread = (thread != 0).then_some(thread);
        let socket = s;
        Call { socket, code, input, input_size, output, output_size, returned, overlapped, routine, thread }.run()
    })
}
