//! One error type per action, each variant with what to do about it.
//!
//! Each has its error number ([`AcquireError::errno`] and so on), and `?` turns
//! it into an [`io::Error`] of the kind that this number has. So the callers of a
//! function that returns `io::Result` can still check for
//! `ErrorKind::AddrInUse`.

use std::{fmt, io};

use portkeep_core::{
    AlignError, Errno, ParsePortsError, PortRange, PortRangeError, Transport, Transports, persistent::AudienceError,
};

use crate::info::{Info, Owner, State};

fn raw(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno)
}

/// An error of the kind that the number has.
pub(crate) fn with_kind(errno: Option<Errno>, error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    let kind = errno.map_or(io::ErrorKind::Other, |errno| io::Error::from_raw_os_error(errno.0).kind());
    io::Error::new(kind, error)
}

macro_rules! into_io {
    ($($error:ty),*) => {$(
        impl From<$error> for io::Error {
            /// Keeps the kind of the error number; the error itself is inside (`get_ref`, `downcast`).
            fn from(error: $error) -> Self {
                with_kind(error.errno(), error)
            }
        }
    )*};
}

into_io!(AcquireError, ReleaseError, AssociateError, BindError, ConnectError, QueryError);

/// An error in the request itself. Found before the kernel is asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedRequest {
    /// The number of ports is 0, or the block ends after 65535. Ask for fewer ports, or start lower.
    #[error(transparent)]
    Block(#[from] PortRangeError),
    /// The alignment is not a power of two, or the start is not a multiple of it.
    #[error(transparent)]
    Align(#[from] AlignError),
    /// The text is no list of ports: write `80,443`, `5000-5019` or a name of /etc/services.
    #[error(transparent)]
    Ports(#[from] ParsePortsError),
    /// A private ephemeral range is one block, not a list, because the kernel draws from one block. Request the other
    /// blocks separately.
    #[error("a private ephemeral range has to be one block, not several; reserve the others by a second request")]
    RangeOfBlocks,
    /// A private ephemeral range is for sockets that are not associated, and a strict reservation is for associated
    /// sockets. Choose one.
    #[error("a reservation cannot be strict and a private ephemeral range at once")]
    StrictRange,
    /// Others that cannot be admitted: more than four, one of them twice, or one that is no user, group or unit.
    #[error(transparent)]
    Others(#[from] AudienceError),
    /// The label has a zero byte or more than 24 bytes: shorten it.
    #[error("a label has at most 24 bytes and no zero among them, unlike {0:?}")]
    Label(String),
}

/// Why there is no reservation. After each of these errors, nothing stays reserved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// `EINVAL`: the request makes no sense. A bug in the program.
    #[error("the request is malformed")]
    Malformed(#[from] MalformedRequest),
    /// `EINVAL`: the cgroup of the scope is neither the caller's own nor one above it. Name one that is.
    #[error("the cgroup of the scope is not the caller's nor one above it")]
    ForeignCgroup,
    /// `EADDRINUSE`: a port of the block asked for is reserved or in use. Ask for other
    /// ports, or end the reservation or the socket that has them.
    #[error("{}", Conflict(.ports, .transports, .by))]
    InUse {
        /// The block asked for.
        ports: PortRange,
        /// Its transports.
        transports: Transports,
        /// The reservation that has the port. `None` if a socket without a reservation has it, or if the reservation
        /// has ended.
        by: Option<Box<Info>>,
    },
    /// `ENOSPC`: the pool has no free run of that length. Ask for fewer ports, release some, or
    /// let the administrator enlarge the pool.
    #[error("no {count} consecutive ports are free in the pool")]
    NoRoom {
        /// How many were asked for.
        count: u16,
    },
    /// `EDQUOT`: the user holds as many ports as it may, or the owner socket owns 128
    /// reservations already. Release some.
    #[error(
        "more than the port quota of this user, or than 128 reservations of one socket; see `quota` in portkeep.toml(5)"
    )]
    OverQuota,
    /// `EEXIST`: the processes of this scope have a private ephemeral range for this transport already. Release that one
    /// first, or ask with a narrower scope.
    #[error("the processes of this scope have a private ephemeral range already (see `portkeep list`)")]
    SecondRange,
    /// `EACCES`: the block has privileged ports. Run as root, or let the administrator allow it.
    #[error("privileged ports need a right this process does not have")]
    Privileged,
    /// `ENETDOWN`: the agent has to confirm a block outside the pool, and no agent runs. Start
    /// it (`portkeep agent`), or reserve ports of the pool.
    #[error("ports outside the pool need the agent, which is not running")]
    AgentAbsent,
    /// `ENETDOWN`: the agent runs but could not check whether the ports are free. Its log says why. Reserve ports of
    /// the pool, or solve the problem and try again.
    #[error("the agent could not find out whether the ports are vacant; its log says why")]
    AgentFailed,
    /// `ETIMEDOUT`: the agent runs but has not answered in time: it hangs, or was stopped. Its log may say why. Restart
    /// it (`systemctl restart portkeep`), or reserve ports of the pool.
    #[error("the agent does not answer ({} s)", .limit.as_secs_f32())]
    AgentSilent {
        /// How long the request waited.
        limit: std::time::Duration,
    },
    /// `EINTR`: a signal ended the wait for the agent. Try again, unless this signal is meant to end the program.
    #[error("a signal came before the agent had answered")]
    Interrupted,
    /// `ECANCELED`: the request was cancelled, or an administrator ended it while it was pending.
    #[error("the request was cancelled")]
    Cancelled,
    /// `ENOPROTOOPT`: kernel enforcement is not up, and the request requires it. Bring it up (`portkeep
    /// up`), or accept [`crate::Require::Any`].
    #[error("kernel enforcement is not up here")]
    KernelAbsent,
    /// `ENOPROTOOPT`: the BPF programs have another version. Upgrade whichever is older.
    #[error("the BPF programs have version {found} of the control codes, this library has version {expected}")]
    OtherAbi {
        /// The version of the BPF programs.
        found: u32,
        /// The library's.
        expected: u32,
    },
    /// `EOPNOTSUPP`: this requires kernel enforcement. Bring it up, or ask for less.
    #[error("{what} requires kernel enforcement")]
    HeldCannot {
        /// The part of the request that requires it.
        what: &'static str,
    },
    /// `EMFILE`: held mode requires a descriptor for each port and transport, and the limit is too low for this block.
    /// Raise it (`ulimit -n`), ask for fewer ports, or bring kernel enforcement up, which requires one for all.
    #[error(
        "holding {count} ports requires a descriptor for each, more than the limit of open files leaves (`ulimit -n`)"
    )]
    TooManyFiles {
        /// How many ports were asked for.
        count: u16,
    },
    /// `EOPNOTSUPP`: the owner socket given is neither TCP nor UDP, or not of the request's transport.
    #[error("the owner socket is not of the transport asked for")]
    WrongSocket,
    /// Making or binding a socket failed.
    #[error("making a socket")]
    SocketCall {
        /// The error of the call.
        source: io::Error,
    },
    /// ACQUIRE failed for another reason.
    #[error("acquiring a reservation")]
    AcquireCall {
        /// The error of the call.
        source: io::Error,
    },
}

