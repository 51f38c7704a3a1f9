//! Bind and connect: who gets which port.
//!
//! First the facility's own decision, then the kernel's ordinary rules: the
//! address, the privilege, whether the socket has a port already, whether the
//! port can be shared.

use super::{Address, Bound, Descriptor, Model, Pid, Place, Reservation, SocketId, State};
use portkeep_core::{Errno, Token, Transport};

/// `bind` to an address that no interface has.
const EADDRNOTAVAIL: Errno = Errno(99);
/// `connect` on a socket that listens.
const EISCONN: Errno = Errno(106);

impl Model {
    /// `bind`. Port 0 leaves the choice to the system: a draw for an associated
    /// socket (A3), else the kernel's automatic choice, which is `automatic`
    /// here. Returns the port.
    ///
    /// The socket must be TCP or UDP.
    pub fn bind(
        &mut self,
        pid: Pid,
        descriptor: Descriptor,
        address: Address,
        port: u16,
        automatic: u16,
    ) -> Result<u16, Errno> {
        let id = self.look_up(pid, descriptor)?;
        let transport = self.sockets[&id].transport.expect("only TCP and UDP have binds here");
        let socket = &self.sockets[&id];
        let namespace = socket.namespace;
        let chosen = match socket.associated {
            // The socket has a port already. For a reserved port this is reported first; otherwise the ordinary rules
            // answer.
            _ if socket.bound.is_some() => {
                let at = Place { namespace, transport, port };
                if port != 0 && socket.role.is_none() && self.is_reserved(at) {
                    return Err(Errno::EINVAL);
                }
                None
            }
            Some(token) if socket.role.is_none() => Some(self.take(id, token, transport, port, 0)?),
            None if port == 0 && socket.role.is_none() => match self.range_of(pid, namespace, transport) {
                Some(token) => Some(self.take(id, token, transport, 0, 0)?),
                None => None,
            },
            _ => self.admit(pid, id, transport, port)?.then_some(port),
        };
        let consumer = chosen.is_some();
        let port = chosen.unwrap_or(port);
        let at = Place { namespace, transport, port };
        if consumer {
            self.allow_time_wait(id, at);
        }

        self.check_ordinary(pid, id, at, address, consumer)?;
        let port = if port != 0 { port } else { self.automatic(at, automatic)? };
        let at = Place { port, ..at };
        let counted = self.sockets[&id].role.is_none() && (self.in_pool(port) || self.is_reserved(at));
        if counted {
            self.contest(at);
        }
        self.settle(id, Bound { port, address, consumer, counted });
        Ok(port)
    }

    /// An associated socket takes a port of its block or none at all (A3, A4, A5).
    fn take(&mut self, id: SocketId, token: Token, transport: Transport, port: u16, skip: u16) -> Result<u16, Errno> {
        let Some(reservation) = self.reservations.get(&token).filter(|r| r.state == State::Active) else {
            return Err(Errno::EACCES);
        };
        if port != 0 && !reservation.block.contains(port) {
            return Err(Errno::EACCES);
        }
        self.withdraw_hint(id);
        if port != 0 { Ok(port) } else { self.draw(id, token, transport, skip).ok_or(Errno::EADDRINUSE) }
    }

    /// Whether a reservation admits a socket that is not associated to an explicit port (A7). A port that is not
    /// reserved, or whose reservation is only pending, is free for everybody.
    fn admit(&self, pid: Pid, id: SocketId, transport: Transport, port: u16) -> Result<bool, Errno> {
        let socket = &self.sockets[&id];
        let at = Place { namespace: socket.namespace, transport, port };
        if port == 0 || socket.role.is_some() {
            return Ok(false);
        }
        let admits = |reservation: &Reservation| !reservation.strict && self.may_bind(reservation, pid);
        match self.block_at(at) {
            Some((_, reservation)) if reservation.state != State::Active => Ok(false),
            Some((_, reservation)) if admits(reservation) => Ok(true),
            Some(_) => Err(self.settings.deny),
            None if self.lingers(at) => Err(self.settings.deny),
            None => Ok(false),
        }
    }

    /// The kernel's ordinary rules, in the order in which it applies them.
    fn check_ordinary(&self, pid: Pid, id: SocketId, at: Place, address: Address, consumer: bool) -> Result<(), Errno> {
        let socket = &self.sockets[&id];
        let privileged = consumer || socket.role.is_some() || self.process(pid).privileged;
        if address == Address::V4Elsewhere {
            return Err(EADDRNOTAVAIL);
        }
        if at.port != 0 && at.port < self.settings.unprivileged_start && !privileged {
            return Err(Errno::EACCES);
        }
        if socket.bound.is_some() {
            return Err(Errno::EINVAL);
        }
        if at.port != 0 && !self.may_share(id, at, address) {
            return Err(Errno::EADDRINUSE);
        }
        Ok(())
    }

    /// The kernel's automatic choice gets no reserved port (R3).
    fn automatic(&self, at: Place, port: u16) -> Result<u16, Errno> {
        let at = Place { port, ..at };
        let in_force = self.block_at(at).is_some_and(|(_, reservation)| reservation.state == State::Active);
        if in_force || self.lingers(at) { Err(self.settings.deny) } else { Ok(port) }
    }

