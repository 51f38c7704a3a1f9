//! The administrator program: it makes a few changes inside the kernel.

use std::path::Path;

use aya::programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions};
use portkeep_core::{Align, Errno, PortRange, Token, Transport, Transports, persistent::Audience, wire};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    audience::{names_hash, parts, wire_of},
    layout::WordKey,
};

/// Mirror of `struct admin_request`.
#[derive(Clone, Copy, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Request {
    padding: [u8; 16],
    op: u32,
    id: u32,
    token: u64,
    netns: u64,
    start: u16,
    count: u16,
    transports: u8,
    scope: u8,
    flags: u8,
    level: u8,
    error: u32,
    uid: u32,
    gid: u32,
    align: u16,
    zero: u16,
    label: [u8; 24],
    limit: u32,
    also: u32,
    account: u64,
}

const CONFIRM: u32 = 1;
const REFUSE: u32 = 2;
const END: u32 = 3;
const ASIDE: u32 = 4;
const UNASIDE: u32 = 5;
const CREATE: u32 = 6;
const CHANGE: u32 = 7;
const LIMIT: u32 = 8;
const FORGET: u32 = 9;
const SEAL: u32 = 10;
const SEAL_QUOTA: u32 = 11;
const AVOID: u32 = 12;

/// A persistent reservation that is requested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// First port, host byte order; 0 for any block of the pool.
    pub start: u16,
    /// Number of ports.
    pub count: u16,
    /// Alignment of the block that is chosen, with `start` 0.
    pub align: Align,
    /// Of which transports.
    pub transports: Transports,
    /// Its audience.
    pub audience: Audience<u32>,
    /// Whether using the ports requires association.
    pub strict: bool,
    /// Whether binds to port 0 of its audience draw from it (E6). Not together with `strict`, and not if the audience
    /// is the administrators or has several members.
    pub ephemeral: bool,
    /// Shown in listings; the kernel keeps 24 bytes of it.
    pub label: String,
}

/// The answer of the BPF programs to a claim.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Created {
    pub(crate) id: u32,
    pub(crate) token: Token,
    pub(crate) start: u16,
}

/// Why a change of an administrator was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The BPF programs returned this. ENOENT: the object does not exist (any more).
    #[error("the BPF programs returned {0}")]
    Refused(Errno),
    /// The program could not be run.
    #[error("running the administrator's program")]
    Call(#[from] ProgramError),
}

impl AdminError {
    /// The error number, if the BPF programs returned one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(errno) => Some(*errno),
            Self::Call(_) => None,
        }
    }
}

