//! Persistent reservations in the BPF maps.
//!
//! No socket owns them: an administrator creates them and an administrator ends them. Creating requires three steps:
//! its audience may be a name that does not fit into a request, and somebody has to check whether the ports are vacant.
//! From the first step on nobody else can claim the ports. A [`Claimed`] is then confirmed or ended. If a process is
//! killed in between, it leaves a pending reservation behind, which the next agent ends.

use portkeep_core::{PortRange, PortRangeError, Token, persistent::Audience, wire};

use crate::{
    admin::{Admin, AdminError, Created, Wanted},
    audience::{PLACE_DEPTH, has_valid_names, names, parts},
    layout::{PLACE_NAME, Place, PlaceKey, Reservation},
    maps::{MapAccessError, Maps, call},
};

/// Why a persistent reservation was not created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// EADDRINUSE: a port of the block is reserved. ENOSPC: no such block is free in the pool. EINVAL: no such block
    /// exists. EEXIST: its audience has a private ephemeral range already. ENOMEM: no room for another.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The names of its scope could not be written.
    #[error(transparent)]
    Map(#[from] MapAccessError),
    /// The BPF programs returned an impossible block.
    #[error(transparent)]
    Block(#[from] PortRangeError),
    /// A name of its scope is empty or too long, or there are too many.
    #[error("a unit's or cgroup's name is empty or longer than {} bytes, or the cgroup is too deep", PLACE_NAME - 1)]
    Name,
}

/// Id, token and block of a reservation in the kernel.
pub type Claim = (u32, Token, PortRange);

/// A persistent reservation that is claimed and not in force yet: one block, or the blocks of a list.
#[derive(Debug)]
#[must_use = "confirm it or end it: nobody else can have its ports"]
pub struct Claimed {
    blocks: Vec<Claim>,
}

impl Claimed {
    /// Claim the blocks in the namespace with the cookie `netns`: all or none.
    pub fn claim(admin: &Admin, maps: &mut Maps, netns: u64, wanted: &[Wanted]) -> Result<Self, CreateError> {
        let mut claimed = Self { blocks: Vec::new() };
        for block in wanted {
            match maps.claim_persistent(admin, netns, block) {
                Ok(claim) => claimed.blocks.push(claim),
                Err(error) => {
                    claimed.end(admin, maps);
                    return Err(error);
                }
            }
        }
        Ok(claimed)
    }

    /// The blocks, in the order of the request.
    pub fn blocks(&self) -> &[Claim] {
        &self.blocks
    }

    /// Put all of them in force, or end all.
    pub fn confirm(self, admin: &Admin, maps: &mut Maps) -> Result<Vec<Claim>, AdminError> {
        match self.blocks.iter().try_for_each(|(id, token, _)| admin.confirm(*id, *token)) {
            Ok(()) => Ok(self.blocks),
            Err(error) => {
                self.end(admin, maps);
                Err(error)
            }
        }
    }

    /// End all of them.
    pub fn end(self, admin: &Admin, maps: &mut Maps) {
        for (id, token, _) in self.blocks {
            let _ = maps.end_persistent(admin, id, token);
        }
    }
}

impl Maps {
    /// Claim one block. The caller has to confirm or end it.
    pub fn claim_persistent(&mut self, admin: &Admin, netns: u64, wanted: &Wanted) -> Result<Claim, CreateError> {
        if !has_valid_names(&wanted.audience) {
            return Err(CreateError::Name);
        }
        let Created { id, token, start } = admin.create(netns, wanted)?;
        let claimed = PortRange::new(start, wanted.count)
            .map_err(CreateError::from)
            .and_then(|ports| self.set_places(id, &wanted.audience).map(|()| ports).map_err(CreateError::from));
        match claimed {
            Ok(ports) => Ok((id, token, ports)),
            Err(error) => {
                let _ = self.end_persistent(admin, id, token);
                Err(error)
            }
        }
    }

    /// Change the audience and the label of a persistent reservation in force, and whether it is strict. Its ports stay
    /// reserved. If the audience changes, the reservation may be for associated sockets of administrators only until
    /// this returns.
    pub fn change_persistent(
        &mut self,
        admin: &Admin,
        (id, token): (u32, Token),
        wanted: &Wanted,
    ) -> Result<(), CreateError> {
        if !has_valid_names(&wanted.audience) {
            return Err(CreateError::Name);
        }
        let present = self.reservation(id)?;
        let scope = parts(&wanted.audience).0;
        // The kernel changes everything except the names in one step.
        if present.is_some_and(|r| self.audience(id, &r).is_some_and(|present| parts(&present).0 == scope)) {
            return Ok(admin.change(id, token, wanted)?);
        }
        // While the names change, the audience is the administrators, which needs no names. It is also strict, so that
        // no process of root binds a port by number in the meantime.
        let meanwhile = Wanted { audience: Audience::Administrators, strict: true, ephemeral: false, ..wanted.clone() };
        admin.change(id, token, &meanwhile)?;
        self.forget_places(id)?;
        self.set_places(id, &wanted.audience)?;
        Ok(admin.change(id, token, wanted)?)
    }

    /// End a persistent reservation, and forget its audience. Sockets bound from it keep running (R7).
    pub fn end_persistent(&mut self, admin: &Admin, id: u32, token: Token) -> Result<(), CreateError> {
        // In this order: while it is in force its names must exist, or no process of its audience could use it.
        admin.end(id, token)?;
        Ok(self.forget_places(id)?)
    }

    /// The audience of a reservation; `None` if it is not persistent, or if some of its names are missing.
    pub fn audience(&self, id: u32, reservation: &Reservation) -> Option<Audience<u32>> {
        if !reservation.is_persistent() {
            return None;
        }
        let scope = match reservation.scope.into() {
            wire::SCOPE_UNIT => Audience::Unit(self.places_of(id, 0..=0)?.pop()?),
            wire::SCOPE_CGROUP => {
                let parts = self.places_of(id, 1..=reservation.level.into())?;
                Audience::Cgroup(format!("/{}", parts.join("/")))
            }
            _ => Audience::from_wire(reservation.scope, reservation.uid, reservation.gid)?,
        };
        let also = self.also(reservation).ok()?;
        if also.len() != reservation.admitted().count() {
            return None;
        }
        Audience::any_of(std::iter::once(scope).chain(also.iter().filter_map(Audience::from_also))).ok()
    }

    /// End the pending reservations of killed administrators, and remove names that belong to no reservation. Returns
    /// how many reservations were ended. Only for the process that creates persistent reservations, and while no other
    /// process does.
    pub fn sweep_persistent(&mut self, admin: &Admin) -> Result<usize, MapAccessError> {
        let found: Vec<_> = self.reservations().filter(|r| !matches!(r, Ok((_, r)) if !r.is_persistent())).collect();
        let (mut ended, mut kept) = (0, std::collections::HashSet::new());
        for item in found {
            let (id, reservation) = item?;
            match reservation.token() {
                Some(token) if reservation.state() == wire::PENDING => {
                    if self.end_persistent(admin, id, token).is_ok() {
                        ended += 1;
                    }
                }
                _ => {
                    kept.insert(id);
                }
            }
        }
        let stray: Vec<u32> = self.places().flatten().map(|(key, _)| key.id).filter(|id| !kept.contains(id)).collect();
        for id in stray {
            self.forget_places(id)?;
        }
        Ok(ended)
    }
    /// Record the audience of a reservation: the names on the path to a cgroup, or a unit.
    fn set_places(&mut self, id: u32, audience: &Audience<u32>) -> Result<(), MapAccessError> {
        for (level, name) in names(audience) {
            let mut padded = [0; PLACE_NAME];
            padded[..name.len()].copy_from_slice(name.as_bytes());
            self.places.insert(PlaceKey { id, level }, Place { name: padded }, 0).map_err(call("places"))?;
        }
        Ok(())
    }

    /// The audience that [`Maps::set_places`] recorded.
    fn places_of(&self, id: u32, levels: std::ops::RangeInclusive<u32>) -> Option<Vec<String>> {
        levels.map(|level| self.places.get(&PlaceKey { id, level }, 0).ok().map(|p| wire::text(&p.name))).collect()
    }

    fn forget_places(&mut self, id: u32) -> Result<(), MapAccessError> {
        for level in 0..=PLACE_DEPTH {
            match self.places.remove(&PlaceKey { id, level }) {
                Ok(()) => {}
                Err(_) if level > 0 => break,
                Err(_) => {}
            }
        }
        Ok(())
    }
}
