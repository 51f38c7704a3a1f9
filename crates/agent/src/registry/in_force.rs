//! Brings the reservations in force in line with the declarations.

use std::collections::{HashMap, HashSet};

use portkeep::{
    PortRange, Token,
    persistent::{Audience, Declaration, Name},
};
use portkeep_core::{ListMark, PortSet, Transports, wire};
use portkeep_kernel::{Claim, Claimed};
use portkeep_persist::Declared;

use super::{
    Changes, Registry,
    item::{Item, ItemState, Obstacle, key_of},
    tools::{Tools, not_confirmed, resolve, wanted},
};
use crate::programs::Programs;

impl Registry {
    /// Bring the reservations in force in line with `declared`: keep equal ones, change those whose audience differs,
    /// end those that are not declared, and put the rest in force.
    pub(super) fn bring_in_line(&mut self, tools: &mut Tools<'_>, declared: Vec<Declared>) -> anyhow::Result<Changes> {
        let mut changes = Changes::default();
        // It is decided anew what waits.
        tools.draining = PortSet::default();
        tools.programs.maps.sweep_persistent(&tools.programs.admin)?;
        let mut in_force: HashMap<(PortRange, Transports), BlockInForce> = HashMap::new();
        let mut elsewhere = Vec::new();
        for item in tools.programs.maps.reservations() {
            let (id, r) = item?;
            let (Some(token), Some(ports), Some(transports)) = (r.token(), r.ports(), r.transports()) else { continue };
            if !r.is_persistent() || r.state() != wire::ACTIVE {
                continue;
            }
            if r.netns == tools.netns {
                in_force.insert((ports, transports), (id, token, ListMark::of(&r.label)));
            } else {
                elsewhere.push((id, token));
            }
        }

        let former: HashMap<Name, Item> = std::mem::take(&mut self.items)
            .into_iter()
            .filter(|item| !item.waits())
            .map(|item| (item.name().clone(), item))
            .collect();
        let before: HashMap<_, &Declaration> =
            former.values().map(|item| (key_of(item.declaration()), item.declaration())).collect();
        // The name that each block had, and the names that have lost a block.
        let names: HashMap<_, Name> = before.values().flat_map(|was| blocks_of(was)).collect();
        let mut ended: HashSet<Name> = HashSet::new();
        for declared in declared {
            let key = key_of(&declared.declaration);
            let state = match take_all(&mut in_force, &declared.declaration) {
                Some(blocks) => {
                    let was = before.get(&key);
                    match tools.adjust(&blocks, &declared.declaration) {
                        Ok(adjusted) => {
                            let differs = was.is_some_and(|was| **was != declared.declaration);
                            changes.changed += usize::from(adjusted || differs);
                        }
                        // It stays in force for its former audience, which is better than not in force.
                        Err(refused) => self.report(&declared, &refused.message),
                    }
                    ItemState::Active(blocks)
                }
                None => {
                    let was = former.get(&declared.declaration.name);
                    let moved = was.and_then(|was| moved(tools, was, &declared.declaration, &mut in_force));
                    changes.changed += usize::from(moved.is_some());
                    moved.unwrap_or_else(|| ItemState::Waiting(Obstacle::default()))
                }
            };
            self.items.push(Item { declared, state });
        }
        // Reservations are ended before others begin, since the others may need their ports.
        if self.is_complete() {
            let mut lists = HashSet::new();
            for (key, (id, token, mark)) in in_force {
                tools.programs.maps.end_persistent(&tools.programs.admin, id, token)?;
                match names.get(&key) {
                    Some(name) => _ = ended.insert(name.clone()),
                    // The blocks of a list count as one reservation.
                    None => changes.removed += usize::from(mark.is_none_or(|mark| lists.insert(mark))),
                }
            }
            for (id, token) in elsewhere {
                tools.programs.maps.end_persistent(&tools.programs.admin, id, token)?;
                changes.removed += 1;
            }
        }
        let begins: Vec<bool> = self.items.iter().map(Item::waits).collect();
        self.begin_waiting(tools);
        for (item, began) in self.items.iter().zip(begins) {
            if item.waits() {
                changes.waiting += 1;
            } else if ended.remove(item.name()) {
                // If a name has other ports now, it counts as changed.
                changes.changed += usize::from(began);
            } else {
                changes.added += usize::from(began);
            }
        }
        changes.removed += ended.len();
        changes.waiting += self.conflicts.len();
        self.index();
        Ok(changes)
    }

    /// Try again to put waiting declarations in force. Returns how many came into force.
    pub(crate) fn retry(&mut self, tools: &mut Tools<'_>) -> anyhow::Result<usize> {
        if let Some(changes) = self.open_again(tools)? {
            return Ok(changes.added);
        }
        if !self.items.iter().any(Item::waits) {
            return Ok(0);
        }
        let begun = self.begin_waiting(tools);
        if begun > 0 {
            self.index();
        }
        Ok(begun)
    }

