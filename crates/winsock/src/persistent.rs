//! The persistent calls: the checks, their order, and the names of the failures.
//!
//! The order is that of the documented errors: parameters first, then the right to make the call, then the ports.
//! Parameters are checked here; `store` checks the rest.

use portkeep_core::Transport;

use crate::{error, memory};

/// The highest port plus one.
const END: u32 = 65536;

/// Why the store refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The caller is neither root nor in the group of administrators.
    AccessDenied,
    /// No reservation can have this block.
    Invalid,
    /// A port of the block is in use, or in another reservation.
    Sharing,
    /// No persistent reservation has exactly this start, count and transport.
    NotFound,
    /// There is no store, or no kernel enforcement for its reservations.
    Unsupported,
}

impl Failure {
    /// The number the calls return.
    fn code(self) -> i32 {
        match self {
            Self::AccessDenied => error::ERROR_ACCESS_DENIED,
            Self::Invalid => error::WSA_INVALID_PARAMETER,
            Self::Sharing => error::ERROR_SHARING_VIOLATION,
            Self::NotFound => error::ERROR_NOT_FOUND,
            Self::Unsupported => error::ERROR_NOT_SUPPORTED,
        }
    }
}

/// Where persistent reservations are kept: with the agent, and by the BPF programs. Ports are in host byte order; blocks
/// that no reservation can have are not found.
mod store {
    use portkeep::{
        QueryError,
        persistent::{self, Lifetime, PersistentError, Proposal, Which},
    };
    use portkeep_core::{PortRange, Transport};

    use super::Failure;

    impl From<PersistentError> for Failure {
        fn from(error: PersistentError) -> Self {
            match error {
                // Only root may start the agent, so other users get the error of a missing right.
                // SAFETY: geteuid only reads who we are.
                PersistentError::AgentAbsent { .. } if unsafe { libc::geteuid() } != 0 => Self::AccessDenied,
                PersistentError::AgentAbsent { .. } => Self::Unsupported,
                // A command cannot delete a file's declaration.
                PersistentError::NotAllowed(_) | PersistentError::FromFile(_) => Self::AccessDenied,
                // The name is made of the block, so a reservation of that name has that block.
                PersistentError::InUse(_) | PersistentError::NameTaken(_) => Self::Sharing,
                PersistentError::Malformed(_) => Self::Invalid,
                PersistentError::NotFound => Self::NotFound,
                PersistentError::Query(QueryError::KernelAbsent) => Self::Unsupported,
                _ => Self::Unsupported,
            }
        }
    }

    /// Windows has no names; listings and the store do.
    fn proposal(ports: PortRange, transport: Transport) -> Result<Proposal, Failure> {
        let name = format!("winsock-{transport}-{}-{}", ports.start(), ports.count());
        let name = name.parse().map_err(|_| Failure::Invalid)?;
        Ok(Proposal::new(name, ports, transport.into()))
    }

    /// Keep a block for administrators, which is what Windows has, and return its token.
    pub(super) fn create(start: u16, count: u16, transport: Transport) -> Result<u64, Failure> {
        let ports = PortRange::new(start, count).map_err(|_| Failure::Invalid)?;
        let created = persistent::create(&proposal(ports, transport)?, Lifetime::UntilDeleted)?;
        created.token.map(portkeep::Token::get).ok_or(Failure::Unsupported)
    }

    /// Delete the reservation of exactly this block.
    pub(super) fn delete(start: u16, count: u16, transport: Transport) -> Result<(), Failure> {
        let ports = PortRange::new(start, count).map_err(|_| Failure::NotFound)?;
        persistent::delete(&Which::Block { ports: ports.into(), transports: transport.into() })?;
        Ok(())
    }

    /// The token it has since the last boot.
    pub(super) fn lookup(start: u16, count: u16, transport: Transport) -> Result<u64, Failure> {
        let ports = PortRange::new(start, count).map_err(|_| Failure::NotFound)?;
        Ok(persistent::lookup(ports, transport)?.get())
    }
}

