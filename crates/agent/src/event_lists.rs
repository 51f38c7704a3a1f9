//! The reservations in force, for the event log. A list is one reservation and is reported once.

use std::collections::{HashMap, hash_map};

use portkeep::Info;
use portkeep_core::{ListMark, PortList, PortRange, Transports, wire};
use portkeep_kernel::{Maps, Reservation, RingEvent};

/// A reservation of the BPF programs.
pub(super) fn info(maps: &Maps, reservation: &Reservation) -> Option<Info> {
    Info::from_wire(&maps.state(reservation).ok()?, &maps.also(reservation).ok()?)
}

/// The blocks of one list of a program have this in common, and no other blocks have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ListKey {
    mark: ListMark,
    netns: u64,
    owner: u32,
}

impl ListKey {
    pub(super) fn of(reservation: &Reservation) -> Option<Self> {
        let mark = ListMark::of(&reservation.label)?;
        Some(Self { mark, netns: reservation.netns, owner: reservation.pid })
    }
}

/// A block as the events of its begin and of its end describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    netns: u64,
    owner: u32,
    ports: PortRange,
    transports: Transports,
}

impl Block {
    fn of(reservation: &Reservation) -> Option<Self> {
        let (ports, transports) = (reservation.ports()?, reservation.transports()?);
        Some(Self { netns: reservation.netns, owner: reservation.pid, ports, transports })
    }
}

impl From<&RingEvent> for Block {
    fn from(event: &RingEvent) -> Self {
        Self { netns: event.netns, owner: event.owner, ports: event.ports, transports: event.transports }
    }
}

/// The process that a reservation belongs to, and its label. At the end of a reservation its entry is empty.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    pub(super) uid: u32,
    pub(super) comm: [u8; 16],
    pub(super) label: [u8; 24],
}

impl Holder {
    fn of(reservation: &Reservation) -> Self {
        Self { uid: reservation.uid, comm: reservation.comm, label: reservation.label }
    }
}

/// A block that is in force.
#[derive(Debug)]
struct InForce {
    block: Block,
    list: Option<ListKey>,
    /// Unknown if the reservation ended before the event of its begin was read.
    holder: Option<Holder>,
}

/// The part of its reservation that an event about a block concerns.
pub(super) enum Part {
    /// All of it.
    Whole,
    /// The block that completed a list with these ports, or the last one of it to end.
    Last(PortList),
    /// None that is to be reported: another block of a list, or a request that was not granted.
    Other,
}

/// The blocks in force. The BPF programs report each block, but the log reports each list. They also report the end of
/// a request that was not granted. Such a request reserves nothing, so the log does not report its end.
#[derive(Debug, Default)]
pub(super) struct Lists {
    in_force: HashMap<u32, InForce>,
    /// Blocks that the agent has confirmed. Their reservation may have ended before the event is read.
    pub(super) confirmed: HashMap<u32, ListKey>,
    lists: HashMap<ListKey, List>,
}

#[derive(Debug, Default)]
struct List {
    /// The blocks that have not ended. Ended ones are removed: a program chooses its labels, so any number of blocks
    /// may have the same label in turn.
    blocks: Vec<(u32, PortRange)>,
    /// Set once all blocks exist.
    ports: Option<PortList>,
}

impl Lists {
    pub(super) fn of(maps: &Maps) -> Self {
        let mut lists = Self::default();
        let in_force = maps.reservations().flatten().filter(|(_, reservation)| reservation.state() == wire::ACTIVE);
        for (id, reservation) in in_force {
            if let Some(block) = Block::of(&reservation) {
                let _ = lists.granted(id, block, Some(&reservation));
            }
        }
        lists
    }

    /// A request has taken the entry `id`. The event of the end of its last reservation may have been lost.
    pub(super) fn requested(&mut self, id: u32) {
        if let Some(InForce { block, .. }) = self.in_force.get(&id) {
            let _ = self.ended(id, *block);
        }
    }

    /// A block came into force. `entry` is what its entry contains by now.
    pub(super) fn granted(&mut self, id: u32, block: Block, entry: Option<&Reservation>) -> Part {
        let holder = entry.filter(|entry| Block::of(entry) == Some(block)).map(Holder::of);
        self.listed(id, block, entry.and_then(ListKey::of), holder)
    }