impl AcquireError {
    /// The error number. `None` if the failed system call reported none.
    pub fn errno(&self) -> Option<Errno> {
        Some(match self {
            Self::Malformed(_) | Self::ForeignCgroup => Errno::EINVAL,
            Self::InUse { .. } => Errno::EADDRINUSE,
            Self::NoRoom { .. } => Errno::ENOSPC,
            Self::OverQuota => Errno::EDQUOT,
            Self::SecondRange => Errno::EEXIST,
            Self::Privileged => Errno::EACCES,
            Self::AgentAbsent | Self::AgentFailed => Errno::ENETDOWN,
            Self::TooManyFiles { .. } => Errno(libc::EMFILE),
            Self::AgentSilent { .. } => Errno(libc::ETIMEDOUT),
            Self::Interrupted => Errno::EINTR,
            Self::Cancelled => Errno::ECANCELED,
            Self::KernelAbsent | Self::OtherAbi { .. } => Errno::ENOPROTOOPT,
            Self::HeldCannot { .. } | Self::WrongSocket => Errno::EOPNOTSUPP,
            Self::SocketCall { source } | Self::AcquireCall { source } => return raw(source),
        })
    }
}

struct Conflict<'a>(&'a PortRange, &'a Transports, &'a Option<Box<Info>>);