    /// Put all of them in force at once, because checking a namespace costs the same for one as for ten thousand. Claim
    /// every block, enter the blocks into the sysctl, look for sockets, and confirm or end each claim.
    pub(super) fn begin_waiting(&mut self, tools: &mut Tools<'_>) -> usize {
        let mut reasons: Vec<(usize, Obstacle)> = Vec::new();
        let waiting = self.enter_waiting(tools, &mut reasons);
        let mut claims = Vec::new();
        for index in waiting {
            let declaration = self.items[index].declaration();
            let claimed = resolve(&declaration.audience).and_then(|audience| {
                let claimed = tools.claim(&wanted(declaration, &audience)).map_err(|refused| refused.message)?;
                Ok((index, claimed, audience))
            });
            match claimed {
                Ok(claim) => claims.push(claim),
                Err(why) => reasons.push((index, why.into())),
            }
        }
        let mut begun = 0;
        for (index, claimed, obstacle) in self.obstacles(tools, claims) {
            let Programs { admin, maps, .. } = &mut *tools.programs;
            match obstacle {
                Some(obstacle) => {
                    claimed.end(admin, maps);
                    reasons.push((index, obstacle));
                }
                None => match claimed.confirm(admin, maps) {
                    Ok(blocks) => {
                        self.items[index].state = ItemState::Active(blocks);
                        begun += 1;
                    }
                    // The claims of the other declarations are confirmed or ended all the same.
                    Err(error) => {
                        let why = not_confirmed(&error, self.items[index].declaration());
                        reasons.push((index, why.message.into()));
                    }
                },
            }
        }
        for (index, obstacle) in reasons {
            let declared = self.items[index].declared.clone();
            self.report(&declared, &obstacle.why);
            let state = ItemState::Waiting(obstacle);
            if self.items[index].state != state {
                self.items[index].state = state;
                self.version += 1;
            }
        }
        begun
    }

    /// The obstacle that keeps each of the claims from coming into force, if there is one.
    fn obstacles(
        &self,
        tools: &Tools<'_>,
        claims: Vec<(usize, Claimed, Audience<u32>)>,
    ) -> Vec<(usize, Claimed, Option<Obstacle>)> {
        if claims.is_empty() {
            return Vec::new();
        }
        let sockets = tools.sockets(PortRange::ALL);
        let with_obstacle = |(index, claimed, audience): (usize, Claimed, Audience<u32>)| {
            let mut obstacle = match &sockets {
                Ok(sockets) => sockets.obstacle(self.items[index].declaration(), &audience),
                Err(why) => Some(why.clone().into()),
            };
            // If the audience is not a service, a socket of root does not show that it belongs to the reservation.
            if let Some(obstacle) = obstacle.as_mut().filter(|obstacle| obstacle.in_audience)
                && audience != Audience::Administrators
            {
                obstacle.why += "; the reservation is for this process: add `around = true`";
            }
            (index, claimed, obstacle)
        };
        claims.into_iter().map(with_obstacle).collect()
    }

    /// Enter the waiting declarations into `ip_local_reserved_ports`. Returns the indices of those that were entered;
    /// the reasons of the others are added to `reasons`.
    fn enter_waiting(&self, tools: &Tools<'_>, reasons: &mut Vec<(usize, Obstacle)>) -> Vec<usize> {
        let mut waiting: Vec<usize> = (0..self.items.len()).filter(|index| self.items[*index].waits()).collect();
        let block = |index: &usize| {
            let declaration = self.items[*index].declaration();
            (PortSet::from(&declaration.ports), declaration.force)
        };
        let blocks: Vec<_> = waiting.iter().map(block).collect();
        if blocks.is_empty() {
            return waiting;
        }
        // Declarations that wait until sockets close are among the blocks.
        match tools.enter(&blocks, &PortSet::default()) {
            Ok(refused) => {
                for (place, why) in refused.into_iter().rev() {
                    let why = format!("{why}; `force = true` overrides");
                    reasons.push((waiting.remove(place), why.into()));
                }
                waiting
            }
            Err(error) => {
                reasons.extend(waiting.into_iter().map(|index| (index, error.to_string().into())));
                Vec::new()
            }
        }
    }
}

/// A block in force: its id, its token, and the mark of its list.
type BlockInForce = (u32, Token, Option<ListMark>);

fn blocks_of(declaration: &Declaration) -> impl Iterator<Item = ((PortRange, Transports), Name)> {
    let of = |block: &PortRange| ((*block, declaration.transports), declaration.name.clone());
    declaration.ports.blocks().iter().map(of)
}

/// Move the declaration of this name to other ports, without a gap. `None` if this is impossible, for example if
/// another declaration still has them.
fn moved(
    tools: &mut Tools<'_>,
    was: &Item,
    declaration: &Declaration,
    in_force: &mut HashMap<(PortRange, Transports), BlockInForce>,
) -> Option<ItemState> {
    let former = take_all(in_force, was.declaration())?;
    let moved = resolve(&declaration.audience)
        .ok()
        .and_then(|audience| tools.relocate(&former, was.declaration(), declaration, &audience, || Ok(())).ok());
    if moved.is_none() {
        let key = |block| (block, was.declaration().transports);
        in_force.extend(former.into_iter().map(|(id, token, block)| (key(block), (id, token, None))));
    }
    moved
}

/// Remove the blocks of a declaration from those in force, if all of them are in force.
fn take_all(
    in_force: &mut HashMap<(PortRange, Transports), BlockInForce>,
    declaration: &Declaration,
) -> Option<Vec<Claim>> {
    let keys: Vec<_> = declaration.ports.blocks().iter().map(|block| (*block, declaration.transports)).collect();
    if !keys.iter().all(|key| in_force.contains_key(key)) {
        return None;
    }
    keys.iter().map(|key| in_force.remove(key).map(|(id, token, _)| (id, token, key.0))).collect()
}
