//! The reference model: the whole facility as plain data and pure functions.
//!
//! It defines the answers of the BPF programs in the simplest form: sets, maps and linear scans, no bit tables, no
//! counters, and no stored value that can be derived. `portkeep-kernel` runs long random histories through the kernel
//! and through this model and compares every answer. All random results come in as arguments: tokens, process numbers,
//! and the ports of automatic choices.
//!
//! [`Model`] has three kinds of methods:
//!
//! * what a process does, with its number and usually a descriptor first:
//!   [`socket`](Model::socket), [`acquire`](Model::acquire),
//!   [`bind`](Model::bind), [`close`](Model::close), [`exit`](Model::exit) ...;
//!   their answers are those of the system calls;
//! * what the administrator or the agent does, with a token:
//!   [`confirm`](Model::confirm), [`refuse`](Model::refuse), [`end`](Model::end),
//!   [`set_aside`](Model::set_aside) ...;
//! * getters, which read the state and change nothing.
//!
//! Left out: addresses beyond [`Address`], accepted connections, TIME_WAIT (it never matters to a consumer, rule A9),
//! events, and the bind of sockets that are neither TCP nor UDP. The model has no clock: a port counts as closed
//! "lately" until the test says otherwise ([`Model::set_closed_lately`]).

#![forbid(unsafe_code)]

mod consume;
mod control;
mod id;
mod persistent;
mod process;
mod range;
mod reservation;
mod search;
mod socket;

#[cfg(test)]
mod invariants;
#[cfg(test)]
mod rules;

use std::collections::{BTreeMap, BTreeSet};

use portkeep_core::{Errno, PortRange, Token, Transports, defaults};

pub use control::{Request, Version};
pub use id::{Descriptor, Namespace, Pid, Place, SocketId};
pub use persistent::Persistent;
pub use process::Process;
pub use reservation::{Access, Other, Owner, Reservation, State};
pub use socket::{Address, Bound, Options, Role, Select, Socket};

/// The settings of an administrator.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where wildcard requests are served from.
    pub pool: Option<PortRange>,
    /// Ports a uid other than 0 may hold, unless [`Model::set_quota`] says otherwise.
    pub quota: u32,
    /// The error of an outsider's bind.
    pub deny: Errno,
    /// Ports below this need a privilege, or a reservation (A8).
    pub unprivileged_start: u16,
    /// The machine's own namespace: ports below `unprivileged_start` need a privilege to be acquired there.
    pub home: Option<Namespace>,
    /// The administrators' group, 0 = root only.
    pub admin_gid: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pool: Some(defaults::POOL),
            quota: defaults::QUOTA,
            deny: Errno::EADDRINUSE,
            unprivileged_start: defaults::UNPRIVILEGED_START,
            home: None,
            admin_gid: 0,
        }
    }
}

/// The facility, and the parts of the system that it depends on.
#[derive(Clone, Debug, Default)]
pub struct Model {
    settings: Settings,
    quotas: BTreeMap<u32, u32>,
    processes: BTreeMap<Pid, Process>,
    sockets: BTreeMap<SocketId, Socket>,
    reservations: BTreeMap<Token, Reservation>,
    /// Where the next wildcard search begins.
    cursors: BTreeMap<(Namespace, Transports), u32>,
    /// Drawn for a bind that failed afterwards: draws prefer other ports.
    hints: BTreeSet<Place>,
    aside: BTreeSet<Place>,
    lingering: BTreeSet<Place>,
    closed_lately: BTreeSet<Place>,
    /// Pool ports that automatic choices may give to anybody: wildcard requests come to them last.
    avoided: BTreeMap<Namespace, PortRange>,
    next_socket: SocketId,
}

impl Model {
    /// Nothing reserved, no processes.
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Give a uid a limit of its own; `u32::MAX` is none.
    pub fn set_quota(&mut self, uid: u32, ports: u32) {
        self.quotas.insert(uid, ports);
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The processes.
    pub fn processes(&self) -> &BTreeMap<Pid, Process> {
        &self.processes
    }

    /// The sockets that some process still has a descriptor of.
    pub fn sockets(&self) -> &BTreeMap<SocketId, Socket> {
        &self.sockets
    }

    /// The reservations, including refused ones whose owner does not know it yet.
    pub fn reservations(&self) -> &BTreeMap<Token, Reservation> {
        &self.reservations
    }

    /// Ports in use by sockets that no program saw being bound.
    pub fn aside(&self) -> &BTreeSet<Place> {
        &self.aside
    }

    /// The reservation, pending, contested or in force, that a port belongs to.
    pub fn block_at(&self, at: Place) -> Option<(Token, &Reservation)> {
        self.reservations
            .iter()
            .find(|(_, reservation)| reservation.holds(at))
            .map(|(token, reservation)| (*token, reservation))
    }

    /// How many of the sockets bound to a port are counted: all of those that found it reserved, or in the pool.
    pub fn users(&self, at: Place) -> usize {
        self.sockets.values().filter(|socket| socket.uses(at)).count()
    }

    /// A port whose reservation has ended and that sockets bound from it still have (R7).
    pub fn lingers(&self, at: Place) -> bool {
        self.lingering.contains(&at)
    }

    /// Whether a port belongs to a reservation, or still lingers from one.
    pub fn is_reserved(&self, at: Place) -> bool {
        self.block_at(at).is_some() || self.lingers(at)
    }

    /// Whether a port is in use as far as the programs in the kernel know by themselves. (The agent has to find other
    /// sockets that are bound outside the pool.)
    pub fn is_occupied(&self, at: Place) -> bool {
        self.users(at) > 0 || self.aside.contains(&at)
    }

    /// Pool ports that a counted socket has given up, and that wildcard searches therefore come to last.
    pub fn closed_lately(&self) -> &BTreeSet<Place> {
        &self.closed_lately
    }

    /// Time has passed: these, and no others, still count as closed lately.
    pub fn set_closed_lately(&mut self, places: BTreeSet<Place>) {
        self.closed_lately = places;
    }

    /// Whether a bind that failed afterwards had drawn this port: draws prefer others as long as its socket is open.
    pub fn is_hinted(&self, at: Place) -> bool {
        self.hints.contains(&at)
    }

    /// Every port that is reserved.
    pub fn reserved(&self) -> BTreeSet<Place> {
        let blocks = self.reservations.values().flat_map(Reservation::places);
        blocks.chain(self.lingering.iter().copied()).collect()
    }

    /// Ports a uid holds; each transport counts. A refused request counts as one until its owner knows the refusal.
    pub fn ports_of(&self, uid: u32) -> u32 {
        let held = |reservation: &Reservation| match reservation.state {
            State::Refused(_) => 1,
            State::Pending | State::Contested | State::Active => reservation.places().count(),
        };
        self.of_account(uid).map(held).sum::<usize>() as u32
    }

    /// Requests of a uid that wait for the agent.
    pub fn pending_of(&self, uid: u32) -> u32 {
        self.of_account(uid).filter(|reservation| reservation.waits()).count() as u32
    }

    fn of_account(&self, uid: u32) -> impl Iterator<Item = &Reservation> {
        self.reservations.values().filter(move |reservation| reservation.owner.uid == uid && !reservation.persistent)
    }

    fn next_order(&self) -> u64 {
        self.reservations.values().map(|reservation| reservation.order + 1).max().unwrap_or(0)
    }

    fn in_pool(&self, port: u16) -> bool {
        self.settings.pool.is_some_and(|pool| pool.contains(port))
    }
}
