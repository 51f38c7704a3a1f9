//! One held reservation.

use std::{collections::hash_map::Entry, io, net::SocketAddr, os::fd::OwnedFd, time::SystemTime};

use portkeep_core::{PortRange, Time, Token, Transport, Transports};
use socket2::Socket;

use super::{
    hold::{self, Sockets},
    mark,
};
use crate::{
    BindError, Info, Request,
    socket::{Kind, local_port, new_socket},
};

pub(super) struct Block {
    ports: PortRange,
    transports: Transports,
    strict: bool,
    label: String,
    since: Time,
    pid: u32,
    /// The sockets of the ports that are not handed out.
    sockets: Sockets,
    /// Other processes can bind the TCP ports, too: holders have SO_REUSEADDR.
    open: bool,
    /// Where the next draw begins, for each transport.
    next: [u16; 2],
    /// Shows other processes what this one holds.
    _mark: Option<OwnedFd>,
}

impl Block {
    pub(super) fn new(request: &Request, sockets: Sockets) -> Self {
        let start = sockets.keys().map(|(_, port)| *port).min().unwrap_or(request.start);
        let ports = PortRange::new(start, request.count).expect("every one of its ports was bound");
        let since = SystemTime::now().into();
        Self {
            ports,
            transports: request.transports(),
            strict: request.strict,
            label: request.label.clone(),
            since,
            pid: std::process::id(),
            sockets,
            open: false,
            next: [start; 2],
            _mark: mark::make(ports, request.transports(), since, &request.label),
        }
    }

    pub(super) fn ports(&self) -> PortRange {
        self.ports
    }

    /// False in a child that inherited the registry.
    pub(super) fn is_ours(&self) -> bool {
        self.pid == std::process::id()
    }

    pub(super) fn info(&self, token: Token) -> Info {
        let all = usize::from(self.ports.count()) * self.transports.iter().count();
        let mut info = Info {
            strict: self.strict,
            since: Some(self.since),
            // The ports handed out. Only their users know whether they are still bound.
            bound: Some((all - self.sockets.len()) as u32),
            ..Info::held(self.ports, self.transports, &self.label)
        };
        info.set_tokens([Some(token)]);
        info
    }

    /// A socket for that address: the holder itself if it has the address, or else a new one in its place.
    pub(super) fn hand_out(&mut self, transport: Transport, address: SocketAddr) -> Result<Socket, BindError> {
        let call = |source| BindError::BindCall { source };
        self.check(transport, address.port())?;
        for port in self.candidates(transport, address.port()) {
            let key = (transport, port);
            if address.port() == 0 && !self.take_back(transport, port).map_err(call)? {
                continue;
            }
            if self.sockets.get(&key).is_some_and(|holder| hold::is_bound_to(holder, address.ip()))
                && let Some(holder) = self.sockets.remove(&key)
            {
                hold::wake(&holder).map_err(call)?;
                self.drawn(transport, port);
                return Ok(holder);
            }
            let socket = new_socket(transport, Kind::of(address.ip())).map_err(call)?;
            // As std does for listeners: a connection in TIME_WAIT does not prevent a new listener.
            if transport == Transport::Tcp {
                socket.set_reuse_address(true).map_err(call)?;
            }
            match self.replace(transport, port, &socket, address) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(source) => return Err(call(source)),
                Ok(()) => return Ok(socket),
            }
        }
        Err(in_use(address.port()))
    }

    /// Bind a socket of the program's in place of the holder.
    pub(super) fn bind(
        &mut self,
        transport: Transport,
        socket: &Socket,
        address: SocketAddr,
    ) -> Result<u16, BindError> {
        self.check(transport, address.port())?;
        let call = |source| BindError::BindCall { source };
        for port in self.candidates(transport, address.port()) {
            if address.port() == 0 && !self.take_back(transport, port).map_err(call)? {
                continue;
            }
            match self.replace(transport, port, socket, address) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(source) => return Err(call(source)),
                Ok(()) => return Ok(local_port(socket)),
            }
        }
        Err(in_use(address.port()))
    }

    /// Let programs of other processes bind the ports of a transport by number.
    pub(super) fn open(&mut self, transport: Transport) -> io::Result<()> {
        if transport == Transport::Udp {
            // If two UDP sockets have a port, either can receive. So the holder has to close.
            self.sockets.retain(|(holder, _), _| *holder != transport);
            return Ok(());
        }
        self.open = true;
        self.sockets
            .iter()
            .filter(|((of, _), _)| *of == transport)
            .try_for_each(|(_, holder)| holder.set_reuse_address(true))
    }

    fn check(&self, transport: Transport, port: u16) -> Result<(), BindError> {
        if !self.transports.contains(transport) {
            return Err(BindError::OtherTransport { transport });
        }
        if port != 0 && !self.ports.contains(port) {
            return Err(BindError::OutsideBlock { port });
        }
        Ok(())
    }

    /// Next-fit over the ports that are held, then over those that were handed out and may be free again.
    fn candidates(&self, transport: Transport, port: u16) -> Vec<u16> {
        if port != 0 {
            return vec![port];
        }
        let next = self.next[transport as usize];
        let round = || (next..=self.ports.last()).chain(self.ports.start()..next);
        let held = |port: &u16| self.sockets.contains_key(&(transport, *port));
        round().filter(held).chain(round().filter(|port| !held(port))).collect()
    }

    /// Hold the port again if it was handed out and is free. Only then may it be drawn. A bind
    /// that succeeds would not be enough, since another address of the port may still have a socket.
    fn take_back(&mut self, transport: Transport, port: u16) -> io::Result<bool> {
        if let Entry::Vacant(place) = self.sockets.entry((transport, port)) {
            match hold::hold_again(transport, port) {
                Ok(holder) => {
                    holder.set_reuse_address(self.open && transport == Transport::Tcp)?;
                    place.insert(holder)
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Ok(false),
                Err(error) => return Err(error),
            };
        }
        Ok(true)
    }

    fn drawn(&mut self, transport: Transport, port: u16) {
        self.next[transport as usize] = if port == self.ports.last() { self.ports.start() } else { port + 1 };
    }

    /// Bind `socket` before the holder closes, so that the port is bound at every moment. If both have SO_REUSEADDR and
    /// neither listens, the kernel allows both.
    fn replace(&mut self, transport: Transport, port: u16, socket: &Socket, mut address: SocketAddr) -> io::Result<()> {
        address.set_port(port);
        let key = (transport, port);
        if let Some(holder) = self.sockets.get(&key) {
            let wanted = socket.reuse_address()?;
            holder.set_reuse_address(true)?;
            socket.set_reuse_address(true)?;
            let outcome = socket.bind(&address.into());
            // Only for the moment: otherwise an outsider with the option could bind the port too.
            socket.set_reuse_address(wanted)?;
            if outcome.is_err() {
                holder.set_reuse_address(self.open && transport == Transport::Tcp)?;
            } else {
                self.sockets.remove(&key);
            }
            outcome?;
        } else {
            socket.bind(&address.into())?;
        }
        self.drawn(transport, port);
        Ok(())
    }
}

fn in_use(port: u16) -> BindError {
    if port == 0 { BindError::Exhausted } else { BindError::InUse { port } }
}
