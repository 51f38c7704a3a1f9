//! Without kernel enforcement: the library holds the ports with sockets of this process. `bind` and `connect` of this
//! layer draw from them, because the kernel's own calls cannot. A reservation belongs to the socket it was acquired on
//! and ends with `closesocket`.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::BorrowedFd,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use portkeep::{Require, Reservation};
use portkeep_core::{
    Token, Transport,
    wire::{AcquireRequest, Grant},
};

use crate::{
    descriptor::{is_bound, transport},
    error,
};

#[derive(Default)]
struct Registry {
    /// By the owner socket's descriptor.
    owned: HashMap<i32, Vec<Reservation>>,
    /// Descriptor to token.
    associated: HashMap<i32, Token>,
}

static REGISTRY: Mutex<Option<Registry>> = Mutex::new(None);
/// While it is false, no ordinary call has to check the registry.
static USED: AtomicBool = AtomicBool::new(false);

fn lock() -> MutexGuard<'static, Option<Registry>> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

fn code(errno: Option<portkeep_core::Errno>) -> i32 {
    match errno.map(|errno| errno.0) {
        None => error::WSAEOPNOTSUPP,
        // Every port requires a descriptor. If there are too few, the program gets the error for a block that is not
        // available.
        Some(libc::EMFILE | libc::ENFILE) => error::WSAENOBUFS,
        Some(errno) => error::of_control(&io::Error::from_raw_os_error(errno)),
    }
}

pub(crate) fn acquire(fd: i32, request: &AcquireRequest) -> Result<Grant, i32> {
    let asked = match transport(fd)? {
        Transport::Tcp => Reservation::tcp(),
        Transport::Udp => Reservation::udp(),
    };
    let asked = asked.at(request.start).ports(request.count).require(Require::Held);
    let reservation = asked.acquire().map_err(|error| code(error.errno()))?;
    let ports = reservation.ports();
    let grant =
        Grant { token: reservation.token().get(), start: ports.start(), count: ports.count(), ..Grant::default() };
    lock().get_or_insert_default().owned.entry(fd).or_default().push(reservation);
    USED.store(true, Ordering::Relaxed);
    Ok(grant)
}

pub(crate) fn release(fd: i32, token: u64) -> Result<(), i32> {
    let transport = transport(fd)?;
    let mut registry = lock();
    for list in registry.get_or_insert_default().owned.values_mut() {
        if let Some(index) = list
            .iter()
            .position(|reservation| reservation.token().get() == token && reservation.transports().contains(transport))
        {
            drop(list.swap_remove(index));
            return Ok(());
        }
    }
    Err(error::WSAEINVAL)
}

fn find(registry: &Registry, token: u64) -> Option<&Reservation> {
    registry.owned.values().flatten().find(|reservation| reservation.token().get() == token)
}

pub(crate) fn associate(fd: i32, token: u64) -> Result<(), i32> {
    let transport = transport(fd)?;
    let mut registry = lock();
    let registry = registry.get_or_insert_default();
    let reservation = find(registry, token).ok_or(error::WSAEINVAL)?;
    if !reservation.transports().contains(transport) || is_bound(fd) {
        return Err(error::WSAEINVAL);
    }
    let token = reservation.token();
    registry.associated.insert(fd, token);
    Ok(())
}

/// `bind` of an associated socket. `None`: the socket is not associated, and the system's `bind` does it.
pub(crate) fn bind(fd: i32, address: impl FnOnce() -> Option<SocketAddr>) -> Option<Result<(), i32>> {
    if !USED.load(Ordering::Relaxed) {
        return None;
    }
    let mut registry = lock();
    let registry = registry.get_or_insert_default();
    let token = *registry.associated.get(&fd)?;
    let address = address()?;
    let Some(reservation) = find(registry, token.get()) else { return Some(Err(error::WSAEINVAL)) };
    // SAFETY: for the duration of this call the descriptor is the program's to keep open.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    let bound = reservation.bind(&socket, address).map(drop).map_err(|error| code(error.errno()));
    if bound.is_ok() {
        registry.associated.remove(&fd);
    }
    Some(bound)
}

/// `closesocket`: the socket's reservations end with it.
pub(crate) fn close(fd: i32) {
    if USED.load(Ordering::Relaxed) {
        let mut registry = lock();
        let registry = registry.get_or_insert_default();
        registry.owned.remove(&fd);
        registry.associated.remove(&fd);
    }
}
