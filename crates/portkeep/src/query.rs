//! Questions to the BPF programs. They need no right and change nothing.

use std::{
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use portkeep_core::{
    Errno, PortRange, Token, Transport, Transports,
    wire::{self, SelectRequest},
};
use socket2::Socket;

use crate::{
    Enforcement, Info, QueryError, Version, control, held,
    socket::{Kind, new_socket},
};

/// Ask about the reservation `select` means; `None`: there is none.
///
/// A question is two calls, SELECT and STATE: no other question on this socket
/// may come between them. Several threads can use one socket, hence the lock.
pub(crate) fn ask(socket: impl AsFd, select: &SelectRequest) -> Result<Option<Info>, QueryError> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    match control::state_also(socket, select) {
        Ok((state, also)) => Ok(Info::from_wire(&state, &also)),
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT.0) => Ok(None),
        Err(error) => Err(QueryError::from_call(error)),
    }
}

/// A socket for queries, and the version of the BPF programs that answer them.
pub(crate) fn asker() -> Result<(Socket, Version), QueryError> {
    let socket = new_socket(Transport::Udp, Kind::Any).map_err(|source| QueryError::QueryCall { source })?;
    let version = version_of(&socket)?;
    Ok((socket, version))
}

pub(crate) fn version_of(socket: impl AsFd) -> Result<Version, QueryError> {
    let version = control::version(socket).map_err(|source| match source.raw_os_error().map(Errno) {
        // The BPF programs answer this option on any socket. Without them, the error depends on the address family:
        // EOPNOTSUPP from IPv4 and Unix sockets, ENOPROTOOPT from IPv6.
        Some(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => QueryError::KernelAbsent,
        _ => QueryError::QueryCall { source },
    })?;
    if version.abi != wire::ABI {
        return Err(QueryError::OtherAbi { found: version.abi, expected: wire::ABI });
    }
    Ok(Version::from_wire(&version))
}

/// The kernel enforcement that serves this process, if there is one.
pub fn version() -> Result<Version, QueryError> {
    asker().map(|(_, version)| version)
}

/// The enforcement that a request would get here if it accepts any.
pub fn enforcement() -> Enforcement {
    if version().is_ok() { Enforcement::Kernel } else { Enforcement::Held }
}

/// The reservation with this token, `None` if there is none in this network namespace.
///
/// It also reports the reservations that this process holds in held mode.
pub fn lookup(token: Token) -> Result<Option<Info>, QueryError> {
    whole(block_of(token)?)
}

/// The block with this token: the reservation, or one of the blocks of a list.
pub(crate) fn block_of(token: Token) -> Result<Option<Info>, QueryError> {
    if let Some(info) = held::info(token) {
        return Ok(Some(info));
    }
    let (socket, _) = asker()?;
    ask(&socket, &SelectRequest { by: wire::BY_TOKEN, token: token.get(), ..Default::default() })
}

/// The reservation that a block belongs to. Only a list has several blocks.
fn whole(block: Option<Info>) -> Result<Option<Info>, QueryError> {
    let Some(block) = block else { return Ok(None) };
    if block.list.is_none() {
        return Ok(Some(block));
    }
    let its = |info: &Info| info.list == block.list && info.blocks.iter().any(|one| block.ports == one.ports);
    Ok(list()?.into_iter().find(its).or(Some(block)))
}

/// The reservation that a port belongs to, in the current network namespace.
///
/// In held mode, only a process itself knows the ports that it holds. So
/// without kernel enforcement this is an error, not `None`.
pub fn who(transport: Transport, port: u16) -> Result<Option<Info>, QueryError> {
    let (socket, _) = asker()?;
    whole(ask(&socket, &SelectRequest { by: wire::BY_PORT, port, transport: transport.bit(), ..Default::default() })?)
}

/// All reservations of the current network namespace: those with TCP by port, then those with only UDP.
///
/// This is not a snapshot: a reservation that begins or ends during the call may be in it or not.
pub fn list() -> Result<Vec<Info>, QueryError> {
    let (socket, _) = asker()?;
    let mut found = Vec::new();
    for transport in Transport::ALL {
        let mut from = 0;
        while let Some(info) = next(&socket, transport, from)? {
            let last = info.ports.last();
            // Those for both transports came with TCP.
            if transport == Transport::Tcp || info.transports == Transports::Udp {
                found.push(info);
            }
            match last.checked_add(1) {
                Some(port) => from = port,
                None => break,
            }
        }
    }
    Ok(Info::join(found))
}

/// The first reservation that starts at or after a port.
///
/// The BPF programs also answer "none" if they find one that is just beginning
/// or ending. So "none" counts only after several tries.
fn next(socket: &Socket, transport: Transport, from: u16) -> Result<Option<Info>, QueryError> {
    let select = SelectRequest { by: wire::BY_NEXT, port: from, transport: transport.bit(), ..Default::default() };
    for _ in 0..3 {
        if let Some(info) = ask(socket, &select)? {
            return Ok(Some(info));
        }
        std::thread::sleep(Duration::from_micros(20));
    }
    Ok(None)
}

/// The reservation that overlaps a block, if there is one.
pub(crate) fn conflict(socket: impl AsFd, ports: PortRange, transports: Transports) -> Option<Box<Info>> {
    transports.iter().find_map(|transport| {
        let select = |by| SelectRequest { by, port: ports.start(), transport: transport.bit(), ..Default::default() };
        [wire::BY_PORT, wire::BY_NEXT]
            .into_iter()
            .filter_map(|by| ask(&socket, &select(by)).ok().flatten())
            .find(|info| info.overlap(ports, transports).is_some())
            .map(Box::new)
    })
}
