//! The registry's tools: the BPF programs, and ways to check the agent's network namespace.

use std::io;

use portkeep::{
    Align, PortList, PortRange, Token,
    persistent::{
        Audience, Declaration,
        protocol::{Reason, Refused},
    },
};
use portkeep_core::{Errno, ListMark, PortSet, ephemeral::Exhausted, wire};
use portkeep_kernel::{AdminError, Claim, Claimed, CreateError, Maps, Wanted};
use portkeep_observe::{
    accounts,
    usage::{self, Usage},
};

use super::{item::ItemState, sockets::Sockets};
use crate::{
    audience_check::AudienceCheck,
    programs::Programs,
    refused::{chain, failed, refused},
    reserved_ports::ReservedPorts,
    settle,
    vacancy::Prober,
};

pub(crate) struct Tools<'a> {
    pub(crate) programs: &'a mut Programs,
    pub(crate) reserved_ports: &'a ReservedPorts,
    pub(crate) prober: &'a Prober,
    /// Cookie of the namespace of persistent reservations: the agent's own.
    pub(crate) netns: u64,
    /// The ports of declarations that wait until sockets close.
    pub(crate) draining: PortSet,
}

pub(super) fn resolve(audience: &Audience) -> Result<Audience<u32>, String> {
    audience.try_map(accounts::uid, accounts::gid)
}

/// Each block of a declaration.
pub(super) fn wanted(declaration: &Declaration, audience: &Audience<u32>) -> Vec<Wanted> {
    let (name, blocks) = (declaration.name.as_str(), declaration.ports.blocks());
    let label = ListMark::of_name(blocks.len(), name).map_or_else(|| name.to_owned(), |mark| mark.label(name));
    let of = |block: &PortRange| Wanted {
        start: block.start(),
        count: block.count(),
        align: Align::ANY,
        transports: declaration.transports,
        audience: audience.clone(),
        strict: declaration.strict,
        ephemeral: declaration.ephemeral,
        label: label.clone(),
    };
    blocks.iter().map(of).collect()
}

