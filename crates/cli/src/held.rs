//! Held mode: without kernel enforcement, ports are kept by being bound.
//!
//! This is what every program can do, and it has its limits: a TCP port is
//! bound but does not listen, and once bound SO_REUSEADDR is set on it, which
//! lets any program of the same network namespace bind it too that sets the
//! option, as nearly all servers do. That keeps off automatic choices and
//! those who ask for a free port, and lets the command in. A UDP socket cannot
//! be kept that way (both would receive), so UDP ports are let go just before
//! the command starts.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    time::{SystemTime, UNIX_EPOCH},
};

use portkeep::{PortRange, Transport};
use portkeep_core::defaults::{POOL, UNPRIVILEGED_START};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt},
};

use crate::{ask::Ask, conflict};

/// Bound sockets, one for each port and transport.
#[derive(Debug)]
pub(crate) struct Held {
    sockets: Vec<(Transport, OwnedFd)>,
}

impl Held {
    pub(crate) fn take(ask: &Ask) -> anyhow::Result<(PortRange, Self)> {
        if let Some(block) = ask.block()? {
            return match Self::bind_all(ask, block) {
                Ok(held) => Ok((block, held)),
                Err(error) => Err(explain(ask, block, error)),
            };
        }
        for block in candidates(ask.count, ask.align.unwrap_or(1).max(1)) {
            match Self::bind_all(ask, block) {
                Ok(held) => return Ok((block, held)),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(explain(ask, block, error)),
            }
        }
        anyhow::bail!("no {} ports in a row are free in {POOL}", ask.count)
    }

    fn bind_all(ask: &Ask, block: PortRange) -> io::Result<Self> {
        let mut sockets = Vec::new();
        for port in block {
            for transport in ask.transports().iter() {
                sockets.push((transport, hold(transport, port)?));
            }
        }
        Ok(Self { sockets })
    }

    pub(crate) fn let_udp_go(&mut self) {
        self.sockets.retain(|(transport, _)| *transport != Transport::Udp);
    }
}

/// Why a block cannot be held.
fn explain(ask: &Ask, block: PortRange, error: io::Error) -> anyhow::Error {
    let told = match Errno::from_io_error(&error) {
        Some(Errno::ADDRINUSE) => conflict::in_use(block, ask.transports()),
        Some(Errno::ACCESS) if block.start() < UNPRIVILEGED_START => Some(conflict::privileged(block)),
        Some(Errno::MFILE) => Some(format!(
            "holding {block}/{} takes a descriptor for each port, more than the limit of open files leaves (`ulimit -n`)",
            ask.transports()
        )),
        _ => None,
    };
    match told {
        Some(text) => anyhow::anyhow!("{text}"),
        None => anyhow::Error::from(error).context(format!("binding {block}/{}", ask.transports())),
    }
}

/// Blocks to try, from somewhere in the pool once round, so that two who start at once do not race for the same.
fn candidates(count: u16, align: u16) -> impl Iterator<Item = PortRange> {
    let (first, last) = (u32::from(POOL.start()).next_multiple_of(align.into()), u32::from(POOL.last()));
    let step = u32::from(count).next_multiple_of(align.into());
    let places = (last + 1).saturating_sub(first + u32::from(count) - 1).div_ceil(step);
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_micros());
    let begin = clock ^ std::process::id();
    (0..places).filter_map(move |i| {
        let start = first + (begin.wrapping_add(i) % places) * step;
        PortRange::new(u16::try_from(start).ok()?, count).ok()
    })
}

/// Bind the port on all addresses of both families.
fn hold(transport: Transport, port: u16) -> io::Result<OwnedFd> {
    let kind = match transport {
        Transport::Tcp => SocketType::STREAM,
        Transport::Udp => SocketType::DGRAM,
    };
    let v6 = || -> rustix::io::Result<OwnedFd> {
        let socket = socket_with(AddressFamily::INET6, kind, SocketFlags::CLOEXEC, None)?;
        sockopt::set_ipv6_v6only(&socket, false)?;
        bind(&socket, &SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
        Ok(socket)
    };
    let v4 = || -> rustix::io::Result<OwnedFd> {
        let socket = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
        Ok(socket)
    };
    let socket = match v6() {
        // A machine without IPv6.
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => v4()?,
        result => result?,
    };
    if transport == Transport::Tcp {
        // After the bind: before it, two holders could have the same port.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_aligned_and_stay_in_the_pool() {
        for (count, align) in [(1, 1), (3, 2), (5, 8), (4535, 1), (4000, 64)] {
            let all: Vec<_> = candidates(count, align).collect();
            assert!(!all.is_empty(), "{count} {align}");
            for block in all {
                assert!(block.start() % align == 0 && block.start() >= POOL.start(), "{block}");
            }
        }
        assert_eq!(candidates(4537, 1).count(), 0);
    }

    #[test]
    fn a_held_port_is_open_to_those_who_set_the_option_and_to_no_other_holder() {
        let socket = (0..100).find_map(|_| hold(Transport::Tcp, 0).ok()).expect("a port");
        let address = rustix::net::getsockname(&socket).unwrap();
        let port = SocketAddr::try_from(address).unwrap().port();
        assert!(hold(Transport::Tcp, port).is_err());
        // std sets SO_REUSEADDR.
        std::net::TcpListener::bind(("127.0.0.1", port)).expect("a server binds");
    }
}