impl fmt::Display for Conflict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(ports, transports, by) = *self;
        match by.as_ref().and_then(|info| Some((info, info.overlap(*ports, *transports)?))) {
            Some((info, (port, transport))) => {
                let verb = if info.state == State::Pending { "is being requested by" } else { "belongs to" };
                write!(f, "{port}/{transport} {verb} {}", Owner(info))
            }
            None => write!(f, "a socket of another process has a port of {ports}/{transports}"),
        }
    }
}

/// Why a reservation could not be released.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// `ENOENT`: no such reservation; it may have ended already. Usually nothing needs to be done.
    #[error("no such reservation, or it has already ended")]
    Unknown,
    /// `EPERM`: only the owner process can release. A process that inherited the owner socket
    /// can only close it.
    #[error("the reservation belongs to another process")]
    NotOwner,
    /// `EINVAL`: the reservation is in another network namespace. Release it from there.
    #[error("the reservation is in another network namespace")]
    OtherNamespace,
    /// `ENOPROTOOPT`: kernel enforcement is not up, and this process holds nothing under that token.
    #[error("kernel enforcement is not up here")]
    KernelAbsent,
    /// RELEASE failed for another reason.
    #[error("releasing a reservation")]
    ReleaseCall {
        /// The error of the call.
        source: io::Error,
    },
}

impl ReleaseError {
    /// The error number. `None` if the failed system call reported none.
    pub fn errno(&self) -> Option<Errno> {
        Some(match self {
            Self::Unknown => Errno::ENOENT,
            Self::NotOwner => Errno::EPERM,
            Self::OtherNamespace => Errno::EINVAL,
            Self::KernelAbsent => Errno::ENOPROTOOPT,
            Self::ReleaseCall { source } => return raw(source),
        })
    }
}

/// Why a socket could not be associated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AssociateError {
    /// `ENOENT`: no such reservation. Acquire a new one.
    #[error("no such reservation, or it has already ended")]
    Unknown,
    /// `EPERM`: this process is not in the reservation's scope. Acquire with a wider
    /// [`crate::Scope`], or associate in the owner process and pass the socket on.
    #[error("this process is outside the scope of the reservation")]
    NotInScope,
    /// `EINVAL`: the socket already has a port. Associate before `bind` and `connect`.
    #[error("the socket is already bound")]
    AlreadyBound,
    /// `EINVAL`: the reservation is of the other transport, or of another network namespace.
    #[error("the reservation is of another transport or network namespace than the socket")]
    Mismatch,
    /// `EOPNOTSUPP`: the socket is neither TCP nor UDP (MPTCP counts as neither).
    #[error("only TCP and UDP sockets can be associated")]
    NotTcpOrUdp,
    /// `EOPNOTSUPP`: the reservation is only held, so an association would have no effect on a
    /// later `bind`. Use [`crate::PortkeepSocket::bind_from`], which associates and binds.
    #[error("a held reservation cannot be associated; bind with bind_from")]
    Held,
    /// `ENOPROTOOPT`: kernel enforcement is not up, and this process holds nothing under that token.
    #[error("kernel enforcement is not up here")]
    KernelAbsent,
    /// ASSOCIATE failed for another reason.
    #[error("associating a socket")]
    AssociateCall {
        /// The error of the call.
        source: io::Error,
    },
}

impl AssociateError {
    /// The error number. `None` if the failed system call reported none.
    pub fn errno(&self) -> Option<Errno> {
        Some(match self {
            Self::Unknown => Errno::ENOENT,
            Self::NotInScope => Errno::EPERM,
            Self::AlreadyBound | Self::Mismatch => Errno::EINVAL,
            Self::NotTcpOrUdp | Self::Held => Errno::EOPNOTSUPP,
            Self::KernelAbsent => Errno::ENOPROTOOPT,
            Self::AssociateCall { source } => return raw(source),
        })
    }
}