impl Tools<'_> {
    /// Enter blocks into the sysctl beside those in force and those that wait (`draining`), see
    /// [`ReservedPorts::add_each_here`].
    pub(super) fn enter(&self, blocks: &[(PortSet, bool)], draining: &PortSet) -> io::Result<Vec<(usize, Exhausted)>> {
        let maps = &self.programs.maps;
        let in_force = || Ok(settle::wanted(maps, self.netns, draining)?.remove(&self.netns).unwrap_or_default());
        self.reserved_ports.add_each_here(self.netns, blocks, in_force)
    }

    /// Claim all blocks, or none of them.
    pub(super) fn claim(&mut self, wanted: &[Wanted]) -> Result<Claimed, Refused> {
        let Programs { admin, maps, .. } = &mut *self.programs;
        let claimed = Claimed::claim(admin, maps, self.netns, wanted);
        claimed.map_err(|error| explain(maps, self.netns, &error, wanted))
    }

    /// Look for sockets on these ports of the namespace.
    pub(super) fn sockets(&self, ports: PortRange) -> Result<Sockets<'_>, String> {
        Sockets::look(self.prober, AudienceCheck::new(&self.programs.config), ports)
    }

    /// Claim the blocks, check them, and put them in force. `keep` is called in between: if it fails, they are not put
    /// in force.
    pub(super) fn establish(
        &mut self,
        wanted: &[Wanted],
        audience: &Audience<u32>,
        declared: impl FnOnce(PortList) -> Declaration,
        keep: impl FnOnce(&Declaration) -> Result<(), Refused>,
    ) -> Result<(Declaration, Vec<Claim>), Refused> {
        let claimed = self.claim(wanted)?;
        let checked =
            PortList::new(claimed.blocks().iter().map(|(.., block)| *block)).map_err(failed).and_then(|ports| {
                let declaration = declared(ports);
                self.check(&declaration, audience)?;
                keep(&declaration).map(|()| declaration)
            });
        let Programs { admin, maps, .. } = &mut *self.programs;
        let declaration = match checked {
            Ok(declaration) => declaration,
            Err(refused) => {
                claimed.end(admin, maps);
                return Err(refused);
            }
        };
        let claims = claimed.confirm(admin, maps).map_err(|error| not_confirmed(&error, &declaration))?;
        Ok((declaration, claims))
    }

    /// Whether claimed blocks can be put in force: enough ephemeral ports remain, and no socket has one of their ports.
    fn check(&self, declaration: &Declaration, audience: &Audience<u32>) -> Result<(), Refused> {
        let block = (PortSet::from(&declaration.ports), declaration.force);
        if let Some((_, why)) = self.enter(&[block], &self.draining).map_err(failed)?.pop() {
            return Err(refused(
                Reason::Exhausts,
                format!(
                    "{}: {why}; to reserve them all the same use --force, or `force = true` in a file",
                    declaration.ports
                ),
            ));
        }
        let ports = declaration.ports.as_block().unwrap_or(PortRange::ALL);
        let sockets = self.sockets(ports).map_err(|why| refused(Reason::Failed, why))?;
        match sockets.obstacle(declaration, audience) {
            Some(obstacle) => Err(refused(Reason::InUse, obstacle.refusal())),
            None => Ok(()),
        }
    }

    /// Change a reservation in place. If this fails, restore it.
    pub(super) fn adjust_or_leave(
        &mut self,
        blocks: &[Claim],
        was: &Declaration,
        declaration: &Declaration,
    ) -> Result<ItemState, Refused> {
        match self.adjust(blocks, declaration) {
            Ok(_) => Ok(ItemState::Active(blocks.to_vec())),
            Err(refused) => {
                self.put_back(blocks, was);
                Err(refused)
            }
        }
    }

    /// Put the new blocks in force, then end those that are no longer wanted. Blocks that remain are changed in place.
    /// `keep` is called in between.
    pub(super) fn relocate(
        &mut self,
        former: &[Claim],
        was: &Declaration,
        declaration: &Declaration,
        audience: &Audience<u32>,
        keep: impl FnOnce() -> Result<(), Refused>,
    ) -> Result<ItemState, Refused> {
        let same_transports = was.transports == declaration.transports;
        let remains = |block: &PortRange| same_transports && declaration.ports.blocks().contains(block);
        let (kept, gone): (Vec<Claim>, Vec<Claim>) = former.iter().partition(|(.., block)| remains(block));
        let is_new = |block: &&PortRange| !kept.iter().any(|(.., kept)| kept == *block);
        let new: Vec<PortRange> = declaration.ports.blocks().iter().filter(is_new).copied().collect();
        if let Some(why) = was.cannot_move_to(declaration) {
            return Err(refused(Reason::InUse, why));
        }
        // One audience has one range: the new block becomes the range after the former one is none any more.
        let both_ranges = was.ephemeral && declaration.ephemeral;
        let mut blocks = match PortList::new(new.iter().copied()) {
            Ok(ports) => {
                let mut wanted = wanted(declaration, audience);
                wanted.retain(|block| new.iter().any(|new| new.start() == block.start));
                wanted.iter_mut().for_each(|block| block.ephemeral &= !both_ranges);
                let new = Declaration { ports, ..declaration.clone() };
                self.establish(&wanted, audience, |_| new, |_| keep())?.1
            }
            // The only change is fewer blocks.
            Err(_) => keep().map(|()| Vec::new())?,
        };
        let plain = Declaration { ephemeral: false, ..was.clone() };
        let handed_over = if both_ranges { self.adjust(former, &plain) } else { Ok(false) };
        let changed = if both_ranges { &blocks } else { &kept };
        if let Err(refused) = handed_over.and_then(|_| self.adjust(changed, declaration)) {
            self.end(&blocks);
            self.put_back(former, was);
            return Err(refused);
        }
        self.end(&gone);
        blocks.extend(kept);
        blocks.sort_by_key(|(.., block)| *block);
        Ok(ItemState::Active(blocks))
    }

    /// Restore the former declaration.
    fn put_back(&mut self, blocks: &[Claim], was: &Declaration) {
        if let Err(refused) = self.adjust(blocks, was) {
            tracing::error!(name = %was.name, reason = refused.message, "neither changed nor as it was");
        }
    }

    pub(super) fn end(&mut self, blocks: &[Claim]) {
        let Programs { admin, maps, .. } = &mut *self.programs;
        for (id, token, _) in blocks {
            if let Err(error) = maps.end_persistent(admin, *id, *token) {
                tracing::error!(id, reason = chain(&error), "no longer declared, but not ended");
            }
        }
    }

    /// Apply the declaration to its blocks in force. False if there was nothing to change.
    pub(super) fn adjust(&mut self, blocks: &[Claim], declaration: &Declaration) -> Result<bool, Refused> {
        let audience = resolve(&declaration.audience).map_err(|why| refused(Reason::Malformed, why))?;
        let mut adjusted = false;
        for wanted in wanted(declaration, &audience) {
            if let Some((id, token, _)) = blocks.iter().find(|(.., block)| block.start() == wanted.start) {
                adjusted |= self.adjust_block((*id, *token), &wanted)?;
            }
        }
        Ok(adjusted)
    }

    fn adjust_block(&mut self, (id, token): (u32, Token), wanted: &Wanted) -> Result<bool, Refused> {
        let Programs { admin, maps, .. } = &mut *self.programs;
        let reservation = maps.reservation(id).map_err(failed)?;
        let same = reservation.is_some_and(|r| {
            let flag = |flag| u32::from(r.flags) & flag != 0;
            maps.audience(id, &r).as_ref() == Some(&wanted.audience)
                && flag(wire::STRICT) == wanted.strict
                && flag(wire::EPHEMERAL) == wanted.ephemeral
                && r.label == wire::label(&wanted.label)
        });
        if !same {
            let changed = maps.change_persistent(admin, (id, token), wanted);
            changed.map_err(|error| explain(maps, self.netns, &error, std::slice::from_ref(wanted)))?;
        }
        Ok(!same)
    }
}

