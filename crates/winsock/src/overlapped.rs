//! How the end of an overlapped operation reaches the program: the overlapped
//! structure itself, an event, or a routine in the issuing thread.

use crate::{
    abi::{CompletionRoutine, Handle, Overlapped, STATUS_PENDING, Socket, ThreadId},
    error, memory, spi,
    wait::{self, Apc},
};

#[derive(Clone, Copy, Debug)]
pub(crate) enum Notice {
    Nothing,
    Event(Handle),
    Routine(CompletionRoutine, ThreadId),
}

/// With a routine `hEvent` is the program's own, whatever is in it.
pub(crate) fn notice(overlapped: &Overlapped, routine: Option<CompletionRoutine>, thread: ThreadId) -> Notice {
    match routine {
        Some(routine) => Notice::Routine(routine, thread),
        None if overlapped.event != 0 => Notice::Event(overlapped.event),
        None => Notice::Nothing,
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    /// Address of the caller's structure.
    pub(crate) overlapped: usize,
    pub(crate) notice: Notice,
}

const STATUS_CANCELLED: u32 = 0xc000_0120;
/// NTSTATUS of a Win32 error: severity "error", facility 7.
const STATUS_OF_WIN32: u32 = 0xc007_0000;

fn status_of(code: i32) -> usize {
    match code {
        0 => 0,
        error::WSA_OPERATION_ABORTED => STATUS_CANCELLED as usize,
        code => (STATUS_OF_WIN32 | code.unsigned_abs()) as usize,
    }
}

fn code_of(status: usize) -> i32 {
    match status as u32 {
        0 => 0,
        STATUS_CANCELLED => error::WSA_OPERATION_ABORTED,
        status => (status & 0xffff) as i32,
    }
}

fn internal(at: usize) -> usize {
    at + std::mem::offset_of!(Overlapped, internal)
}

fn internal_high(at: usize) -> usize {
    at + std::mem::offset_of!(Overlapped, internal_high)
}

impl Completion {
    /// Before the operation can complete: mark it pending and reset the event.
    pub(crate) fn begin(&self) -> Result<(), i32> {
        memory::write(internal(self.overlapped), STATUS_PENDING).map_err(|_| error::WSAEFAULT)?;
        match self.notice {
            Notice::Event(event) => wait::change_event(event, false),
            _ => Ok(()),
        }
    }

    /// The operation was done at once, in the call that started it.
    pub(crate) fn deliver_at_once(self, bytes: u32) -> Result<(), i32> {
        let memory = memory::Memory::default();
        let fault = |_| error::WSAEFAULT;
        memory.write(internal_high(self.overlapped), bytes as usize).map_err(fault)?;
        memory.write(internal(self.overlapped), 0usize).map_err(fault)?;
        self.tell(0, bytes);
        Ok(())
    }

    /// The operation is over. The status is the last word written: whoever sees it sees the rest.
    pub(crate) fn deliver(self, result: Result<u32, i32>) {
        let (code, bytes) = match result {
            Ok(bytes) => (0, bytes),
            Err(code) => (code, 0),
        };
        // The structure must live until now; a program that freed it early gets no answer, and does not crash.
        let _ = memory::write_late(internal_high(self.overlapped), bytes as usize);
        let _ = memory::write_late(internal(self.overlapped), status_of(code));
        self.tell(code, bytes);
    }

    fn tell(self, code: i32, bytes: u32) {
        match self.notice {
            Notice::Nothing => {}
            Notice::Event(event) => {
                let _ = wait::change_event(event, true);
            }
            Notice::Routine(routine, thread) => {
                let apc = Apc::Completion { routine, error: code as u32, bytes, overlapped: self.overlapped };
                spi::queue_apc(thread, apc);
            }
        }
    }
}

pub(crate) fn result(socket: Socket, at: usize, bytes: usize, may_wait: bool, flags: usize) -> Result<(), i32> {
    crate::startup::check()?;
    if !crate::socket::is_socket(socket) {
        return Err(error::WSAENOTSOCK);
    }
    let fault = |_| error::WSAEFAULT;
    memory::writable(bytes, 4).map_err(fault)?;
    memory::writable(flags, 4).map_err(fault)?;
    let mut overlapped: Overlapped = memory::read(at).map_err(fault)?;
    if overlapped.internal == STATUS_PENDING {
        if !may_wait {
            return Err(error::WSA_IO_INCOMPLETE);
        }
        if overlapped.event != 0 && !wait::is_event(overlapped.event) {
            return Err(error::WSA_INVALID_HANDLE);
        }
        crate::pending::wait_for(at);
        overlapped = memory::read(at).map_err(fault)?;
        if overlapped.internal == STATUS_PENDING {
            // Never started by us: waiting longer would be waiting for ever.
            return Err(error::WSA_INVALID_PARAMETER);
        }
    }
    match code_of(overlapped.internal) {
        0 => {
            memory::write(flags, 0u32).map_err(fault)?;
            memory::write(bytes, overlapped.internal_high as u32).map_err(fault)
        }
        code => Err(code),
    }
}

/// `WSAGetOverlappedResult`.
#[unsafe(no_mangle)]
pub extern "C" fn WSAGetOverlappedResult(s: Socket, overlapped: usize, bytes: usize, wait: i32, flags: usize) -> i32 {
    crate::truth(|| result(s, overlapped, bytes, wait != 0, flags))
}

/// `GetOverlappedResult`: the same for a socket as a handle.
#[unsafe(no_mangle)]
pub extern "C" fn GetOverlappedResult(handle: Handle, overlapped: usize, bytes: usize, wait: i32) -> i32 {
    let mut flags = 0u32;
    crate::truth(|| {
        result(handle, overlapped, bytes, wait != 0, &raw mut flags as usize).map_err(|code| match code {
            error::WSAENOTSOCK => error::WSA_INVALID_HANDLE,
            code => code,
        })
    })
}
