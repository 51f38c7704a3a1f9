//! The reservations that are certainly in force, at this very moment.
//!
//! A grant is written down after ACQUIRE has returned, and crossed out before anything is done that ends it: RELEASE, the
//! close of the last descriptor, a SIGKILL (the host first says that the process is no longer alive, then kills). So
//! an entry here is in force, whatever else is under way: a port of it must be granted to nobody else, and a process
//! outside its scope must not get to bind it. Other reservations may also be in force; nothing is concluded from that.
//!
//! A look at the ledger proves something about an earlier call if the grant was certain before the call began and is still
//! certain when one looks: then it was all the while.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use portkeep_core::{Token, Transport, Transports, wire};

use super::shared::{Crew, GRANTS, GrantCell, Section, Shared};

/// A port as the ledger numbers it.
pub(super) fn place(transport: Transport, port: u16) -> usize {
    usize::from(transport.bit() - 1) << 16 | usize::from(port)
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub(super) fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A reservation as it is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) token: u64,
    pub(super) start: u16,
    pub(super) count: u16,
    pub(super) transports: u8,
    pub(super) scope: u8,
    pub(super) flags: u8,
    pub(super) pid: u32,
    /// With the scope `group` the gid.
    pub(super) uid: u32,
    pub(super) cgroup: u64,
    pub(super) since: u64,
}

/// Names a written grant: never the same twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry(u64);

impl Entry {
    pub(super) fn holder(self) -> usize {
        (self.0 >> 8 & 0xfff) as usize
    }

    fn slot(self) -> usize {
        (self.0 & 0xff) as usize
    }

    fn sequence(self) -> u64 {
        self.0 >> 20
    }
}

/// The process that asks.
#[derive(Clone, Debug)]
pub(super) struct Person {
    pub(super) pid: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Its cgroup and all above it.
    pub(super) cgroups: Vec<u64>,
}

impl Grant {
    pub(super) fn token(&self) -> Option<Token> {
        Token::new(self.token)
    }

    pub(super) fn contains(&self, port: u16) -> bool {
        port >= self.start && port - self.start < self.count
    }

    pub(super) fn of(&self, transport: Transport) -> bool {
        self.transports & transport.bit() != 0
    }

    pub(super) fn strict(&self) -> bool {
        u32::from(self.flags) & wire::STRICT != 0
    }

    pub(super) fn in_scope(&self, person: &Person) -> bool {
        match self.scope.into() {
            wire::SCOPE_PROCESS => person.pid == self.pid,
            wire::SCOPE_USER => person.uid == self.uid,
            wire::SCOPE_GROUP => person.gid == self.uid,
            wire::SCOPE_CGROUP => person.cgroups.contains(&self.cgroup),
            _ => person.uid == 0,
        }
    }

    /// Whether a socket that is not associated may bind the ports.
    pub(super) fn may_bind(&self, person: &Person) -> bool {
        !self.strict() && self.in_scope(person)
    }

    pub(super) fn may_associate(&self, person: &Person) -> bool {
        self.in_scope(person) || (u32::from(self.flags) & wire::PERSISTENT != 0 && person.uid == 0)
    }

    pub(super) fn places(&self) -> impl Iterator<Item = usize> + use<> {
        let ports = self.start..=self.start + (self.count - 1);
        let transports = Transports::from_bits(self.transports).unwrap_or(Transports::Both);
        let tables: Vec<_> = transports.iter().collect();
        tables.into_iter().flat_map(move |transport| ports.clone().map(move |port| place(transport, port)))
    }

    pub(super) fn describe(&self) -> String {
        format!(
            "{}+{} transports {} scope {} flags {:x} pid {} uid {} cgroup {} token {:016x}",
            self.start,
            self.count,
            self.transports,
            self.scope,
            self.flags,
            self.pid,
            self.uid,
            self.cgroup,
            self.token
        )
    }
}

fn read(cell: &GrantCell) -> Grant {
    let block = cell.block.load(SeqCst);
    let owner = cell.owner.load(SeqCst);
    Grant {
        token: cell.token.load(SeqCst),
        start: block as u16,
        count: (block >> 16) as u16,
        transports: (block >> 32) as u8,
        scope: (block >> 40) as u8,
        flags: (block >> 48) as u8,
        pid: owner as u32,
        uid: (owner >> 32) as u32,
        cgroup: cell.cgroup.load(SeqCst),
        since: cell.since.load(SeqCst),
    }
}

/// The ledger of one namespace, as one process sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ledger {
    shared: Shared,
    section: &'static Section,
    me: usize,
    incarnation: u64,
}

impl Ledger {
    pub(super) fn new(shared: Shared, section: usize, me: usize, incarnation: u64) -> Self {
        Self { shared, section: &shared.sections[section], me, incarnation }
    }

