//! The control codes: ACQUIRE, RELEASE, ASSOCIATE and the queries.
//!
//! Every one of them answers EBADF for a bad descriptor and EOPNOTSUPP for a
//! socket that is neither TCP nor UDP, in this order and before all else.

use super::{
    Access, Descriptor, Model, Other, Owner, Pid, Place, Reservation, Role, Select, SocketId, State, id::places_of,
};
use portkeep_core::{Align, Errno, PortRange, Scope, Token, Transport, Transports, wire};

/// So many requests of one uid other than root can wait for the agent.
const PENDING_MAX: u32 = 64;

/// A request of ACQUIRE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// First port, 0 for "the system chooses".
    pub start: u16,
    /// Number of ports.
    pub count: u16,
    /// The same numbers for TCP and UDP.
    pub both: bool,
    /// Consumed by association only.
    pub strict: bool,
    /// Binds to port 0 of its scope draw from it (E1).
    pub ephemeral: bool,
    /// As on the wire: see [`Align`].
    pub align: u16,
    /// Its scope. [`Scope::Cgroup`] of 0 is the caller's own.
    pub scope: Scope,
    /// Others that are admitted in addition to it (R11).
    pub also: Vec<Other>,
    /// For listings.
    pub label: String,
}

impl Request {
    /// `count` ports from `start`, and defaults for the rest.
    pub fn new(start: u16, count: u16) -> Self {
        Self {
            start,
            count,
            both: false,
            strict: false,
            ephemeral: false,
            align: 0,
            scope: Scope::Process,
            also: Vec::new(),
            label: String::new(),
        }
    }

    /// Reads a request on the wire, with what follows it. EINVAL if it is not valid.
    pub fn from_wire(wire: &wire::AcquireRequest, also: &[wire::Also]) -> Result<Self, Errno> {
        let kind = u8::try_from(wire.scope).map_err(|_| Errno::EINVAL)?;
        let scope = Scope::from_wire(kind, wire.cgroup).ok_or(Errno::EINVAL)?;
        let stray_cgroup = wire.cgroup != 0 && wire.scope != wire::SCOPE_CGROUP;
        if wire.flags & !(wire::BOTH | wire::STRICT | wire::EPHEMERAL) != 0 || wire.zero != 0 || stray_cgroup {
            return Err(Errno::EINVAL);
        }
        if usize::from(wire.also) != also.len() || also.len() > wire::ALSO_MAX {
            return Err(Errno::EINVAL);
        }
        let other = |also: &wire::Also| match u16::try_from(also.kind) {
            Ok(wire::SCOPE_USER) => Ok(Other::User(also.id)),
            Ok(wire::SCOPE_GROUP) => Ok(Other::Group(also.id)),
            // The model has no names.
            _ => Err(Errno::EINVAL),
        };
        Ok(Self {
            start: wire.start,
            count: wire.count,
            both: wire.flags & wire::BOTH != 0,
            strict: wire.flags & wire::STRICT != 0,
            ephemeral: wire.flags & wire::EPHEMERAL != 0,
            align: wire.align,
            scope,
            also: also.iter().map(other).collect::<Result<_, _>>()?,
            label: wire::text(&wire.label),
        })
    }

    fn is_valid(&self) -> bool {
        let aligned = Align::new(self.align).is_ok_and(|align| align.allows(self.start));
        let fits = self.count > 0 && u32::from(self.start) + u32::from(self.count) <= 65536;
        fits && aligned && !(self.strict && self.ephemeral)
    }
}

/// The answer of VERSION, as far as it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Whether an agent runs.
    pub agent: bool,
    /// Reservations, pending or in force.
    pub reservations: u32,
    /// Ports in them; each transport counts.
    pub ports: u64,
}

impl Model {
    fn control(&self, pid: Pid, descriptor: Descriptor) -> Result<(SocketId, Transport), Errno> {
        let id = self.look_up(pid, descriptor)?;
        Ok((id, self.sockets[&id].transport.ok_or(Errno::EOPNOTSUPP)?))
    }

