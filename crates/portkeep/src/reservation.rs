//! The guard of a reservation.

use std::{
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use portkeep_core::{Errno, PortRange, Token, Transport, Transports};

use crate::{
    AssociateError, BindError, Enforcement, Info, PortkeepSocket, QueryError, ReleaseError, Request, control, held,
    query,
    socket::{Kind, new_socket},
};

/// A block of ports that nobody else can bind. Dropping it ends the reservation.
///
/// It also ends when the last descriptor of its owner socket closes, so not even SIGKILL leaves it behind. Sockets
/// that are already bound are not disturbed by its end; each of their ports becomes free with its last socket.
///
/// [`AsFd`] gives the owner socket, which is an ordinary unbound TCP or UDP socket.
#[derive(Debug)]
#[must_use = "dropping it ends the reservation"]
pub struct Reservation {
    token: Token,
    /// `None` only while the guard is being taken apart.
    owner: Option<OwnedFd>,
    ports: PortRange,
    transports: Transports,
    enforcement: Enforcement,
}

/// The parts of a [`Reservation`], for those who want to keep it in another form.
#[derive(Debug)]
#[non_exhaustive]
pub struct Parts {
    /// Its name.
    pub token: Token,
    /// The owner socket: in kernel mode the reservation ends when its last descriptor closes. A held one does not
    /// depend on it, and ends with [`release`] or the process.
    pub owner: OwnedFd,
    /// The block.
    pub ports: PortRange,
    /// Its transports.
    pub transports: Transports,
    /// The enforcement against outsiders.
    pub enforcement: Enforcement,
}

impl Reservation {
    /// Begin a request for TCP ports.
    pub fn tcp() -> Request {
        Request::new(Transport::Tcp)
    }

    /// Begin a request for UDP ports.
    pub fn udp() -> Request {
        Request::new(Transport::Udp)
    }

    /// The name of the reservation. Every process in its scope can associate sockets with it.
    pub fn token(&self) -> Token {
        self.token
    }

    /// The block, host byte order.
    pub fn ports(&self) -> PortRange {
        self.ports
    }

    /// The transports it is for.
    pub fn transports(&self) -> Transports {
        self.transports
    }

    /// The enforcement that keeps outsiders off the ports.
    pub fn enforcement(&self) -> Enforcement {
        self.enforcement
    }

    /// How it stands now: [`QueryError::Ended`] if an administrator has ended it.
    pub fn state(&self) -> Result<Info, QueryError> {
        query::lookup(self.token)?.ok_or(QueryError::Ended)
    }

    /// Let an unbound socket take its port out of this reservation; see [`PortkeepSocket::associate`].
    pub fn associate(&self, socket: &impl AsFd) -> Result<(), AssociateError> {
        socket.as_fd().associate(self.token)
    }

    /// Associate an unbound socket and bind it; see [`PortkeepSocket::bind_from`].
    pub fn bind(&self, socket: &impl AsFd, address: SocketAddr) -> Result<u16, BindError> {
        socket.as_fd().bind_from(self.token, address)
    }

    /// Let other processes bind held ports by number, as a child that is a server does. Without this, only the functions of
    /// this library give out held ports. Where the kernel enforces the reservation, this changes nothing: its scope decides.
    ///
    /// A TCP port stays bound, with SO_REUSEADDR: programs that set this option, as nearly all servers do, can bind it as
    /// well. A UDP port cannot be shared like this, since either socket could receive, so it is no longer held at all.
    /// Open UDP ports at the last moment.
    pub fn open_held(&self, transports: Transports) -> Result<(), BindError> {
        match self.enforcement {
            Enforcement::Kernel => Ok(()),
            Enforcement::Held => held::open(self.token, transports),
        }
    }

    /// End the reservation, and hear whether that went well. Dropping does the same without a word.
    ///
    /// In a process that only inherited the guard this is [`ReleaseError::NotOwner`]; its descriptor is closed all the
    /// same.
    pub fn release(mut self) -> Result<(), ReleaseError> {
        self.end()
    }

    /// Keep the reservation until the process ends (or somebody calls [`release`] with the token).
    pub fn leak(self) -> Token {
        let parts = self.into_parts();
        std::mem::forget(parts.owner);
        parts.token
    }

    /// Take the guard apart. The reservation goes on as long as the owner socket is open somewhere.
    pub fn into_parts(mut self) -> Parts {
        let owner = self.owner.take().expect("only taking it apart takes it away");
        let Self { token, ports, transports, enforcement, .. } = self;
        Parts { token, owner, ports, transports, enforcement }
    }

    /// Put a guard together again.
    pub fn from_parts(parts: Parts) -> Self {
        let Parts { token, owner, ports, transports, enforcement } = parts;
        Self { token, owner: Some(owner), ports, transports, enforcement }
    }

    /// A guard for an owner socket and token that came from elsewhere: another process, a C library.
    ///
    /// In another process than the owner, dropping it only closes this descriptor.
    pub fn adopt(owner: OwnedFd, token: Token) -> Result<Self, QueryError> {
        let enforcement = if held::holds(token) { Enforcement::Held } else { Enforcement::Kernel };
        let Info { ports, transports, .. } = query::lookup(token)?.ok_or(QueryError::Ended)?;
        Ok(Self::from_parts(Parts { token, owner, ports, transports, enforcement }))
    }

    fn end(&mut self) -> Result<(), ReleaseError> {
        let Some(owner) = self.owner.take() else { return Ok(()) };
        match self.enforcement {
            // Closing alone would not do: a child forked at the wrong moment may have a copy until it execs.
            Enforcement::Kernel => control::release(&owner, self.token).map_err(name),
            Enforcement::Held => held::give_up(self.token),
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

impl AsFd for Reservation {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.owner.as_ref().expect("only taking it apart takes it away").as_fd()
    }
}

/// End a reservation of this process by its token.
pub fn release(token: Token) -> Result<(), ReleaseError> {
    if held::holds(token) {
        return held::release(token);
    }
    let through = |transport| {
        let socket = new_socket(transport, Kind::Any).map_err(|source| ReleaseError::ReleaseCall { source })?;
        control::release(&socket, token).map_err(name)
    };
    // Any socket of the process will do, as long as it is of the transport; the token does not show which that is.
    match through(Transport::Tcp) {
        Err(ReleaseError::OtherNamespace) => through(Transport::Udp),
        outcome => outcome,
    }
}

fn name(source: std::io::Error) -> ReleaseError {
    match source.raw_os_error().map(Errno) {
        Some(Errno::ENOENT) => ReleaseError::Unknown,
        Some(Errno::EPERM) => ReleaseError::NotOwner,
        Some(Errno::EINVAL) => ReleaseError::OtherNamespace,
        Some(Errno::ENOPROTOOPT) => ReleaseError::KernelAbsent,
        _ => ReleaseError::ReleaseCall { source },
    }
}