    fn crew(&self, number: usize) -> &'static Crew {
        &self.shared.crew[number]
    }

    fn next(&self, slot: usize) -> Entry {
        let sequence = self.shared.common.sequence.fetch_add(1, SeqCst) + 1;
        Entry(sequence << 20 | (self.me as u64) << 8 | slot as u64)
    }

    /// A slot to write a grant in.
    pub(super) fn free_slot(&self) -> Option<usize> {
        let mine = &self.crew(self.me).grants;
        (0..GRANTS).find(|slot| {
            mine[*slot].sequence.load(SeqCst) == 0 || mine[*slot].incarnation.load(SeqCst) != self.incarnation
        })
    }

    /// Write a grant down; `Err` names the owner of a port that is already granted.
    pub(super) fn write(&self, slot: usize, grant: &Grant) -> Result<Entry, (u16, Entry, Grant)> {
        let cell = &self.crew(self.me).grants[slot];
        let entry = self.next(slot);
        let block = u64::from(grant.start) | u64::from(grant.count) << 16 | u64::from(grant.transports) << 32;
        let block = block | u64::from(grant.scope) << 40 | u64::from(grant.flags) << 48;
        cell.sequence.store(0, SeqCst);
        cell.incarnation.store(self.incarnation, SeqCst);
        cell.token.store(grant.token, SeqCst);
        cell.block.store(block, SeqCst);
        cell.owner.store(u64::from(grant.pid) | u64::from(grant.uid) << 32, SeqCst);
        cell.cgroup.store(grant.cgroup, SeqCst);
        cell.since.store(grant.since, SeqCst);
        cell.sequence.store(entry.sequence(), SeqCst);
        let mut conflict = None;
        for place in grant.places() {
            let old = Entry(self.section.granted[place].swap(entry.0, SeqCst));
            if let Some(other) = self.certain(old) {
                conflict = Some((place as u16, old, other));
            }
        }
        conflict.map_or(Ok(entry), Err)
    }

    /// Cross a grant out: from now on it may end.
    pub(super) fn cross_out(&self, entry: Entry, grant: &Grant) {
        let cell = &self.crew(entry.holder()).grants[entry.slot()];
        let _ = cell.sequence.compare_exchange(entry.sequence(), 0, SeqCst, SeqCst);
        for place in grant.places() {
            let _ = self.section.granted[place].compare_exchange(entry.0, 0, SeqCst, SeqCst);
        }
    }

    /// The grant, if it is certainly in force at this moment.
    fn certain(&self, entry: Entry) -> Option<Grant> {
        if entry.0 == 0 {
            return None;
        }
        let crew = self.shared.crew.get(entry.holder())?;
        let cell = crew.grants.get(entry.slot())?;
        let grant = read(cell);
        // Read last, and in this order: if the grant was crossed out or its process killed before this moment, it
        // proves nothing.
        let incarnation = cell.incarnation.load(SeqCst);
        let alive = crew.alive.load(SeqCst) == incarnation && incarnation != 0;
        (alive && cell.sequence.load(SeqCst) == entry.sequence()).then_some(grant)
    }

    /// Whether it is in force at this moment, and has been since it was written.
    pub(super) fn is_certain(&self, entry: Entry) -> bool {
        self.certain(entry).is_some()
    }

    /// The grant of a port that was in force from before `since` until now.
    pub(super) fn held_since(&self, transport: Transport, port: u16, since: u64) -> Option<(Entry, Grant)> {
        let entry = Entry(self.section.granted[place(transport, port)].load(SeqCst));
        let grant = self.certain(entry)?;
        (grant.since < since && grant.contains(port) && grant.of(transport)).then_some((entry, grant))
    }

    /// The grant in somebody's slot, if there is one and it is of this namespace.
    pub(super) fn of(&self, number: usize, slot: usize) -> Option<(Entry, Grant)> {
        let cell = &self.crew(number).grants[slot];
        let sequence = cell.sequence.load(SeqCst);
        if sequence == 0 {
            return None;
        }
        let entry = Entry(sequence << 20 | (number as u64) << 8 | slot as u64);
        let grant = self.certain(entry)?;
        let here = self.section.granted[grant.places().next()?].load(SeqCst) == entry.0;
        here.then_some((entry, grant))
    }

    /// A socket has drawn a port; `Err` names the process that has drawn it and holds it. Gives the mark to cross out.
    pub(super) fn draw(&self, transport: Transport, port: u16) -> Result<Drawn, usize> {
        let mark = self.shared.common.sequence.fetch_add(1, SeqCst) + 1;
        let mark = mark << 20 | (self.incarnation & 0xff) << 12 | self.me as u64;
        let place = place(transport, port);
        let old = self.section.drawn[place].swap(mark, SeqCst);
        let holder = (old & 0xfff) as usize;
        let alive = self.shared.crew.get(holder).map_or(0, |crew| crew.alive.load(SeqCst));
        if old != 0 && alive != 0 && alive & 0xff == old >> 12 & 0xff {
            return Err(holder);
        }
        Ok(Drawn { place, mark })
    }

    /// The socket that drew it is about to be closed.
    pub(super) fn undraw(&self, drawn: &Drawn) {
        let cell: &AtomicU64 = &self.section.drawn[drawn.place];
        let _ = cell.compare_exchange(drawn.mark, 0, SeqCst, SeqCst);
    }
}

/// A port that a socket has drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drawn {
    place: usize,
    mark: u64,
}
