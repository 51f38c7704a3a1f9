//! Ready-made std sockets out of a reservation.
//!
//! They are ordinary blocking sockets. For tokio and similar runtimes:
//! `set_nonblocking(true)`, then `TcpListener::from_std`.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
};

use portkeep_core::{Errno, Transport};
use socket2::Socket;

use crate::{
    BindError, ConnectError, Enforcement, PortkeepSocket, Reservation, held,
    socket::{Kind, new_socket},
    sys,
};

/// The longest queue of connections that the system allows.
const BACKLOG: i32 = libc::SOMAXCONN;

impl Reservation {
    /// Listen on a free port of the block. `Ipv6Addr::UNSPECIFIED` serves IPv4 as well, unless the system says
    /// otherwise (`net.ipv6.bindv6only`).
    ///
    /// In held mode, if the socket that holds the port has the right address, this returns that socket. Otherwise a new
    /// socket replaces it.
    pub fn bind_tcp(&self, ip: impl Into<IpAddr>) -> Result<TcpListener, BindError> {
        self.listen(ip.into(), 0)
    }

    /// Listen on that port of the block.
    pub fn bind_tcp_port(&self, ip: impl Into<IpAddr>, port: u16) -> Result<TcpListener, BindError> {
        self.listen(ip.into(), self.of_block(port)?)
    }

    /// A UDP socket on a free port of the block.
    pub fn bind_udp(&self, ip: impl Into<IpAddr>) -> Result<UdpSocket, BindError> {
        Ok(self.bound(Transport::Udp, ip.into(), 0)?.into())
    }

    /// A UDP socket on that port of the block.
    pub fn bind_udp_port(&self, ip: impl Into<IpAddr>, port: u16) -> Result<UdpSocket, BindError> {
        Ok(self.bound(Transport::Udp, ip.into(), self.of_block(port)?)?.into())
    }

    /// Connect to a TCP server, with a free port of the block (of a list: the first block) as the source port.
    pub fn connect_tcp(&self, peer: SocketAddr) -> Result<TcpStream, ConnectError> {
        // A free source port cannot be used for this peer if an older connection from that port to it still exists.
        // The next draw gives another port.
        let mut attempts = self.ports().first().count();
        loop {
            match self.connect(Transport::Tcp, peer) {
                Err(ConnectError::ConnectCall { source, .. })
                    if source.kind() == io::ErrorKind::AddrNotAvailable && attempts > 1 =>
                {
                    attempts -= 1;
                }
                outcome => return outcome.map(Into::into),
            }
        }
    }

    /// A UDP socket connected to a peer, on a free port of the block.
    pub fn connect_udp(&self, peer: SocketAddr) -> Result<UdpSocket, ConnectError> {
        self.connect(Transport::Udp, peer).map(Into::into)
    }

    /// The port, if it is one of the block. Port 0 is an error: the functions without a port draw a free one.
    fn of_block(&self, port: u16) -> Result<u16, BindError> {
        if self.ports().contains(port) { Ok(port) } else { Err(BindError::OutsideBlock { port }) }
    }

    fn listen(&self, ip: IpAddr, port: u16) -> Result<TcpListener, BindError> {
        let socket = self.bound(Transport::Tcp, ip, port)?;
        socket.listen(BACKLOG).map_err(|source| match source.kind() {
            // Two sockets may share a port until one of them listens.
            io::ErrorKind::AddrInUse => BindError::InUse { port: crate::socket::local_port(&socket) },
            _ => BindError::BindCall { source },
        })?;
        Ok(socket.into())
    }

    fn bound(&self, transport: Transport, ip: IpAddr, port: u16) -> Result<Socket, BindError> {
        self.serves(transport)?;
        let address = SocketAddr::new(ip, port);
        if self.enforcement() == Enforcement::Held {
            return self.in_a_block(port, |token| held::hand_out(token, transport, address));
        }
        let socket = new_socket(transport, Kind::of(ip)).map_err(|source| BindError::BindCall { source })?;
        self.in_a_block(port, |token| socket.bind_from(token, address))?;
        Ok(socket)
    }

    fn serves(&self, transport: Transport) -> Result<(), BindError> {
        if self.transports().contains(transport) { Ok(()) } else { Err(BindError::OtherTransport { transport }) }
    }

    fn connect(&self, transport: Transport, peer: SocketAddr) -> Result<Socket, ConnectError> {
        self.serves(transport)?;
        let socket = new_socket(transport, Kind::of(peer.ip())).map_err(|source| BindError::BindCall { source })?;
        if self.enforcement() == Enforcement::Held {
            let any: IpAddr = match peer.ip() {
                IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
            };
            held::bind(self.token(), &socket, SocketAddr::new(any, 0))?;
        } else {
            socket.associate(self.token()).map_err(BindError::from)?;
        }
        let failed = |source| ConnectError::ConnectCall { peer, source };
        match socket.connect(&peer.into()) {
            Ok(()) => Ok(socket),
            // The kernel continues to connect in the background, so connect must not be called again.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                sys::wait_connected(socket.as_raw_fd()).map_err(failed)?;
                match socket.take_error().map_err(failed)? {
                    None => Ok(socket),
                    Some(error) => Err(failed(error)),
                }
            }
            // The kernel draws the source port in connect, so these two errors come from the reservation.
            Err(error) if error.raw_os_error() == Some(Errno::EADDRINUSE.0) => Err(BindError::Exhausted.into()),
            Err(error) if error.raw_os_error() == Some(Errno::EACCES.0) && self.state().is_err() => {
                Err(BindError::Ended.into())
            }
            Err(error) => Err(failed(error)),
        }
    }
}
