//! Finding ports by binding them.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicU32, Ordering},
};

use portkeep_core::{PortRange, Transport, Transports, defaults};
use socket2::{Domain, SockFilter, Socket};

use crate::{
    AcquireError, Request,
    socket::{Kind, new_socket},
};

/// The sockets that hold a block.
pub(super) type Sockets = HashMap<(Transport, u16), Socket>;

/// The ports for wildcard requests: the default pool first, then the registered ports below the ephemeral range,
/// which more programs use.
const PLACES: [(u16, u16); 2] = [(defaults::POOL.start(), defaults::POOL.last()), (10000, 32767)];

/// Bind a socket to every port of a block that fits. A wildcard request gets no port of `pool`, which the kernel
/// serves.
pub(super) fn hold(request: &Request, pool: Option<PortRange>) -> Result<Sockets, AcquireError> {
    if request.start != 0 {
        let (ports, transports) = (request.block()?, request.transports());
        return hold_block(ports, transports).map_err(|(_, source)| match source.kind() {
            io::ErrorKind::PermissionDenied => AcquireError::Privileged,
            io::ErrorKind::AddrInUse => AcquireError::InUse { ports, transports, by: None },
            _ => call_failed(source, request),
        });
    }
    let places = PLACES.iter().filter(|(first, last)| !pool.is_some_and(|p| p.start() <= *last && *first <= p.last()));
    for &(first, last) in places {
        if let Some(sockets) = search(first, last, request)? {
            return Ok(sockets);
        }
    }
    Err(AcquireError::NoRoom { count: request.count })
}

/// Next-fit from where the last search of this process ended, so that a port that was just given up is tried last.
fn search(first: u16, last: u16, request: &Request) -> Result<Option<Sockets>, AcquireError> {
    static CURSOR: AtomicU32 = AtomicU32::new(0);
    let align = u32::from(request.align.unwrap_or_default().get());
    let length = u32::from(last - first) + 1;
    // Processes begin at different places. Otherwise each would have to try the ports of all others first.
    let _ = CURSOR.compare_exchange(0, std::process::id().wrapping_mul(64) | 1, Ordering::Relaxed, Ordering::Relaxed);
    let begin = u32::from(first) + CURSOR.load(Ordering::Relaxed) % length;
    for (mut start, end) in [(begin, u32::from(last)), (u32::from(first), u32::from(last).min(begin + length))] {
        loop {
            start = start.next_multiple_of(align);
            if start + u32::from(request.count) - 1 > end {
                break;
            }
            let ports = PortRange::new(start as u16, request.count).expect("the end of the block was checked");
            match hold_block(ports, request.transports()) {
                Ok(sockets) => {
                    CURSOR.store(start - u32::from(first) + u32::from(request.count), Ordering::Relaxed);
                    return Ok(Some(sockets));
                }
                // A block that includes this port cannot be held. (A security module may forbid a port with EACCES.)
                Err((port, error))
                    if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) =>
                {
                    start = u32::from(port) + 1;
                }
                Err((_, source)) => return Err(call_failed(source, request)),
            }
        }
    }
    Ok(None)
}

fn call_failed(source: io::Error, request: &Request) -> AcquireError {
    match source.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => AcquireError::TooManyFiles { count: request.count },
        _ => AcquireError::SocketCall { source },
    }
}

/// All ports or none. The error has the port that could not be bound.
fn hold_block(ports: PortRange, transports: Transports) -> Result<Sockets, (u16, io::Error)> {
    let mut sockets = Sockets::new();
    for transport in transports.iter() {
        for port in ports {
            sockets.insert((transport, port), hold_with(transport, port, false).map_err(|error| (port, error))?);
        }
    }
    Ok(sockets)
}

/// Hold a port again that was handed out, if it is free. Connections of its last user in TIME_WAIT do not count.
pub(super) fn hold_again(transport: Transport, port: u16) -> io::Result<Socket> {
    match hold_with(transport, port, false) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && transport == Transport::Tcp => {
            let socket = hold_with(transport, port, true)?;
            socket.set_reuse_address(false)?;
            Ok(socket)
        }
        outcome => outcome,
    }
}

/// One socket for both families where there is IPv6: with SO_REUSEADDR off, nothing else can then be bound to the
/// port, on any address.
fn hold_with(transport: Transport, port: u16, reuse: bool) -> io::Result<Socket> {
    let absent = |error: &io::Error| {
        matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT))
    };
    let at = |ip: IpAddr| {
        let socket = new_socket(transport, Kind::of(ip))?;
        if ip.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        if reuse {
            socket.set_reuse_address(true)?;
        }
        deafen(&socket)?;
        socket.bind(&SocketAddr::new(ip, port).into())?;
        Ok(socket)
    };
    match at(Ipv6Addr::UNSPECIFIED.into()) {
        Err(error) if absent(&error) => at(Ipv4Addr::UNSPECIFIED.into()),
        outcome => outcome,
    }
}

/// A holder sends no answers and keeps no datagrams: those that came before the port was handed out are not for the
/// program. (A TCP socket that does not listen refuses connections by itself.)
fn deafen(socket: &Socket) -> io::Result<()> {
    // "Return 0": of every packet keep 0 bytes.
    let drop_all = SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0);
    if socket.r#type()? == socket2::Type::DGRAM {
        socket.attach_filter(&[drop_all])?;
    }
    Ok(())
}

/// The holder becomes an ordinary socket.
pub(super) fn wake(socket: &Socket) -> io::Result<()> {
    if socket.r#type()? == socket2::Type::DGRAM { socket.detach_filter() } else { socket.set_reuse_address(true) }
}

/// Whether a holder is bound to this address, so that it can be handed out.
pub(super) fn is_bound_to(socket: &Socket, ip: IpAddr) -> bool {
    let family = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    ip.is_unspecified() && socket.domain().is_ok_and(|domain| domain == family)
}