/// The administrator program. A process that can open its pin can make all of these changes.
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
        let program = SchedClassifier::from_program_info(program.info()?, crate::object::ADMIN.into())?;
        Ok(Self { program })
    }

    pub(crate) fn from_pin(path: &Path) -> Result<Self, ProgramError> {
        Ok(Self { program: SchedClassifier::from_pin(path)? })
    }

    fn run(&self, request: Request) -> Result<Request, AdminError> {
        self.run_with(request, &[])
    }

    /// Run a request, with the others that it admits behind it.
    fn run_with(&self, request: Request, also: &[wire::Also]) -> Result<Request, AdminError> {
        let asked = [request.as_bytes(), also.as_bytes()].concat();
        let mut answer = asked.clone();
        let options = TestRunOptions { data_in: Some(&asked), data_out: Some(&mut answer), ..TestRunOptions::new() };
        match self.program.test_run(options)?.return_value {
            0 => Ok(Request::read_from_prefix(&answer).map_or(request, |(answer, _)| answer)),
            errno => Err(AdminError::Refused(Errno(errno as i32))),
        }
    }

    /// Claim the block of a persistent reservation in a namespace: it is pending until it is confirmed or ended. If a
    /// bind of one of its ports comes before the confirmation, the bind succeeds.
    pub(crate) fn create(&self, netns: u64, wanted: &Wanted) -> Result<Created, AdminError> {
        let also = also(wanted);
        let request = Request {
            op: CREATE,
            netns,
            start: wanted.start,
            count: wanted.count,
            transports: wanted.transports.bits(),
            align: wanted.align.to_wire(),
            ..of_audience(wanted)
        };
        let answer = self.run_with(request, &also)?;
        let token = Token::new(answer.token).ok_or(AdminError::Refused(Errno::ENOENT))?;
        Ok(Created { id: answer.id, token, start: answer.start })
    }

    /// Change the audience and the label of a persistent reservation, while its ports stay reserved.
    pub(crate) fn change(&self, id: u32, token: Token, wanted: &Wanted) -> Result<(), AdminError> {
        let request = Request { op: CHANGE, id, token: token.get(), ..of_audience(wanted) };
        self.run_with(request, &also(wanted)).map(drop)
    }

    /// The ports of a pending reservation are vacant: put it in force. EADDRINUSE: a bind of one of its ports came
    /// first.
    pub fn confirm(&self, id: u32, token: Token) -> Result<(), AdminError> {
        self.run(Request { op: CONFIRM, id, token: token.get(), ..EMPTY }).map(drop)
    }

    /// Refuse a pending reservation; its owner gets `error`.
    pub fn refuse(&self, id: u32, token: Token, error: Errno) -> Result<(), AdminError> {
        self.run(Request { op: REFUSE, id, token: token.get(), error: error.0.unsigned_abs(), ..EMPTY }).map(drop)
    }

    /// End the reservation of any owner. Sockets bound from it keep running (R7).
    pub fn end(&self, id: u32, token: Token) -> Result<(), AdminError> {
        self.run(Request { op: END, id, token: token.get(), ..EMPTY }).map(drop)
    }

    /// Give a uid a limit of its own: ports it may hold; 0 = the default, `u32::MAX` = none.
    pub fn set_quota_limit(&self, uid: u32, limit: u32) -> Result<(), AdminError> {
        self.run(Request { op: LIMIT, account: uid.into(), limit, ..EMPTY }).map(drop)
    }

    /// Report that words of the port table, for which an account had paid, are removed.
    pub(crate) fn give_back_share(&self, account: u64, words: u32) -> Result<(), AdminError> {
        self.run(Request { op: FORGET, account, limit: words, ..EMPTY }).map(drop)
    }

    /// A word is sealed before it is removed: programs do not touch a sealed word. EADDRINUSE: it is not vacant.
    pub(crate) fn set_word_sealed(&self, key: &WordKey, sealed: bool) -> Result<(), AdminError> {
        let (transports, start) = (key.transport as u8, key.word * 64);
        self.run(Request { op: SEAL, netns: key.netns, transports, start, limit: sealed.into(), ..EMPTY }).map(drop)
    }

    /// An account is sealed before it is removed: nothing can be charged to a sealed account. EADDRINUSE: it holds
    /// something.
    pub(crate) fn set_quota_sealed(&self, account: u64, sealed: bool) -> Result<(), AdminError> {
        self.run(Request { op: SEAL_QUOTA, account, limit: sealed.into(), ..EMPTY }).map(drop)
    }

    /// Pool ports of a namespace that the kernel's automatic choice may give to any process: wildcard requests get them
    /// last. `None`: there are none.
    pub fn avoid(&self, netns: u64, ports: Option<PortRange>) -> Result<(), AdminError> {
        let (start, count) = ports.map_or((0, 0), |ports| (ports.start(), ports.count()));
        self.run(Request { op: AVOID, netns, start, count, ..EMPTY }).map(drop)
    }

    /// A pool port (host byte order) is in use by a socket whose bind no program saw: wildcard requests skip it.
    pub fn set_aside(&self, netns: u64, transport: Transport, port: u16) -> Result<(), AdminError> {
        self.run(Request { op: ASIDE, netns, transports: transport.bit(), start: port, ..EMPTY }).map(drop)
    }

    /// The pool port is no longer in use by such a socket.
    pub fn give_back(&self, netns: u64, transport: Transport, port: u16) -> Result<(), AdminError> {
        self.run(Request { op: UNASIDE, netns, transports: transport.bit(), start: port, ..EMPTY }).map(drop)
    }
}

/// The audience without its first member, which is the scope.
fn also(wanted: &Wanted) -> Vec<wire::Also> {
    parts(&wanted.audience).1.iter().filter_map(Audience::to_also).collect()
}

/// The part of a request that contains the audience of a persistent reservation.
fn of_audience(wanted: &Wanted) -> Request {
    let (scope, uid, gid, level) = wire_of(&wanted.audience);
    let mut flags = if wanted.strict { wire::STRICT as u8 } else { 0 };
    if wanted.ephemeral {
        flags |= wire::EPHEMERAL as u8;
    }
    if wanted.transports == Transports::Both {
        flags |= wire::BOTH as u8;
    }
    let account = names_hash(&wanted.audience);
    let also = also(wanted).len() as u32;
    Request { scope, flags, level, uid, gid, label: wire::label(&wanted.label), also, account, ..EMPTY }
}

const EMPTY: Request = Request {
    padding: [0; 16],
    op: 0,
    id: 0,
    token: 0,
    netns: 0,
    start: 0,
    count: 0,
    transports: 0,
    scope: 0,
    flags: 0,
    level: 0,
    error: 0,
    uid: 0,
    gid: 0,
    align: 0,
    zero: 0,
    label: [0; 24],
    limit: 0,
    also: 0,
    account: 0,
};
