//! Reservations, and what the agent and the administrator do with them.

use super::{Model, Namespace, Pid, Place, SocketId, id::places_of};
use portkeep_core::{Errno, PortRange, Token, Transports};

/// The state of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Claimed; the agent is checking whether its ports are vacant. It keeps nobody from a port.
    Pending,
    /// Claimed, but one of its ports was bound before the agent answered: it will be refused.
    Contested,
    /// In force.
    Active,
    /// Refused by the agent. It has no ports any more, and exists only until its owner knows the refusal.
    Refused(Errno),
}

/// The owner of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The owner socket.
    pub socket: SocketId,
    /// The owner process.
    pub pid: Pid,
    /// Its real uid at that time.
    pub uid: u32,
}

/// The processes that may consume a reservation: scopes and audiences in one. Units are cgroups here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The owner process.
    Process,
    /// Processes with the owner's uid.
    User,
    /// Processes in the cgroup with this id, never 0, and below it.
    Cgroup(u64),
    /// Root, and the group of administrators.
    Administrators,
}

/// Others that a reservation admits in addition to its scope (R11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// Processes with this uid.
    User(u32),
    /// Processes of this group.
    Group(u32),
    /// Processes in the unit whose cgroup has this id.
    Unit(u64),
}

/// A block of ports.
#[derive(Clone, Debug)]
pub struct Reservation {
    /// The ports.
    pub block: PortRange,
    /// TCP, UDP or both.
    pub transports: Transports,
    /// The namespace.
    pub namespace: Namespace,
    /// Its owner.
    pub owner: Owner,
    /// The processes that may consume it.
    pub access: Access,
    /// Others that are admitted.
    pub also: Vec<Other>,
    /// An administrator made it; then the owner only says which user [`Access::User`] means.
    pub persistent: bool,
    /// Consumed by association only (A7).
    pub strict: bool,
    /// Binds to port 0 of its scope draw from it (E1).
    pub ephemeral: bool,
    /// For listings.
    pub label: String,
    /// Its state.
    pub state: State,
    /// When it was acquired, as a number that grows.
    pub(super) order: u64,
    /// Where the next draw begins (A3).
    pub(super) next: u32,
}

impl Reservation {
    /// Whether it claims this port.
    pub fn holds(&self, at: Place) -> bool {
        self.claims()
            && self.namespace == at.namespace
            && self.transports.contains(at.transport)
            && self.block.contains(at.port)
    }

    /// The ports it claims, of each transport.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        let (namespace, transports) = (self.namespace, self.transports);
        self.claims().then_some(self.block).into_iter().flat_map(move |block| places_of(namespace, transports, block))
    }

    pub(super) fn claims(&self) -> bool {
        !matches!(self.state, State::Refused(_))
    }

    /// Whether it waits for the agent.
    pub(super) fn waits(&self) -> bool {
        matches!(self.state, State::Pending | State::Contested)
    }
}

impl Model {
    /// The agent found the ports vacant: the reservation is in force, unless one of them was bound meanwhile.
    pub fn confirm(&mut self, token: Token) -> Result<(), Errno> {
        let reservation = self.waiting(token)?;
        if reservation.state == State::Contested {
            return Err(Errno::EADDRINUSE);
        }
        reservation.state = State::Active;
        Ok(())
    }

    /// The agent refuses a pending reservation.
    pub fn refuse(&mut self, token: Token, error: Errno) -> Result<(), Errno> {
        let reservation = self.waiting(token)?;
        reservation.state = State::Refused(error);
        // A refused request has no ports for others to use.
        reservation.also.clear();
        if reservation.persistent {
            self.reservations.remove(&token);
        }
        Ok(())
    }

    fn waiting(&mut self, token: Token) -> Result<&mut Reservation, Errno> {
        self.reservations.get_mut(&token).filter(|r| r.waits()).ok_or(Errno::ENOENT)
    }

    /// Enter a claimed reservation. Draws that failed for a former holder do not count for this one.
    pub(super) fn enter(&mut self, token: Token, reservation: Reservation) {
        self.hints.retain(|at| !reservation.holds(*at));
        let before = self.reservations.insert(token, reservation);
        assert!(before.is_none(), "R8: a token came twice");
    }

    /// Remove a reservation. If it was in force, its ports linger while sockets are bound to them (R7).
    pub(super) fn remove(&mut self, token: Token) -> Option<Reservation> {
        let reservation = self.reservations.remove(&token)?;
        if reservation.state == State::Active {
            let bound: Vec<Place> = reservation.places().filter(|at| self.users(*at) > 0).collect();
            self.lingering.extend(bound);
        }
        Some(reservation)
    }

    /// Forget a refused request, because the system needs its place on the owner socket. `false`: there was none.
    pub fn forget_refused(&mut self, token: Token) -> bool {
        let refused = |r: &Reservation| matches!(r.state, State::Refused(_));
        self.reservations.get(&token).is_some_and(refused) && self.reservations.remove(&token).is_some()
    }

    /// A socket takes a port that a request waits for: the request will be refused.
    pub(super) fn contest(&mut self, at: Place) {
        let pending = self.reservations.values_mut().find(|r| r.state == State::Pending && r.holds(at));
        if let Some(reservation) = pending {
            reservation.state = State::Contested;
        }
    }

    /// The administrator ends anybody's reservation.
    pub fn end(&mut self, token: Token) -> Result<(), Errno> {
        match self.remove(token) {
            Some(reservation) if reservation.claims() => Ok(()),
            _ => Err(Errno::ENOENT),
        }
    }

    /// A port is in use by a socket that no program saw being bound. Requests do not get it; binds can.
    pub fn set_aside(&mut self, at: Place) -> Result<(), Errno> {
        if self.is_reserved(at) {
            return Err(Errno::EADDRINUSE);
        }
        self.aside.insert(at);
        Ok(())
    }

    /// Ports of a namespace that automatic choices may give to anybody: wildcard requests come to them last.
    pub fn avoid(&mut self, namespace: Namespace, ports: Option<PortRange>) {
        match ports {
            Some(ports) => self.avoided.insert(namespace, ports),
            None => self.avoided.remove(&namespace),
        };
    }

    /// A port is no longer set aside.
    pub fn give_back(&mut self, at: Place) -> Result<(), Errno> {
        if self.aside.remove(&at) { Ok(()) } else { Err(Errno::ENOENT) }
    }
}