    fn listed(&mut self, id: u32, block: Block, list: Option<ListKey>, holder: Option<Holder>) -> Part {
        self.requested(id);
        let list = list.or(self.confirmed.remove(&id));
        self.in_force.insert(id, InForce { block, list, holder });
        let Some(key) = list else { return Part::Whole };
        let list = self.lists.entry(key).or_default();
        list.blocks.push((id, block.ports));
        if list.ports.is_some() || list.blocks.len() < key.mark.blocks() {
            return Part::Other;
        }
        list.ports = PortList::new(list.blocks.iter().map(|(_, ports)| *ports)).ok();
        list.ports.clone().map_or(Part::Other, Part::Last)
    }

    /// The holder of a block that has ended. Call it before [`Self::ended`].
    pub(super) fn holder(&self, id: u32, block: Block) -> Option<Holder> {
        self.in_force.get(&id).filter(|in_force| in_force.block == block)?.holder
    }

    /// A block has ended. If it was not granted, or its list was never complete, this is not reported.
    pub(super) fn ended(&mut self, id: u32, block: Block) -> Part {
        let Some(InForce { block: granted, list, .. }) = self.in_force.remove(&id) else { return Part::Other };
        let part = list.map_or(Part::Whole, |key| self.ended_of(key, id));
        // If it is another block, events were lost, and it is not known whether this one was granted.
        if granted == block { part } else { Part::Other }
    }

    fn ended_of(&mut self, key: ListKey, id: u32) -> Part {
        let hash_map::Entry::Occupied(mut entry) = self.lists.entry(key) else { return Part::Other };
        entry.get_mut().blocks.retain(|(other, _)| *other != id);
        if !entry.get().blocks.is_empty() {
            return Part::Other;
        }
        entry.remove().ports.map_or(Part::Other, Part::Last)
    }

    /// A reservation of the BPF programs, with the other blocks of its list.
    pub(super) fn whole(&self, maps: &Maps, reservation: &Reservation) -> Option<Info> {
        let block = info(maps, reservation)?;
        let list = ListKey::of(reservation).and_then(|key| Some((key, self.lists.get(&key)?)));
        let Some((key, list)) = list else { return Some(block) };
        let blocks = list.blocks.iter().filter_map(|(id, _)| maps.reservation(*id).ok()?);
        let its = blocks.filter(|reservation| ListKey::of(reservation) == Some(key));
        Info::join(its.filter_map(|reservation| info(maps, &reservation))).pop().or(Some(block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(start: u16) -> Block {
        Block { netns: 1, owner: 2, ports: PortRange::single(start).unwrap(), transports: Transports::Tcp }
    }

    #[test]
    fn a_program_that_reuses_the_label_of_a_list_costs_no_memory() {
        let mut lists = Lists::default();
        let key = ListKey { mark: ListMark::new(2, 7).unwrap(), netns: 1, owner: 2 };
        let nth = |index: u32| block(5000 + 10 * index as u16);
        assert!(matches!(lists.listed(0, nth(0), Some(key), None), Part::Other));
        assert!(matches!(lists.listed(1, nth(1), Some(key), None), Part::Last(_)));
        for index in 2..1000 {
            assert!(matches!(lists.listed(index, nth(index), Some(key), None), Part::Other));
            assert!(matches!(lists.ended(index, nth(index)), Part::Other));
        }
        assert_eq!(lists.lists[&key].blocks.len(), 2);
        assert!(matches!(lists.ended(0, nth(0)), Part::Other));
        assert!(matches!(lists.ended(1, nth(1)), Part::Last(_)));
        assert!(lists.lists.is_empty() && lists.in_force.is_empty());
    }

    #[test]
    fn the_end_of_what_was_not_granted_is_not_reported_whatever_events_were_lost() {
        let mut lists = Lists::default();
        assert!(matches!(lists.ended(1, block(5000)), Part::Other));
        assert!(matches!(lists.listed(1, block(5000), None, None), Part::Whole));
        assert!(matches!(lists.ended(1, block(5000)), Part::Whole));
        assert!(matches!(lists.ended(1, block(5000)), Part::Other));
        // The end of 5000 is lost. The entry gets a request that is not granted.
        let _ = lists.listed(1, block(5000), None, None);
        lists.requested(1);
        assert!(matches!(lists.ended(1, block(5000)), Part::Other));
        // The event of that request is lost, too.
        let _ = lists.listed(1, block(5000), None, None);
        assert!(matches!(lists.ended(1, block(6000)), Part::Other));
        assert!(lists.in_force.is_empty());
    }
}
