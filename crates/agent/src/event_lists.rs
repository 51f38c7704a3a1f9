//! The lists in force, for the event log: a list is one reservation and is reported once.

use std::collections::{HashMap, hash_map};

use portkeep::Info;
use portkeep_core::{ListMark, PortList, PortRange, wire};
use portkeep_kernel::{Maps, Reservation};

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

/// The part of its reservation that an event about a block concerns.
pub(super) enum Part {
    /// All of it.
    Whole,
    /// The block that completed a list with these ports, or the last one of it to end.
    Last(PortList),
    /// Another block of a list.
    Other,
}

/// The lists in force: the BPF programs report each block, but the log reports each list.
#[derive(Debug, Default)]
pub(super) struct Lists {
    by_block: HashMap<u32, ListKey>,
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
            if let Some(ports) = reservation.ports() {
                let _ = lists.granted(id, ports, ListKey::of(&reservation));
            }
        }
        lists
    }

    /// A block came into force.
    pub(super) fn granted(&mut self, id: u32, ports: PortRange, list: Option<ListKey>) -> Part {
        // The event of its end may have been lost.
        let _ = self.ended(id);
        let Some(key) = list.or(self.confirmed.remove(&id)) else { return Part::Whole };
        let list = self.lists.entry(key).or_default();
        self.by_block.insert(id, key);
        list.blocks.push((id, ports));
        if list.ports.is_some() || list.blocks.len() < key.mark.blocks() {
            return Part::Other;
        }
        list.ports = PortList::new(list.blocks.iter().map(|(_, ports)| *ports)).ok();
        list.ports.clone().map_or(Part::Other, Part::Last)
    }

    /// A block has ended. If its list was never complete, this is not reported.
    pub(super) fn ended(&mut self, id: u32) -> Part {
        let Some(key) = self.by_block.remove(&id) else { return Part::Whole };
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

    #[test]
    fn a_program_that_reuses_the_label_of_a_list_costs_no_memory() {
        let mut lists = Lists::default();
        let key = ListKey { mark: ListMark::new(2, 7).unwrap(), netns: 1, owner: 2 };
        let block = |index: u16| PortRange::new(5000 + 10 * index, 1).unwrap();
        assert!(matches!(lists.granted(0, block(0), Some(key)), Part::Other));
        assert!(matches!(lists.granted(1, block(1), Some(key)), Part::Last(_)));
        for index in 2..1000 {
            assert!(matches!(lists.granted(index.into(), block(index), Some(key)), Part::Other));
            assert!(matches!(lists.ended(index.into()), Part::Other));
        }
        assert_eq!(lists.lists[&key].blocks.len(), 2);
        assert!(matches!(lists.ended(0), Part::Other));
        assert!(matches!(lists.ended(1), Part::Last(_)));
        assert!(lists.lists.is_empty() && lists.by_block.is_empty());
    }
}