    /// ACQUIRE. `token` is the one it gets, if it gets any; it must be new.
    ///
    /// `EINPROGRESS` is no failure: the block is claimed, and in force once the agent has confirmed it.
    /// [`Model::granted`] reports the rest.
    ///
    /// Acquiring privileged ports of the machine's own namespace requires a right; elsewhere the agent decides.
    pub fn acquire(&mut self, pid: Pid, descriptor: Descriptor, ask: &Request, token: Token) -> Result<(), Errno> {
        let (id, transport) = self.control(pid, descriptor)?;
        if !ask.is_valid() {
            return Err(Errno::EINVAL);
        }
        let process = self.process(pid);
        let uid = process.uid;
        let access = match ask.scope {
            Scope::Process => Access::Process,
            Scope::User => Access::User,
            Scope::Cgroup(0) => Access::Cgroup(process.own_cgroup()),
            // The cgroup is the caller's own or one above it: nobody can reserve ports only for others.
            Scope::Cgroup(cgroup) if !process.cgroups.contains(&cgroup) => return Err(Errno::EINVAL),
            Scope::Cgroup(cgroup) => Access::Cgroup(cgroup),
        };
        if self.owned(id).count() >= wire::OWNED && !self.make_room(id) {
            return Err(Errno::EDQUOT);
        }
        let transports = if ask.both { Transports::Both } else { transport.into() };
        let ports = u64::from(ask.count) * transports.iter().count() as u64;
        if u64::from(self.ports_of(uid)) + ports > u64::from(self.limit_of(uid)) {
            return Err(Errno::EDQUOT);
        }

        let namespace = self.sockets[&id].namespace;
        let taken = ask.ephemeral && self.has_range(namespace, transports, access, (pid, uid), false);
        let (block, state) = match PortRange::new(ask.start, ask.count) {
            Ok(block) => (block, self.claim_specific(pid, namespace, transports, block, taken)?),
            Err(_) if taken => return Err(Errno::EEXIST),
            Err(_) => {
                let align = Align::new(ask.align).map_err(|_| Errno::EINVAL)?;
                (self.find_block(namespace, transports, ask.count, align).ok_or(Errno::ENOSPC)?, State::Active)
            }
        };
        let reservation = Reservation {
            block,
            transports,
            namespace,
            owner: Owner { socket: id, pid, uid },
            access,
            also: ask.also.clone(),
            persistent: false,
            strict: ask.strict,
            ephemeral: ask.ephemeral,
            label: ask.label.clone(),
            state,
            order: self.next_order(),
            next: 0,
        };
        self.enter(token, reservation);
        self.socket_mut(id).last_acquired = Some(token);
        if state == State::Pending { Err(Errno::EINPROGRESS) } else { Ok(()) }
    }

    fn claim_specific(
        &self,
        pid: Pid,
        namespace: u64,
        transports: Transports,
        block: PortRange,
        has_range: bool,
    ) -> Result<State, Errno> {
        let process = self.process(pid);
        let privileged = block.start() < self.settings.unprivileged_start && self.settings.home == Some(namespace);
        if privileged && !process.privileged {
            return Err(Errno::EACCES);
        }
        let places = || places_of(namespace, transports, block);
        let pending = self.needs_agent(places());
        if pending && !self.agent_runs() {
            return Err(Errno::ENETDOWN);
        }
        if pending && process.uid != 0 && self.pending_of(process.uid) >= PENDING_MAX {
            return Err(Errno::EDQUOT);
        }
        if has_range {
            return Err(Errno::EEXIST);
        }
        if places().any(|at| self.is_reserved(at) || !pending && self.is_occupied(at)) {
            return Err(Errno::EADDRINUSE);
        }
        Ok(if pending { State::Pending } else { State::Active })
    }

    /// Binds outside the pool are not counted, so the agent has to check. In the pool, a running agent checks ports
    /// where TCP connections may remain.
    fn needs_agent(&self, mut places: impl Iterator<Item = Place>) -> bool {
        let left = |at: &Place| at.transport == Transport::Tcp && self.closed_lately.contains(at);
        places.any(|at| !self.in_pool(at.port) || self.agent_runs() && left(&at))
    }

    fn limit_of(&self, uid: u32) -> u32 {
        let default = if uid == 0 { u32::MAX } else { self.settings.quota };
        self.quotas.get(&uid).copied().unwrap_or(default)
    }

    /// RELEASE: any socket of the owner process works, if it is of the right transport and namespace (R7).
    pub fn release(&mut self, pid: Pid, descriptor: Descriptor, token: u64) -> Result<(), Errno> {
        let (id, transport) = self.control(pid, descriptor)?;
        let (token, reservation) = self.named(token).ok_or(Errno::ENOENT)?;
        self.check_kind(id, transport, reservation)?;
        if reservation.owner.pid != pid {
            return Err(Errno::EPERM);
        }
        // For a refused request, this removes the last trace.
        self.end(token)
    }

    /// ASSOCIATE. A second one replaces the first (A1).
    pub fn associate(&mut self, pid: Pid, descriptor: Descriptor, token: u64) -> Result<(), Errno> {
        let (id, transport) = self.control(pid, descriptor)?;
        if self.sockets[&id].bound.is_some() {
            return Err(Errno::EINVAL);
        }
        let (token, reservation) = self.named(token).filter(|(_, r)| r.state == State::Active).ok_or(Errno::ENOENT)?;
        self.check_kind(id, transport, reservation)?;
        if !self.may_associate(reservation, pid) {
            return Err(Errno::EPERM);
        }
        self.socket_mut(id).associated = Some(token);
        Ok(())
    }

