//! How the end of an overlapped operation reaches the program: the overlapped
//! structure itself, an event, or a routine in the issuing thread.

use crate::{
    abi::{CompletionRoutine, Handle, Overlapped, STATUS_PENDING, ThreadId},
    error, memory, upcall,
    wait::{self, Apc},
};

#[derive(Clone, Copy, Debug)]
pub(crate) enum Notice {
    Nothing,
    Event(Handle),
    Routine(CompletionRoutine, ThreadId),
}

/// With a routine, `hEvent` belongs to the program, and its value is ignored.
fn notice(overlapped: &Overlapped, routine: Option<CompletionRoutine>, thread: ThreadId) -> Notice {
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

pub(crate) fn code_of(status: usize) -> i32 {
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
    /// How an operation of the structure at this address reports that it is done.
    pub(crate) fn new(at: usize, structure: &Overlapped, routine: Option<CompletionRoutine>, thread: ThreadId) -> Self {
        Self { overlapped: at, notice: notice(structure, routine, thread) }
    }

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
        self.perform(0, bytes);
        Ok(())
    }

    /// The operation is over. The status is the last word written: a thread that sees it also sees the rest.
    pub(crate) fn deliver(self, result: Result<u32, i32>) {
        let (code, bytes) = match result {
            Ok(bytes) => (0, bytes),
            Err(code) => (code, 0),
        };
        // The structure must live until now; a program that freed it early gets no answer, and does not crash.
        let _ = memory::write_late(internal_high(self.overlapped), bytes as usize);
        let _ = memory::write_late(internal(self.overlapped), status_of(code));
        self.perform(code, bytes);
    }

    fn perform(self, code: i32, bytes: u32) {
        match self.notice {
            Notice::Nothing => {}
            Notice::Event(event) => {
                let _ = wait::change_event(event, true);
            }
            Notice::Routine(routine, thread) => {
                let apc = Apc::Completion { routine, error: code as u32, bytes, overlapped: self.overlapped };
                upcall::queue_apc(thread, apc);
            }
        }
    }
}