/// The start in host byte order. Only Create is documented to refuse a block that ends above the last port. No such
/// block can have been created, so the other calls do not find it.
fn check(start: u16, count: u16) -> Result<u16, Failure> {
    if start == 0 || count == 0 { Err(Failure::Invalid) } else { Ok(u16::from_be(start)) }
}

fn check_token(token: usize) -> Result<(), Failure> {
    memory::writable(token, 8).map_err(|_| Failure::Invalid)
}

fn fits(start: u16, count: u16) -> bool {
    u32::from(start) + u32::from(count) <= END
}

fn create(start: u16, count: u16, token: usize, transport: Transport) -> Result<(), Failure> {
    let start = check(start, count)?;
    check_token(token)?;
    if !fits(start, count) {
        return Err(Failure::Invalid);
    }
    write_token(token, store::create(start, count, transport)?)
}

fn delete(start: u16, count: u16, transport: Transport) -> Result<(), Failure> {
    let start = check(start, count)?;
    store::delete(start, count, transport)
}

fn lookup(start: u16, count: u16, token: usize, transport: Transport) -> Result<(), Failure> {
    let start = check(start, count)?;
    check_token(token)?;
    write_token(token, store::lookup(start, count, transport)?)
}

/// If the memory for the token has been unmapped meanwhile, the reservation stays: Lookup reports the token again.
fn write_token(at: usize, token: u64) -> Result<(), Failure> {
    memory::write(at, token).map_err(|_| Failure::Invalid)
}

/// The error is the return value.
fn answer(body: impl FnOnce() -> Result<(), Failure>) -> u32 {
    crate::boundary(error::ERROR_NOT_SUPPORTED as u32, || body().err().map_or(0, Failure::code) as u32)
}

/// `CreatePersistentTcpPortReservation`. `start` is in network byte order.
#[unsafe(no_mangle)]
pub extern "C" fn CreatePersistentTcpPortReservation(start: u16, count: u16, token: usize) -> u32 {
    answer(|| create(start, count, token, Transport::Tcp))
}

/// `CreatePersistentUdpPortReservation`. `start` is in network byte order.
#[unsafe(no_mangle)]
pub extern "C" fn CreatePersistentUdpPortReservation(start: u16, count: u16, token: usize) -> u32 {
    answer(|| create(start, count, token, Transport::Udp))
}

/// `DeletePersistentTcpPortReservation`. `start` is in network byte order.
#[unsafe(no_mangle)]
pub extern "C" fn DeletePersistentTcpPortReservation(start: u16, count: u16) -> u32 {
    answer(|| delete(start, count, Transport::Tcp))
}

/// `DeletePersistentUdpPortReservation`. `start` is in network byte order.
#[unsafe(no_mangle)]
pub extern "C" fn DeletePersistentUdpPortReservation(start: u16, count: u16) -> u32 {
    answer(|| delete(start, count, Transport::Udp))
}

/// `LookupPersistentTcpPortReservation`. `start` is in network byte order.
#[unsafe(no_mangle)]
pub extern "C" fn LookupPersistentTcpPortReservation(start: u16, count: u16, token: usize) -> u32 {
    answer(|| lookup(start, count, token, Transport::Tcp))
}

/// `LookupPersistentUdpPortReservation`. `start` is in network byte order.
#[unsafe(no_mangle)]
pub extern "C" fn LookupPersistentUdpPortReservation(start: u16, count: u16, token: usize) -> u32 {
    answer(|| lookup(start, count, token, Transport::Udp))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_the_documented_numbers() {
        let table = [
            (Failure::AccessDenied, 5),
            (Failure::Sharing, 32),
            (Failure::Unsupported, 50),
            (Failure::Invalid, 87),
            (Failure::NotFound, 1168),
        ];
        for (failure, number) in table {
            assert_eq!(answer(|| Err(failure)), number, "{failure:?}");
        }
        assert_eq!(answer(|| Ok(())), 0);
    }
}
