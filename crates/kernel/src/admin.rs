//! The administrator's door: few changes, done by a program in the kernel.

use std::path::Path;

use aya::programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions};
use portkeep_core::{Errno, Token, Transport};
use zerocopy::{Immutable, IntoBytes};

/// Mirror of `struct admin_request`.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Request {
    padding: [u8; 16],
    op: u32,
    id: u32,
    token: u64,
    netns: u64,
    start: u16,
    transport: u8,
    zero: u8,
    error: u32,
}

const CONFIRM: u32 = 1;
const REFUSE: u32 = 2;
const END: u32 = 3;
const ASIDE: u32 = 4;
const UNASIDE: u32 = 5;

/// Why an administrator's change was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The kernel part answered with this. ENOENT: there is no such thing (any more).
    #[error("the kernel part answers {0}")]
    Refused(Errno),
    /// The program could not be run.
    #[error("running the administrator's program")]
    Call(#[from] ProgramError),
}

impl AdminError {
    /// The error number, if the kernel part gave one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(errno) => Some(*errno),
            Self::Call(_) => None,
        }
    }
}

/// The administrator's door. Whoever could open the pinned program may do all of this.
pub struct Admin {
    program: SchedClassifier,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

impl Admin {
    pub(crate) fn from_program(program: &SchedClassifier) -> Result<Self, ProgramError> {
        let program = SchedClassifier::from_program_info(program.info()?, crate::load::ADMIN.into())?;
        Ok(Self { program })
    }

    pub(crate) fn from_pin(path: &Path) -> Result<Self, ProgramError> {
        Ok(Self { program: SchedClassifier::from_pin(path)? })
    }

    fn run(&self, request: Request) -> Result<(), AdminError> {
        let options = TestRunOptions { data_in: Some(request.as_bytes()), ..TestRunOptions::new() };
        match self.program.test_run(options)?.return_value {
            0 => Ok(()),
            errno => Err(AdminError::Refused(Errno(errno as i32))),
        }
    }

    /// A pending reservation is vacant and shall be in force.
    pub fn confirm(&self, id: u32, token: Token) -> Result<(), AdminError> {
        self.run(Request { op: CONFIRM, id, token: token.get(), ..EMPTY })
    }

    /// Take a pending reservation back; its owner is told `error`.
    pub fn refuse(&self, id: u32, token: Token, error: Errno) -> Result<(), AdminError> {
        self.run(Request { op: REFUSE, id, token: token.get(), error: error.0.unsigned_abs(), ..EMPTY })
    }

    /// End anybody's reservation. Sockets bound from it keep running (R7).
    pub fn end(&self, id: u32, token: Token) -> Result<(), AdminError> {
        self.run(Request { op: END, id, token: token.get(), ..EMPTY })
    }

    /// A pool port (host byte order) that was in use before `up`: do not give it out.
    pub fn set_aside(&self, netns: u64, transport: Transport, port: u16) -> Result<(), AdminError> {
        self.run(Request { op: ASIDE, netns, transport: transport.bit(), start: port, ..EMPTY })
    }

    /// A port set aside is vacant again.
    pub fn give_back(&self, netns: u64, transport: Transport, port: u16) -> Result<(), AdminError> {
        self.run(Request { op: UNASIDE, netns, transport: transport.bit(), start: port, ..EMPTY })
    }
}

const EMPTY: Request =
    Request { padding: [0; 16], op: 0, id: 0, token: 0, netns: 0, start: 0, transport: 0, zero: 0, error: 0 };
