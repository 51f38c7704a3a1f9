//! Commands of administrators: create, delete, change.

use std::time::{SystemTime, UNIX_EPOCH};

use portkeep::{
    Info, PortList, State,
    persistent::{
        Audience, Declaration, Name, Origin,
        protocol::{Block, Change, Lifetime, Proposal, Reason, Refused, Which},
    },
};
use portkeep_kernel::Wanted;
use portkeep_persist::{Declared, Store, Stored};

use super::{
    Registry,
    item::{Item, ItemState, Obstacle, key_of},
    store_slot::StoreSlot,
    tools::{Tools, resolve, wanted},
};
use crate::refused::{chain, failed, refused};

impl Registry {
    /// Create one, for an administrator with this uid.
    pub(crate) fn create(
        &mut self,
        tools: &mut Tools<'_>,
        proposal: &Proposal,
        kept: Lifetime,
        by_uid: u32,
    ) -> Result<Info, Refused> {
        self.open_again(tools).map_err(failed)?;
        self.name_is_free(&proposal.name, None)?;
        let ports = match &proposal.block {
            Block::Ports(ports) => Some(ports),
            Block::Any { .. } => None,
        };
        if let Some(ports) = ports {
            self.ports_are_free(&proposal.declaration(ports.clone()), None)?;
        }
        can_be_range(ports, &proposal.audience, proposal.strict, proposal.ephemeral)?;
        let audience = resolve(&proposal.audience).map_err(|why| refused(Reason::Malformed, why))?;
        let wanted = match proposal.block {
            Block::Ports(ref ports) => wanted(&proposal.declaration(ports.clone()), &audience),
            Block::Any { count, align } => vec![Wanted {
                start: 0,
                count,
                align,
                transports: proposal.transports,
                audience: audience.clone(),
                strict: proposal.strict,
                ephemeral: proposal.ephemeral,
                label: proposal.name.to_string(),
            }],
        };
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let store = match kept {
            Lifetime::UntilDeleted => &mut self.persistent,
            Lifetime::UntilReboot => &mut self.active,
        }
        .store()?;
        let mut is_kept = false;
        let keep = |declaration: &Declaration| {
            let stored = Stored { declaration: declaration.clone(), by_uid, created };
            store.create(&stored).map_err(|error| refused(Reason::Store, chain(&error)))?;
            is_kept = true;
            Ok(())
        };
        let established = tools.establish(&wanted, &audience, |ports| proposal.declaration(ports), keep);
        if established.is_err()
            && is_kept
            && let Err(error) = store.delete(&proposal.name)
        {
            // A bind came in between. A refused reservation must not come into force later.
            tracing::error!(name = %proposal.name, reason = chain(&error), "refused, but still in the store");
        }
        let (declaration, blocks) = established?;
        let stored = Stored { declaration: declaration.clone(), by_uid, created };
        let declared = match kept {
            Lifetime::UntilDeleted => stored.persistent(),
            Lifetime::UntilReboot => stored.active(),
        };
        let item = Item::active(declared, blocks);
        let created = item.info();
        self.version += 1;
        self.by_id.extend(item.blocks().iter().map(|(id, ..)| (*id, self.items.len())));
        self.items.push(item);
        if !self.conflicts.is_empty() {
            self.look_again(tools);
        }
        Ok(created)
    }

    /// Delete a reservation that a command created.
    pub(crate) fn delete(&mut self, tools: &mut Tools<'_>, which: &Which) -> Result<Info, Refused> {
        self.open_again(tools).map_err(failed)?;
        let meant = |declaration: &Declaration| match which {
            Which::Name(name) => declaration.name == *name,
            Which::Block { ports, transports } => declaration.ports == *ports && declaration.transports == *transports,
        };
        // A reservation that lost a conflict is not among the items, but it is in its store.
        let item = self.items.iter().position(|item| meant(item.declaration()));
        let declared = match item {
            Some(index) => self.items[index].declared.clone(),
            None => match self.conflicts.iter().find(|conflict| meant(&conflict.loser.declaration)) {
                Some(conflict) => conflict.loser.clone(),
                None => return Err(self.missing()),
            },
        };
        let store = store_of(&mut self.persistent, &mut self.active, &declared)?;
        let name = &declared.declaration.name;
        store.delete(name).map_err(|error| refused(Reason::Store, chain(&error)))?;
        if let Some(index) = item {
            tools.end(self.items.remove(index).blocks());
        }
        self.conflicts.retain(|conflict| conflict.loser != declared);
        self.index();
        self.look_again(tools);
        Ok(Info::declared(&declared.declaration, &declared.origin, State::Ended))
    }

    /// No other declaration than `except` has this name.
    fn name_is_free(&self, name: &Name, except: Option<usize>) -> Result<(), Refused> {
        match self.others(except).find(|item| item.name() == name) {
            Some(item) => {
                let origin = &item.declared.origin;
                Err(refused(Reason::NameTaken, format!("the name `{name}` is used by {origin}")))
            }
            None => Ok(()),
        }
    }