    /// `connect` to port `to` of the loopback address of the socket's family, which always succeeds. If a socket
    /// without a port is associated, it draws one (A6), but never `to`. Otherwise it gets `automatic`. Returns the
    /// local port.
    ///
    /// A8 is for `bind` only: at a connect, the kernel draws a privileged port only for processes that may bind it
    /// anyway.
    pub fn connect(&mut self, pid: Pid, descriptor: Descriptor, to: u16, automatic: u16) -> Result<u16, Errno> {
        let id = self.look_up(pid, descriptor)?;
        let socket = &self.sockets[&id];
        let transport = socket.transport.expect("only TCP and UDP connect here");
        if socket.listens {
            return Err(EISCONN);
        }
        if let Some(bound) = socket.bound {
            self.settle(id, Bound { address: narrowed(bound.address), ..bound });
            self.share(id);
            return Ok(bound.port);
        }
        let address = if socket.v6 { Address::V6Connected } else { Address::V4Loopback };
        let at = Place { namespace: socket.namespace, transport, port: 0 };
        let (port, consumer) = match socket.associated {
            Some(token) => (self.take(id, token, transport, 0, to)?, true),
            None => (self.automatic(at, automatic)?, false),
        };
        if consumer {
            self.allow_time_wait(id, Place { port, ..at });
            if port < self.settings.unprivileged_start && !self.process(pid).privileged {
                return Err(Errno::EACCES);
            }
        }
        // No program sees the kernel's own choice for a connect.
        self.settle(id, Bound { port, address, consumer, counted: consumer });
        self.share(id);
        Ok(port)
    }

    /// `listen` on a TCP socket. One without a port gets the kernel's automatic
    /// choice even if it is associated: no program in the kernel sees that moment.
    pub fn listen(&mut self, pid: Pid, descriptor: Descriptor, automatic: u16) -> Result<u16, Errno> {
        let id = self.look_up(pid, descriptor)?;
        let socket = &self.sockets[&id];
        let any = if socket.v6 { Address::V6Any } else { Address::V4Any };
        let bound = socket.bound.unwrap_or(Bound { port: automatic, address: any, consumer: false, counted: false });
        let at = socket.at(bound.port).expect("only TCP listens here");
        if !self.may_share(id, at, bound.address) {
            return Err(Errno::EADDRINUSE);
        }
        self.settle(id, bound);
        self.socket_mut(id).listens = true;
        self.share(id);
        Ok(bound.port)
    }

    /// The next free port of the block. The search begins where the last draw ended, and goes round once. Ports that
    /// were drawn for a bind that then failed come last. `skip` is never drawn.
    fn draw(&mut self, id: SocketId, token: Token, transport: Transport, skip: u16) -> Option<u16> {
        let reservation = &self.reservations[&token];
        let at = |port| Place { namespace: reservation.namespace, transport, port };
        let free = |port: &u16| *port != skip && self.users(at(*port)) == 0;
        let block = reservation.block;
        let from = u16::try_from(u32::from(block.start()) + reservation.next).ok();
        let from = from.filter(|port| block.contains(*port)).unwrap_or(block.start());
        let unhinted = |port: &u16| free(port) && !self.hints.contains(&at(*port));
        let port =
            (from..=block.last()).chain(block.start()..from).find(unhinted).or_else(|| block.iter().find(free))?;

        let hint = at(port);
        self.hints.insert(hint);
        self.socket_mut(id).hint = Some(hint);
        let reservation = self.reservations.get_mut(&token)?;
        reservation.next = u32::from(port - block.start()) + 1;
        Some(port)
    }

    fn withdraw_hint(&mut self, id: SocketId) {
        if let Some(hint) = self.socket_mut(id).hint.take() {
            self.hints.remove(&hint);
        }
    }

    /// A9: a TCP consumer gets SO_REUSEADDR, so that TIME_WAIT does not keep it from the port. If another socket is
    /// bound there, it does not get the option, because the two could then share the port. If the program has set
    /// SO_REUSEPORT, it wants to share, and gets the option anyway.
    fn allow_time_wait(&mut self, id: SocketId, at: Place) {
        let shared = self.users(at) > 0;
        let options = &mut self.socket_mut(id).options;
        if at.transport == Transport::Tcp && (!shared || options.reuse_port) {
            options.reuse_address = true;
        }
    }

    /// A consumer's listener and its connections do not keep the next holder from binding the port (A9).
    fn share(&mut self, id: SocketId) {
        let socket = self.socket_mut(id);
        let consumer = socket.bound.is_some_and(|bound| bound.consumer && bound.counted);
        if socket.transport == Some(Transport::Tcp) && consumer {
            socket.options.reuse_address = true;
        }
    }

    fn settle(&mut self, id: SocketId, bound: Bound) {
        let at = self.sockets[&id].at(bound.port);
        if at.is_some() && self.sockets[&id].hint == at {
            self.withdraw_hint(id);
        }
        self.socket_mut(id).bound = Some(bound);
    }
}

/// A connected socket's local address is the one its packets leave from.
fn narrowed(address: Address) -> Address {
    match address {
        Address::V4Any => Address::V4Loopback,
        Address::V6Any => Address::V6Connected,
        other => other,
    }
}