/// Why no socket could be bound to a port of the reservation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// `EADDRINUSE`: every port of the block has a socket. Close one, or acquire more.
    #[error("every port of the reservation is in use")]
    Exhausted,
    /// `EADDRINUSE`: that port of the block has a socket. Bind another one, or port 0.
    #[error("port {port} of the reservation is in use")]
    InUse {
        /// The port asked for.
        port: u16,
    },
    /// `EACCES`: that port is not in the block. A bug in the program.
    #[error("port {port} is outside the reservation")]
    OutsideBlock {
        /// The port asked for.
        port: u16,
    },
    /// `EACCES`: the reservation ended between the association and the bind. Acquire a new one.
    #[error("the reservation has ended")]
    Ended,
    /// `EINVAL`: the reservation is not for this transport. Acquire with [`crate::Request::both`].
    #[error("the reservation is not for {transport}")]
    OtherTransport {
        /// The transport asked for.
        transport: Transport,
    },
    /// The socket could not be associated.
    #[error(transparent)]
    Associate(#[from] AssociateError),
    /// The bind failed for another reason, such as an address that is not local.
    #[error("binding a socket")]
    BindCall {
        /// The error of the call.
        source: io::Error,
    },
}

impl BindError {
    /// The error number. `None` if the failed system call reported none.
    pub fn errno(&self) -> Option<Errno> {
        Some(match self {
            Self::Exhausted | Self::InUse { .. } => Errno::EADDRINUSE,
            Self::OutsideBlock { .. } | Self::Ended => Errno::EACCES,
            Self::OtherTransport { .. } => Errno::EINVAL,
            Self::Associate(error) => return error.errno(),
            Self::BindCall { source } => return raw(source),
        })
    }
}

/// Why a connection from a port of the reservation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The socket got no port of the reservation.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The peer did not answer or refused, as with any connection.
    #[error("connecting to {peer}")]
    ConnectCall {
        /// The peer's address.
        peer: std::net::SocketAddr,
        /// The error of the call.
        source: io::Error,
    },
}

impl ConnectError {
    /// The error number. `None` if the failed system call reported none.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Bind(error) => error.errno(),
            Self::ConnectCall { source, .. } => raw(source),
        }
    }
}

/// Why a query failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// `ENOPROTOOPT`: kernel enforcement is not up. Bring it up (`portkeep up`).
    #[error("kernel enforcement is not up here")]
    KernelAbsent,
    /// `ENOPROTOOPT`: the BPF programs have another version. Upgrade whichever is older.
    #[error("the BPF programs have version {found} of the control codes, this library has version {expected}")]
    OtherAbi {
        /// The version of the BPF programs.
        found: u32,
        /// The library's.
        expected: u32,
    },
    /// `EOPNOTSUPP`: the socket is neither TCP nor UDP, so no query can use it.
    #[error("only TCP and UDP sockets can be asked")]
    NotTcpOrUdp,
    /// `ENOENT`: the reservation has ended.
    #[error("the reservation has ended")]
    Ended,
    /// The query failed for another reason.
    #[error("asking the BPF programs")]
    QueryCall {
        /// The error of the call.
        source: io::Error,
    },
}

impl QueryError {
    /// The error number. `None` if the failed system call reported none.
    pub fn errno(&self) -> Option<Errno> {
        Some(match self {
            Self::KernelAbsent | Self::OtherAbi { .. } => Errno::ENOPROTOOPT,
            Self::NotTcpOrUdp => Errno::EOPNOTSUPP,
            Self::Ended => Errno::ENOENT,
            Self::QueryCall { source } => return raw(source),
        })
    }

    pub(crate) fn from_call(source: io::Error) -> Self {
        match raw(&source) {
            Some(Errno::ENOPROTOOPT) => Self::KernelAbsent,
            Some(Errno::EOPNOTSUPP) => Self::NotTcpOrUdp,
            _ => Self::QueryCall { source },
        }
    }
}

#[cfg(test)]
mod tests;