    fn check_kind(&self, id: SocketId, transport: Transport, reservation: &Reservation) -> Result<(), Errno> {
        let fits = reservation.transports.contains(transport) && reservation.namespace == self.sockets[&id].namespace;
        if fits { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// GRANTED: what the last ACQUIRE on this socket gave. An error is reported once.
    pub fn granted(&mut self, pid: Pid, descriptor: Descriptor) -> Result<(Token, Reservation), Errno> {
        let (id, _) = self.control(pid, descriptor)?;
        let token = self.sockets[&id].last_acquired.ok_or(Errno::ENOENT)?;
        let reservation = self.reservations.get(&token).cloned().ok_or(Errno::ENOENT)?;
        match reservation.state {
            State::Refused(_) | State::Contested => drop(self.remove(token)),
            State::Pending | State::Active => {}
        }
        Ok((token, reservation))
    }

    /// SELECT: what [`Model::state`] shall report.
    pub fn select(&mut self, pid: Pid, descriptor: Descriptor, select: Select) -> Result<(), Errno> {
        let (id, _) = self.control(pid, descriptor)?;
        self.socket_mut(id).selected = Some(select);
        Ok(())
    }

    /// STATE: the reservation selected, of this namespace only. The token is shown only to processes that may bind its
    /// ports; that of a persistent one is shown to all.
    pub fn state(&self, pid: Pid, descriptor: Descriptor) -> Result<(Option<Token>, &Reservation), Errno> {
        let (id, _) = self.control(pid, descriptor)?;
        let socket = &self.sockets[&id];
        let here = || self.reservations.iter().filter(|(_, r)| r.namespace == socket.namespace);
        let found = match socket.selected.ok_or(Errno::EINVAL)? {
            Select::Token(token) => here().find(|(other, _)| other.get() == token),
            Select::Port(transport, port) => {
                let at = Place { namespace: socket.namespace, transport, port };
                here().find(|(_, reservation)| reservation.holds(at))
            }
            Select::Next(transport, port) => here()
                .filter(|(_, r)| !matches!(r.state, State::Refused(_)) && r.transports.contains(transport))
                .filter(|(_, reservation)| reservation.block.start() >= port)
                .min_by_key(|(_, reservation)| reservation.block.start()),
            Select::Index(index) => self.owned(id).nth(index.into()),
            Select::Associated => here().find(|(other, _)| socket.associated == Some(**other)),
        };
        let (token, reservation) = found.ok_or(Errno::ENOENT)?;
        let visible = (reservation.persistent || self.may_bind(reservation, pid)).then_some(*token);
        Ok((visible, reservation))
    }

    /// The use of a reservation, as STATE reports it: ports in use, of each transport.
    pub fn bound_ports(&self, reservation: &Reservation) -> u32 {
        reservation.places().filter(|at| self.is_occupied(*at)).count() as u32
    }

    /// VERSION.
    pub fn version(&self) -> Version {
        let ports = |reservation: &Reservation| reservation.places().count();
        Version {
            agent: self.agent_runs(),
            reservations: self.reservations.values().filter(|r| ports(r) > 0).count() as u32,
            ports: self.reservations.values().map(|r| ports(r) as u64).sum(),
        }
    }

    /// AGENT: with the secret of the settings, a socket is permanently marked as one of the agent's.
    pub fn mark(&mut self, pid: Pid, descriptor: Descriptor, role: Role) -> Result<(), Errno> {
        let (id, _) = self.control(pid, descriptor)?;
        let mark = &mut self.socket_mut(id).role;
        if mark.is_some() {
            return Err(Errno::EINVAL);
        }
        *mark = Some(role);
        Ok(())
    }

    fn named(&self, token: u64) -> Option<(Token, &Reservation)> {
        let token = Token::new(token)?;
        Some((token, self.reservations.get(&token)?))
    }

    pub(super) fn owned(&self, id: SocketId) -> impl Iterator<Item = (&Token, &Reservation)> {
        let mut owned: Vec<_> = self.reservations.iter().filter(move |(_, r)| r.owner.socket == id).collect();
        owned.sort_by_key(|(_, reservation)| reservation.order);
        owned.into_iter()
    }

    /// Remove a refused request that GRANTED can no longer report, to make room for a new reservation.
    fn make_room(&mut self, id: SocketId) -> bool {
        let last = self.sockets[&id].last_acquired;
        let stale = self
            .owned(id)
            .find(|(token, reservation)| Some(**token) != last && matches!(reservation.state, State::Refused(_)))
            .map(|(token, _)| *token);
        stale.is_some_and(|token| self.forget_refused(token))
    }

    pub(super) fn socket_mut(&mut self, id: SocketId) -> &mut super::Socket {
        self.sockets.get_mut(&id).expect("a descriptor refers to a socket")
    }
}
