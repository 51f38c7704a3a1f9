//! The operations of a reservation on the program's own sockets.

use std::{net::SocketAddr, os::fd::AsFd};

use portkeep_core::{
    Errno, Token,
    wire::{self, SelectRequest},
};
use socket2::{SockRef, Socket};

use crate::{AssociateError, BindError, Info, QueryError, control, held, query, socket::local_port};

mod sealed {
    pub trait Sealed {}
    impl<T: std::os::fd::AsFd + ?Sized> Sealed for T {}
}

/// The operations of a reservation on any TCP or UDP socket: std's, socket2's, tokio's, a bare [`std::os::fd::OwnedFd`].
pub trait PortkeepSocket: AsFd + sealed::Sealed {
    /// Let this unbound socket take its port out of a reservation.
    ///
    /// From then on `bind` to port 0 gets a free port of the block, `bind` to a port of the block gets that one, and
    /// `connect` without `bind` takes its source port from it. The right belongs to the socket: every process
    /// that gets the socket may bind it.
    ///
    /// A UDP socket has to `bind` or `connect`: if it calls `sendto` first, its port does not come out of the block.
    ///
    /// Requires kernel enforcement, because the kernel chooses the port at the later `bind`.
    /// [`bind_from`](Self::bind_from) works without it too.
    fn associate(&self, token: Token) -> Result<(), AssociateError> {
        if held::holds(token) {
            return Err(AssociateError::Held);
        }
        let socket = self.as_fd();
        control::associate(socket, token).map_err(|source| match source.raw_os_error().map(Errno) {
            Some(Errno::ENOENT) => AssociateError::Unknown,
            Some(Errno::EPERM) => AssociateError::NotInScope,
            Some(Errno::EINVAL) if local_port(socket) != 0 => AssociateError::AlreadyBound,
            Some(Errno::EINVAL) => AssociateError::Mismatch,
            Some(Errno::EOPNOTSUPP) => AssociateError::NotTcpOrUdp,
            Some(Errno::ENOPROTOOPT) => AssociateError::KernelAbsent,
            _ => AssociateError::AssociateCall { source },
        })
    }

    /// Associate this unbound socket and bind it, in one step. Port 0: any free port of the block. Returns the port.
    ///
    /// This works with held reservations too: the socket takes the place of the one that held the port.
    fn bind_from(&self, token: Token, address: SocketAddr) -> Result<u16, BindError> {
        let descriptor = self.as_fd();
        let socket = SockRef::from(&descriptor);
        if held::holds(token) {
            return held::bind(token, &socket, address);
        }
        self.associate(token)?;
        bind_associated(&socket, token, address)
    }

    /// The reservation this socket is associated with. `None` if there is none, or if it has ended.
    fn reservation(&self) -> Result<Option<Info>, QueryError> {
        query::version_of(self)?;
        query::ask(self, &SelectRequest { by: wire::BY_ASSOCIATED, ..Default::default() })
    }

    /// The reservations this socket owns. One socket can own up to 128.
    fn owned(&self) -> Result<Vec<Info>, QueryError> {
        query::version_of(self)?;
        let mut found = Vec::new();
        // An index is empty if its reservation has ended. A later index can still have one.
        for index in 0..wire::OWNED as u16 {
            let select = SelectRequest { by: wire::BY_INDEX, port: index, ..Default::default() };
            found.extend(query::ask(self, &select)?);
        }
        Ok(Info::join(found))
    }
}

impl<T: AsFd + ?Sized> PortkeepSocket for T {}

/// Bind a socket that is already associated.
pub(crate) fn bind_associated(socket: &Socket, token: Token, address: SocketAddr) -> Result<u16, BindError> {
    let port = address.port();
    socket.bind(&address.into()).map_err(|source| match source.raw_os_error().map(Errno) {
        Some(Errno::EADDRINUSE) if port == 0 => BindError::Exhausted,
        Some(Errno::EADDRINUSE) => BindError::InUse { port },
        // EACCES has several reasons. The reservation shows which of them it is.
        Some(Errno::EACCES) => match query::block_of(token) {
            Ok(Some(info)) if port != 0 && !info.ports.contains(port) => BindError::OutsideBlock { port },
            Ok(Some(_)) => BindError::BindCall { source },
            _ => BindError::Ended,
        },
        _ => BindError::BindCall { source },
    })?;
    Ok(local_port(socket))
}
