//! Claiming the blocks of a request.

use std::{
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
};

use portkeep_core::{Errno, PortRange, Token, persistent::Audience};
use socket2::Socket;

use crate::{
    AcquireError, Enforcement, Pending, QueryError, Request, Require, Reservation, control, held, query,
    reservation::Parts,
    socket::{Kind, new_socket, transport_of},
};

impl Request {
    /// Claim the block without waiting for the agent.
    ///
    /// Most requests are decided at once, and so is the [`Pending`] they give. The others are pending: other requests
    /// cannot have the ports, and the agent checks whether a socket has one. A bind of one of them still succeeds, and
    /// then the request is refused.
    pub fn start(&self) -> Result<Pending, AcquireError> {
        let blocks = self.blocks()?;
        let owner = new_socket(self.transport, Kind::Any).map_err(|source| AcquireError::SocketCall { source })?;
        Self::start_all(&blocks, owner)
    }

    /// As [`start`](Self::start), with a socket that exists already as the owner socket.
    ///
    /// The reservation lives as long as this socket, so pass a duplicate to keep your own descriptor. One socket can
    /// own 128 reservations, and each block of a list is one. Several requests on it may be pending at once, in any
    /// threads of one process.
    pub fn start_on(&self, owner: OwnedFd) -> Result<Pending, AcquireError> {
        let blocks = self.blocks()?;
        let owner = Socket::from(owner);
        match transport_of(&owner) {
            Ok(Some(transport)) if self.transports().contains(transport) => {
                // A request is two calls, ACQUIRE and GRANTED: no other request on this socket may come between them.
                static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
                let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
                Self::start_all(&blocks, owner)
            }
            Ok(_) => Err(AcquireError::WrongSocket),
            Err(source) => Err(AcquireError::SocketCall { source }),
        }
    }

    /// Claim each block, or give back those that were claimed.
    fn start_all(blocks: &[Self], owner: Socket) -> Result<Pending, AcquireError> {
        let (first, others) = blocks.split_first().expect("a list has a block");
        if !others.is_empty() {
            // Check first which blocks are reserved. Otherwise a list that is refused would exist in part for a moment.
            blocks.iter().try_for_each(|block| block.check_reserved(&owner))?;
        }
        // Each of the others has its own descriptor of the owner socket, until all are joined.
        let copy = || owner.try_clone().map_err(|source| AcquireError::SocketCall { source });
        let copies: Vec<Socket> = others.iter().map(|_| copy()).collect::<Result<_, _>>()?;
        let mut pending = first.start_one(owner)?;
        for (block, owner) in others.iter().zip(copies) {
            pending.add(block.start_one(owner)?);
        }
        Ok(pending)
    }

    fn check_reserved(&self, owner: &Socket) -> Result<(), AcquireError> {
        let (ports, transports) = (self.block()?, self.transports());
        match query::conflict(owner, ports, transports) {
            Some(by) if self.require != Require::Held => Err(AcquireError::InUse { ports, transports, by: Some(by) }),
            _ => Ok(()),
        }
    }

    fn start_one(&self, owner: Socket) -> Result<Pending, AcquireError> {
        let kernel = match self.require {
            Require::Held => false,
            Require::Any | Require::Kernel => match query::version_of(&owner) {
                Ok(_) => true,
                Err(QueryError::KernelAbsent) if self.require == Require::Any => false,
                Err(QueryError::KernelAbsent) => return Err(AcquireError::KernelAbsent),
                Err(QueryError::OtherAbi { found, expected }) => {
                    return Err(AcquireError::OtherAbi { found, expected });
                }
                Err(QueryError::QueryCall { source }) => return Err(AcquireError::AcquireCall { source }),
                Err(QueryError::NotTcpOrUdp | QueryError::Ended) => return Err(AcquireError::WrongSocket),
            },
        };
        let transports = self.transports();
        if !kernel {
            let asker = query::asker().ok();
            let pool = asker.as_ref().and_then(|(_, version)| version.pool);
            let (token, ports) = held::acquire(self, pool).map_err(|error| match (error, asker) {
                (AcquireError::InUse { ports, transports, .. }, Some((socket, _))) => {
                    AcquireError::InUse { ports, transports, by: query::conflict(&socket, ports, transports) }
                }
                (error, _) => error,
            })?;
            let enforcement = Enforcement::Held;
            let (tokens, ports) = (vec![token], ports.into());
            let parts = Parts { tokens, owner: owner.into(), ports, transports, enforcement };
            return Ok(Pending::decided(Reservation::from_parts(parts)));
        }
        let also: Vec<_> = self.also.iter().filter_map(Audience::to_also).collect();
        let wait = match control::acquire_also(&owner, &self.to_wire(), &also) {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS.0) => true,
            Err(error) => return Err(self.refusal(error, &owner)),
        };
        let grant = control::granted(&owner).map_err(|source| AcquireError::AcquireCall { source })?;
        let (Some(token), Ok(ports)) = (Token::new(grant.token), PortRange::new(grant.start, grant.count)) else {
            return Err(AcquireError::Cancelled);
        };
        let enforcement = Enforcement::Kernel;
        let (tokens, ports) = (vec![token], ports.into());
        let reservation =
            Reservation::from_parts(Parts { tokens, owner: owner.into(), ports, transports, enforcement });
        if wait { Pending::granted(reservation, &grant) } else { Ok(Pending::decided(reservation)) }
    }
}
