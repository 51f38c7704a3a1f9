//! Reservations, and what the agent and the administrator do with them.

use super::{Model, Namespace, Pid, Place, SocketId};
use portkeep_core::{Errno, PortRange, Scope, Token, Transports};

/// How far a reservation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Claimed; the agent is looking whether its ports are vacant.
    Pending,
    /// In force.
    Active,
    /// Taken back by the agent. It has no ports any more and stays only until its owner has heard of it.
    Refused(Errno),
}

/// Who acquired a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The owner socket.
    pub socket: SocketId,
    /// The owner process.
    pub pid: Pid,
    /// Its real uid at that time.
    pub uid: u32,
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
    /// Who acquired it.
    pub owner: Owner,
    /// Who may consume it. A cgroup is named by its id here, never by 0.
    pub scope: Scope,
    /// An administrator made it; the owner then only says whom [`Scope::User`] means.
    pub persistent: bool,
    /// Consumed by association only (A7).
    pub strict: bool,
    /// For listings.
    pub label: String,
    /// How far it has come.
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
        let namespace = self.namespace;
        let block = self.claims().then_some(self.block);
        let transports = self.transports;
        block
            .into_iter()
            .flatten()
            .flat_map(move |port| transports.iter().map(move |transport| Place { namespace, transport, port }))
    }

    fn claims(&self) -> bool {
        !matches!(self.state, State::Refused(_))
    }
}

impl Model {
    /// The agent found the ports vacant: the reservation is in force.
    pub fn confirm(&mut self, token: Token) -> Result<(), Errno> {
        self.pending(token)?.state = State::Active;
        Ok(())
    }

    /// The agent takes a pending reservation back.
    pub fn refuse(&mut self, token: Token, error: Errno) -> Result<(), Errno> {
        self.pending(token)?.state = State::Refused(error);
        Ok(())
    }

    fn pending(&mut self, token: Token) -> Result<&mut Reservation, Errno> {
        self.reservations.get_mut(&token).filter(|r| r.state == State::Pending).ok_or(Errno::ENOENT)
    }

    /// The administrator ends anybody's reservation.
    pub fn end(&mut self, token: Token) -> Result<(), Errno> {
        match self.reservations.remove(&token) {
            Some(reservation) if reservation.claims() => Ok(()),
            _ => Err(Errno::ENOENT),
        }
    }

    /// A port that was in use before the kernel part came up: nobody gets it.
    pub fn set_aside(&mut self, at: Place) -> Result<(), Errno> {
        if self.is_taken(at) {
            return Err(Errno::EADDRINUSE);
        }
        self.aside.insert(at);
        Ok(())
    }

    /// A port set aside is vacant again.
    pub fn give_back(&mut self, at: Place) -> Result<(), Errno> {
        if self.aside.remove(&at) { Ok(()) } else { Err(Errno::ENOENT) }
    }

    /// Whether an agent runs, to confirm specific requests outside the pool.
    pub fn agent_runs(&self) -> bool {
        self.sockets.values().any(|socket| socket.role == Some(super::Role::Beacon))
    }
}
