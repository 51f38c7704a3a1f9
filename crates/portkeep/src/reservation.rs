//! The guard of a reservation.

use std::{
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use portkeep_core::{Errno, PortList, PortRange, Token, Transport, Transports};

use crate::{
    AssociateError, BindError, Enforcement, Info, PortkeepSocket, QueryError, ReleaseError, Request, control, held,
    query,
    socket::{Kind, new_socket},
};

/// Ports that no outsider can bind: a block, or the blocks of a list. Dropping it ends the reservation.
///
/// It also ends when the last descriptor of its owner socket closes, so it ends after SIGKILL too. Its end does not
/// affect sockets that are already bound. Each of their ports becomes free with its last socket.
///
/// [`AsFd`] gives the owner socket, which is an ordinary unbound TCP or UDP socket.
#[derive(Debug)]
#[must_use = "dropping it ends the reservation"]
pub struct Reservation {
    /// The token of each block.
    tokens: Vec<Token>,
    /// `None` only while the guard is being taken apart.
    owner: Option<OwnedFd>,
    ports: PortList,
    transports: Transports,
    enforcement: Enforcement,
}

/// The parts of a [`Reservation`], for programs that keep it in another form.
#[derive(Debug)]
#[non_exhaustive]
pub struct Parts {
    /// The token of each block.
    pub tokens: Vec<Token>,
    /// The owner socket: with kernel enforcement, the reservation ends when its last descriptor closes. In held mode it
    /// does not depend on the socket, and ends with [`release`] or the process.
    pub owner: OwnedFd,
    /// The ports.
    pub ports: PortList,
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

    /// The token of the reservation. Every process in its scope can associate sockets with it. Of a list, the token of
    /// the first block; [`blocks`](Self::blocks) has the others.
    pub fn token(&self) -> Token {
        self.tokens[0]
    }

    /// The ports, host byte order.
    pub fn ports(&self) -> &PortList {
        &self.ports
    }

    /// The blocks of the ports, lowest first, and the token of each.
    pub fn blocks(&self) -> impl Iterator<Item = (PortRange, Token)> {
        self.ports.blocks().iter().copied().zip(self.tokens.iter().copied())
    }

    /// The transports it is for.
    pub fn transports(&self) -> Transports {
        self.transports
    }

    /// The enforcement that keeps outsiders off the ports.
    pub fn enforcement(&self) -> Enforcement {
        self.enforcement
    }

    /// Its present state: [`QueryError::Ended`] if an administrator has ended it.
    pub fn state(&self) -> Result<Info, QueryError> {
        let each = self.tokens.iter().map(|token| query::block_of(*token)?.ok_or(QueryError::Ended));
        Info::of_blocks(each.collect::<Result<Vec<_>, _>>()?).ok_or(QueryError::Ended)
    }

    /// Let an unbound socket take its port out of this reservation; see [`PortkeepSocket::associate`]. Of a list, out of its
    /// first block.
    pub fn associate(&self, socket: &impl AsFd) -> Result<(), AssociateError> {
        socket.as_fd().associate(self.token())
    }

    /// Associate an unbound socket and bind it; see [`PortkeepSocket::bind_from`]. Of a list, out of the block that has the
    /// port; for port 0 out of the first block with a free one.
    pub fn bind(&self, socket: &impl AsFd, address: SocketAddr) -> Result<u16, BindError> {
        self.in_a_block(address.port(), |token| socket.as_fd().bind_from(token, address))
    }

    /// Bind out of the block that has the port; for port 0 out of the first that is not exhausted.
    pub(crate) fn in_a_block<T>(
        &self,
        port: u16,
        mut bind: impl FnMut(Token) -> Result<T, BindError>,
    ) -> Result<T, BindError> {
        let token = match port {
            0 => None,
            // If no block has the port, the first one refuses it.
            _ => self.blocks().find(|(block, _)| block.contains(port)).map(|(_, token)| token).or(Some(self.token())),
        };
        if let Some(token) = token {
            return bind(token);
        }
        let (last, others) = self.tokens.split_last().expect("there is a block");
        for token in others {
            match bind(*token) {
                Err(BindError::Exhausted) => {}
                bound => return bound,
            }
        }
        bind(*last)
    }

    /// Let other processes bind held ports by number, for example a child that is a server. Without this, only the
    /// functions of this library give out held ports. Where the kernel enforces the reservation, this changes nothing:
    /// its scope decides.
    ///
    /// A TCP port stays bound, with SO_REUSEADDR: programs that set this option, as nearly all servers do, can bind it as
    /// well. A UDP port cannot be shared like this, since either socket could receive, so it is no longer held at all.
    /// Open UDP ports at the last moment.
    pub fn open_held(&self, transports: Transports) -> Result<(), BindError> {
        match self.enforcement {
            Enforcement::Kernel => Ok(()),
            Enforcement::Held => self.tokens.iter().try_for_each(|token| held::open(*token, transports)),
        }
    }

    /// End the reservation, and report whether that succeeded. Dropping does the same and reports nothing.
    ///
    /// In a process that only inherited the guard, the error is [`ReleaseError::NotOwner`]. Its descriptor is closed
    /// nevertheless.
    pub fn release(mut self) -> Result<(), ReleaseError> {
        self.end()
    }

    /// Keep the reservation until the process ends (or somebody calls [`release`] with the token). Returns the token of the
    /// first block.
    pub fn leak(self) -> Token {
        let parts = self.into_parts();
        std::mem::forget(parts.owner);
        parts.tokens[0]
    }

    /// Take the guard apart. The reservation goes on as long as the owner socket is open somewhere.
    pub fn into_parts(mut self) -> Parts {
        let owner = self.owner.take().expect("only taking it apart takes it away");
        let (tokens, ports) = (std::mem::take(&mut self.tokens), self.ports.clone());
        Parts { tokens, owner, ports, transports: self.transports, enforcement: self.enforcement }
    }

    /// Make a guard from its parts.
    pub fn from_parts(parts: Parts) -> Self {
        let Parts { tokens, owner, ports, transports, enforcement } = parts;
        Self { tokens, owner: Some(owner), ports, transports, enforcement }
    }

    /// Add another block of the same list, on the same owner socket. From now on it ends with this guard.
    pub(crate) fn add(&mut self, other: Self) {
        let other = other.into_parts();
        let mut blocks: Vec<(PortRange, Token)> =
            self.blocks().chain(other.ports.blocks().iter().copied().zip(other.tokens)).collect();
        blocks.sort_by_key(|(block, _)| *block);
        let all = blocks.iter().map(|(block, _)| *block);
        self.ports = PortList::new(all).expect("blocks of a list are apart");
        self.tokens = blocks.into_iter().map(|(_, token)| token).collect();
    }

    /// A guard for an owner socket and token that came from elsewhere: another process, a C library.
    ///
    /// In another process than the owner, dropping it only closes this descriptor.
    pub fn adopt(owner: OwnedFd, token: Token) -> Result<Self, QueryError> {
        let enforcement = if held::holds(token) { Enforcement::Held } else { Enforcement::Kernel };
        let Info { ports, blocks, transports, .. } = query::lookup(token)?.ok_or(QueryError::Ended)?;
        let shown: Option<Vec<Token>> = blocks.iter().map(|block| block.token).collect();
        // A process that has the token of one block can see those of the others. One block needs only this one.
        let tokens = shown.unwrap_or_else(|| vec![token]);
        Ok(Self::from_parts(Parts { tokens, owner, ports, transports, enforcement }))
    }

    fn end(&mut self) -> Result<(), ReleaseError> {
        let Some(owner) = self.owner.take() else { return Ok(()) };
        let mut outcome = Ok(());
        for token in &self.tokens {
            let ended = match self.enforcement {
                // Closing alone is not enough: a child that was just forked may have a copy until it execs.
                Enforcement::Kernel => control::release(&owner, *token).map_err(name),
                Enforcement::Held => held::give_up(*token),
            };
            // All of them end; the first failure is reported.
            outcome = outcome.and(ended);
        }
        outcome
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

/// End a reservation of this process by its token. Of a list, the block of this token.
pub fn release(token: Token) -> Result<(), ReleaseError> {
    if held::holds(token) {
        return held::release(token);
    }
    let through = |transport| {
        let socket = new_socket(transport, Kind::Any).map_err(|source| ReleaseError::ReleaseCall { source })?;
        control::release(&socket, token).map_err(name)
    };
    // Any socket of the process works if it has the right transport. The token does not show which that is.
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