    /// No other declaration than `except` has these ports, or waits for them.
    fn ports_are_free(&self, declaration: &Declaration, except: Option<usize>) -> Result<(), Refused> {
        match self.others(except).find(|item| item.declaration().overlaps(declaration)) {
            Some(item) => {
                let Declared { declaration: theirs, origin } = &item.declared;
                let (ports, transports) = (&theirs.ports, theirs.transports);
                let name = &theirs.name;
                let message = format!(
                    "{ports}/{transports} is reserved as `{name}` by {origin}; `portkeep persist show {name}` shows it"
                );
                Err(refused(Reason::InUse, message))
            }
            None => Ok(()),
        }
    }

    fn others(&self, except: Option<usize>) -> impl Iterator<Item = &Item> {
        self.items.iter().enumerate().filter(move |(index, _)| Some(*index) != except).map(|(_, item)| item)
    }

    /// Change a reservation that a command created. Outsiders cannot bind its ports meanwhile: either it is changed in
    /// place, or the new block comes into force before the former one ends. If the change is refused, nothing has
    /// changed.
    pub(crate) fn change(&mut self, tools: &mut Tools<'_>, name: &Name, change: &Change) -> Result<Info, Refused> {
        self.open_again(tools).map_err(failed)?;
        let Some(index) = self.items.iter().position(|item| item.name() == name) else {
            let lost = self.conflicts.iter().find(|conflict| conflict.loser.declaration.name == *name);
            return Err(lost.map_or_else(|| self.missing(), |conflict| refused(Reason::InUse, conflict.to_string())));
        };
        let was = self.items[index].declared.clone();
        let declaration = change.of(&was.declaration);
        self.name_is_free(&declaration.name, Some(index))?;
        self.ports_are_free(&declaration, Some(index))?;
        let (audience, strict) = (&declaration.audience, declaration.strict);
        can_be_range(Some(&declaration.ports), audience, strict, declaration.ephemeral)?;
        let audience = resolve(&declaration.audience).map_err(|why| refused(Reason::Malformed, why))?;

        let store = store_of(&mut self.persistent, &mut self.active, &was)?;
        let stored = store.get(name).cloned().ok_or_else(|| refused(Reason::Store, "it is not in the store"))?;
        let changed = Stored { declaration: declaration.clone(), ..stored.clone() };
        let mut is_kept = false;
        let mut keep = || {
            store.replace(name, &changed).map_err(|error| refused(Reason::Store, chain(&error)))?;
            is_kept = true;
            Ok(())
        };
        let done = match &self.items[index].state {
            ItemState::Waiting(_) => keep().map(|()| ItemState::Waiting(Obstacle::default())),
            ItemState::Active(blocks) if key_of(&declaration) == key_of(&was.declaration) => {
                keep().and_then(|()| tools.adjust_or_leave(blocks, &was.declaration, &declaration))
            }
            ItemState::Active(blocks) => tools.relocate(blocks, &was.declaration, &declaration, &audience, keep),
        };
        if done.is_err()
            && is_kept
            && let Err(error) = store.replace(&declaration.name, &stored)
        {
            tracing::error!(%name, reason = chain(&error), "not changed, but changed in the store");
        }
        let item = &mut self.items[index];
        item.state = done?;
        item.declared.declaration = declaration;
        tracing::info!(%name, now = %item.name(), ports = %item.declaration().ports, "changed");
        if item.waits() {
            self.begin_waiting(tools);
        }
        let info = self.items[index].info();
        self.index();
        self.look_again(tools);
        Ok(info)
    }

    /// The refusal for a reservation that does not exist, or that is unknown because a store cannot be read.
    fn missing(&self) -> Refused {
        match self.complaints().pop() {
            Some(why) => refused(Reason::Store, why),
            None => refused(Reason::NotFound, "there is no such persistent reservation"),
        }
    }
}

/// A private ephemeral range has an audience and is not strict.
fn can_be_range(ports: Option<&PortList>, audience: &Audience, strict: bool, ephemeral: bool) -> Result<(), Refused> {
    match Declaration::no_range(ports, audience, strict) {
        Some(why) if ephemeral => Err(refused(Reason::Malformed, format!("a private ephemeral range {why}"))),
        _ => Ok(()),
    }
}

/// The store that contains a reservation. Declarations of files are in no store.
fn store_of<'a>(
    persistent: &'a mut StoreSlot,
    active: &'a mut StoreSlot,
    declared: &Declared,
) -> Result<&'a mut Store, Refused> {
    match &declared.origin {
        Origin::Command { until_reboot: false, .. } => persistent.store(),
        Origin::Command { until_reboot: true, .. } => active.store(),
        Origin::File { path, line } => {
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Err(refused(
                Reason::FromFile,
                format!(
                    "`{}` is declared by {}:{line}; change or remove that file, or mask it with a link from \
                     /etc/portkeep/ports.d/{file} to /dev/null, and `portkeep reload`",
                    declared.declaration.name,
                    path.display()
                ),
            ))
        }
    }
}
