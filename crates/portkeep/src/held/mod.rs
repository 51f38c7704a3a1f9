//! Reservations without kernel enforcement: this process binds the ports itself.
//!
//! A registry of the process has them by token, so that the functions that
//! take a token work with them too. An operation is refused if the program's
//! own `bind(2)` after it requires kernel enforcement: see
//! [`crate::Enforcement::Held`].

mod block;
mod hold;
mod mark;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use portkeep_core::{PortRange, Scope, Token, Transport, Transports};
use socket2::Socket;

use crate::{
    AcquireError, AssociateError, BindError, Info, ReleaseError, Request,
    socket::{local_port, transport_of},
    sys,
};
use block::Block;

fn registry() -> MutexGuard<'static, HashMap<Token, Block>> {
    static REGISTRY: OnceLock<Mutex<HashMap<Token, Block>>> = OnceLock::new();
    REGISTRY.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the token names a held reservation of this process.
pub(crate) fn holds(token: Token) -> bool {
    registry().contains_key(&token)
}

pub(crate) fn info(token: Token) -> Option<Info> {
    registry().get(&token).map(|block| block.info(token))
}

pub(crate) fn acquire(request: &Request, pool: Option<PortRange>) -> Result<(Token, PortRange), AcquireError> {
    if request.scope != Scope::Process {
        return Err(AcquireError::HeldCannot { what: "a scope wider than the process" });
    }
    if !request.also.is_empty() {
        return Err(AcquireError::HeldCannot { what: "others beside the process" });
    }
    if request.ephemeral {
        return Err(AcquireError::HeldCannot { what: "a private ephemeral range" });
    }
    let sockets = hold::hold(request, pool)?;
    let block = Block::new(request, sockets);
    let ports = block.ports();
    let token = sys::random_token().map_err(|source| AcquireError::AcquireCall { source })?;
    registry().insert(token, block);
    Ok((token, ports))
}

/// End it, as the owner.
pub(crate) fn release(token: Token) -> Result<(), ReleaseError> {
    let mut registry = registry();
    let block = registry.get(&token).ok_or(ReleaseError::Unknown)?;
    if !block.is_ours() {
        return Err(ReleaseError::NotOwner);
    }
    registry.remove(&token);
    Ok(())
}

/// End it in this process: a child that inherited it only closes its copies.
pub(crate) fn give_up(token: Token) -> Result<(), ReleaseError> {
    let block = registry().remove(&token).ok_or(ReleaseError::Unknown)?;
    if block.is_ours() { Ok(()) } else { Err(ReleaseError::NotOwner) }
}

/// Bind a socket to a port of the block; port 0: a free one.
pub(crate) fn bind(token: Token, socket: &Socket, address: SocketAddr) -> Result<u16, BindError> {
    let call = |source| BindError::BindCall { source };
    let transport = transport_of(socket).map_err(call)?.ok_or(AssociateError::NotTcpOrUdp)?;
    if local_port(socket) != 0 {
        return Err(AssociateError::AlreadyBound.into());
    }
    with(token, |block| block.bind(transport, socket, address))
}

/// A socket bound to a port of the block; port 0: a free one.
pub(crate) fn hand_out(token: Token, transport: Transport, address: SocketAddr) -> Result<Socket, BindError> {
    with(token, |block| block.hand_out(transport, address))
}

/// Let other processes bind the ports by number.
pub(crate) fn open(token: Token, transports: Transports) -> Result<(), BindError> {
    let call = |source| BindError::BindCall { source };
    with(token, |block| transports.iter().try_for_each(|transport| block.open(transport).map_err(call)))
}

fn with<T>(token: Token, work: impl FnOnce(&mut Block) -> Result<T, BindError>) -> Result<T, BindError> {
    let mut registry = registry();
    let block = registry.get_mut(&token).ok_or(BindError::Ended)?;
    if !block.is_ours() {
        return Err(AssociateError::NotInScope.into());
    }
    work(block)
}
