//! Events of the BPF programs, as they happen.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use aya::maps::{Map, MapData, RingBuf};
use portkeep_core::{PortRange, Transports, wire};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::maps::{MapAccessError, call};

/// Mirror of `struct event`.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Raw {
    kind: u32,
    id: u32,
    when: u64,
    netns: u64,
    cgroup: u64,
    pid: u32,
    tid: u32,
    uid: u32,
    start: u16,
    count: u16,
    transports: u8,
    zero: [u8; 3],
    owner: u32,
    comm: [u8; 16],
    untold: u32,
    zero2: u32,
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RingEventKind {
    /// A reservation came into force.
    Granted,
    /// A reservation ended.
    Ended,
    /// The bind of an outsider was refused.
    Refused,
    /// A reservation waits for the agent.
    Pending,
    /// A bind to port 0 found its private ephemeral range used up.
    Exhausted,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RingEvent {
    /// The kind of event.
    pub kind: RingEventKind,
    /// Id of the reservation, 0 if there is none (a pool port that is not reserved).
    pub id: u32,
    /// When, nanoseconds of `CLOCK_MONOTONIC`.
    pub when: u64,
    /// Network namespace cookie.
    pub netns: u64,
    /// Cgroup id of the process that caused the event.
    pub cgroup: u64,
    /// The process that caused the event, as the first pid namespace numbers it.
    pub pid: u32,
    /// Its thread.
    pub tid: u32,
    /// Its real uid.
    pub uid: u32,
    /// The block, or the one port refused.
    pub ports: PortRange,
    /// Of which transports.
    pub transports: Transports,
    /// Owner process of the reservation, 0 if there is none.
    pub owner: u32,
    /// Command name of the process that caused the event.
    pub comm: String,
    /// Earlier refusals of the same process that were not reported.
    pub untold: u32,
}

impl RingEvent {
    /// Read an event from a record of the ring. `None` if the record is invalid; BPF programs of this ABI write no such
    /// record.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (raw, _) = Raw::read_from_prefix(bytes).ok()?;
        Some(Self {
            kind: match raw.kind {
                1 => RingEventKind::Granted,
                2 => RingEventKind::Ended,
                3 => RingEventKind::Refused,
                4 => RingEventKind::Pending,
                5 => RingEventKind::Exhausted,
                _ => return None,
            },
            id: raw.id,
            when: raw.when,
            netns: raw.netns,
            cgroup: raw.cgroup,
            pid: raw.pid,
            tid: raw.tid,
            uid: raw.uid,
            ports: PortRange::new(raw.start, raw.count).ok()?,
            transports: Transports::from_bits(raw.transports)?,
            owner: raw.owner,
            comm: wire::text(&raw.comm),
            untold: raw.untold,
        })
    }
}

/// The event ring. There must be one reader at a time: each event goes to one reader only.
///
/// Events are only written while a socket marked [`wire::AGENT_READER`] is
/// open (those of pending requests also while a beacon is).
pub struct Events {
    ring: RingBuf<MapData>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    pub(crate) fn new(data: MapData) -> Result<Self, MapAccessError> {
        let ring = RingBuf::try_from(Map::RingBuf(data)).map_err(call("events"))?;
        Ok(Self { ring })
    }

    pub(crate) fn from_pin(path: &Path) -> Result<Self, MapAccessError> {
        Self::new(MapData::from_pin(path).map_err(call("events"))?)
    }

    /// The next event, `None` if there is none at the moment. To wait, poll the descriptor for input.
    pub fn next_event(&mut self) -> Option<RingEvent> {
        loop {
            let item = self.ring.next()?;
            if let Some(event) = RingEvent::from_bytes(&item) {
                return Some(event);
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}