/// Why a claim was not confirmed. EADDRINUSE: a bind came between the check and the confirmation.
pub(super) fn not_confirmed(error: &AdminError, Declaration { ports, transports, .. }: &Declaration) -> Refused {
    match error.errno() {
        Some(Errno::EADDRINUSE) => {
            refused(Reason::InUse, format!("another process bound a port of {ports}/{transports} at this moment"))
        }
        _ => refused(Reason::Failed, chain(error)),
    }
}

/// The meaning of the answer to a claim that failed.
fn explain(maps: &Maps, netns: u64, error: &CreateError, wanted: &[Wanted]) -> Refused {
    let CreateError::Admin(admin) = error else { return refused(Reason::Malformed, chain(error)) };
    let count: u32 = wanted.iter().map(|block| u32::from(block.count)).sum();
    match admin.errno() {
        Some(Errno::EADDRINUSE) => {
            let held = wanted.iter().find_map(|block| holder(maps, netns, block));
            refused(Reason::InUse, held.unwrap_or_else(|| left_behind(wanted)))
        }
        Some(Errno::EEXIST) => refused(
            Reason::InUse,
            "its audience has a private ephemeral range for this transport already; a second one would never be used",
        ),
        Some(Errno::ENOSPC) => refused(Reason::NoRoom, format!("the pool has no block of {count} ports left")),
        Some(Errno::EINVAL) => refused(Reason::Malformed, "there is no such block"),
        Some(Errno::ENOMEM) => refused(Reason::Failed, "the reservation table is full"),
        _ => refused(Reason::Failed, chain(admin)),
    }
}

/// Names the socket that prevents a claim although the ports are not reserved: it was bound from a reservation that has
/// ended (R7).
fn left_behind(wanted: &[Wanted]) -> String {
    let blocks: Vec<_> = wanted
        .iter()
        .filter_map(|block| Some((PortRange::new(block.start, block.count).ok()?, block.transports)))
        .collect();
    let usage = Usage::of(&blocks).unwrap_or_default();
    let found = blocks.iter().find_map(|(ports, transports)| {
        transports.iter().find_map(|transport| {
            let on = |port| usage.port(transport, port).sockets().cloned().collect::<Vec<_>>();
            ports
                .iter()
                .map(|port| (port, on(port)))
                .find(|(_, sockets)| !sockets.is_empty())
                .map(|(port, sockets)| usage::sentence(transport, port, &sockets))
        })
    });
    let found = found.unwrap_or_else(|| "a port of the block is in use".into());
    format!(
        "{found}; the port is from a reservation that has ended. Stop that process, reserve the ports, and start it again. \
         `portkeep persist set` changes a reservation without ending it"
    )
}

/// The owner of a reserved port of the block.
fn holder(maps: &Maps, netns: u64, wanted: &Wanted) -> Option<String> {
    let ports = PortRange::new(wanted.start, wanted.count).ok()?;
    let transports = wanted.transports;
    let overlapping = maps.reservations().flatten().map(|(_, reservation)| reservation).find(|r| {
        r.netns == netns
            && r.state() != wire::REFUSED
            && r.ports().is_some_and(|theirs| theirs.overlaps(ports))
            && r.transports & transports.bits() != 0
    });
    let r = overlapping?;
    Some(match r.is_persistent() {
        true => format!("{ports}/{transports} is reserved as {:?}", wire::text(&r.label)),
        false => format!("{ports}/{transports} is reserved by pid {} ({})", r.pid, wire::text(&r.comm)),
    })
}
