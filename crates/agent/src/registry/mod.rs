//! The declarations, and their state in the BPF programs.
//!
//! Declarations come from drop-in files and from two stores, which commands write. Together they define what has to be
//! in force; the BPF programs have what is in force. This module brings the second in line with the first. It can be
//! killed at any moment and run again. A command writes a new reservation to the store before it comes into force, and
//! removes a deleted one from the store before it ends. So what was reported holds even after a crash.
//!
//! If a declaration cannot be put in force (a port is in use, a user does not exist yet), it waits and is tried again.

mod commands;
mod in_force;
mod item;
mod sockets;
mod store_slot;
mod tools;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use portkeep::{Info, State, persistent::Declaration};
use portkeep_core::PortSet;
use portkeep_persist::{Declared, Diagnostic, Store, Stored, dropin, merge, store::boot_id};

use item::{Item, ItemState, not_in_force};
pub use sockets::obstacle_to;
use store_slot::StoreSlot;
pub(super) use tools::Tools;

/// The result of bringing the BPF programs in line.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) added: usize,
    pub(super) changed: usize,
    pub(super) removed: usize,
    /// Includes those in conflict.
    pub(super) waiting: usize,
}

/// The declarations, and their state.
#[derive(Debug)]
pub(super) struct Registry {
    persistent: StoreSlot,
    active: StoreSlot,
    /// The folders of the two stores.
    state: PathBuf,
    runtime: PathBuf,
    root: PathBuf,
    items: Vec<Item>,
    /// The declarations of files, as they were last read.
    files: Vec<Declared>,
    conflicts: Vec<portkeep_persist::Conflict>,
    by_id: HashMap<u32, usize>,
    /// The kinds of the reasons that were reported about declarations that are not in force, by name.
    reported: HashMap<String, String>,
    version: u64,
}

impl Registry {
    /// Open the stores. If a store cannot be read, it stays closed, and the reservations that it may contain stay in
    /// force.
    pub(super) fn open(state: &Path, runtime: &Path, root: PathBuf) -> Self {
        Self {
            persistent: StoreSlot::of(Store::open(state)),
            active: StoreSlot::of(Store::open_runtime(runtime, &boot_id())),
            state: state.to_owned(),
            runtime: runtime.to_owned(),
            root,
            items: Vec::new(),
            files: Vec::new(),
            version: 0,
            conflicts: Vec::new(),
            by_id: HashMap::new(),
            reported: HashMap::new(),
        }
    }

    fn commands(&self) -> impl Iterator<Item = Declared> + use<> {
        let persistent = self.persistent.list().into_iter().map(Stored::persistent);
        persistent.chain(self.active.list().into_iter().map(Stored::active))
    }

    /// Whether all reservations of commands are known. If not, a reservation that is in force and not declared may be
    /// one of them.
    fn is_complete(&self) -> bool {
        self.complaints().is_empty()
    }

    /// If a store can be opened now that could not be opened before, put its reservations in force.
    fn open_again(&mut self, tools: &mut Tools<'_>) -> anyhow::Result<Option<Changes>> {
        let persistent = self.persistent.open_again(|| Store::open(&self.state));
        let active = self.active.open_again(|| Store::open_runtime(&self.runtime, &boot_id()));
        // Errors in files were reported when the files were read.
        if persistent || active { self.load(tools).map(|(changes, _)| Some(changes)) } else { Ok(None) }
    }

    /// Read the files again and bring the BPF programs in line. Mistakes in files are returned, too.
    pub(super) fn load(&mut self, tools: &mut Tools<'_>) -> anyhow::Result<(Changes, Vec<Diagnostic>)> {
        self.persistent.open_again(|| Store::open(&self.state));
        self.active.open_again(|| Store::open_runtime(&self.runtime, &boot_id()));
        let loaded = dropin::load(&self.root);
        self.files = loaded.declared;
        Ok((self.merge(tools)?, loaded.diagnostics))
    }

    /// Decide again which declarations are in force, and bring the BPF programs in line.
    fn merge(&mut self, tools: &mut Tools<'_>) -> anyhow::Result<Changes> {
        let merged = merge(self.commands(), self.files.clone());
        self.conflicts = merged.conflicts;
        self.bring_in_line(tools, merged.in_force)
    }

    /// Check again the declarations that conflicted with one that is new or removed, and those that waited for its
    /// ports.
    fn look_again(&mut self, tools: &mut Tools<'_>) {
        let looked = match self.conflicts.is_empty() {
            true => self.retry(tools).map(drop),
            false => self.merge(tools).map(drop),
        };
        if let Err(error) = looked {
            tracing::error!(error = format!("{error:#}"), "cannot look again at what is not in force");
        }
    }

    /// Declarations of files that lost a conflict. Each of them may be right by itself.
    pub(super) fn conflicts(&self) -> Vec<Diagnostic> {
        self.conflicts.iter().filter_map(portkeep_persist::Conflict::diagnostic).collect()
    }

    /// Ports of declarations that wait until sockets close.
    pub(super) fn draining(&self) -> PortSet {
        let draining = self.items.iter().filter(|item| match &item.state {
            ItemState::Active(_) => false,
            ItemState::Waiting(obstacle) => !obstacle.sockets.is_empty(),
        });
        draining.flat_map(|item| item.declaration().ports.blocks().iter().copied()).collect()
    }

    /// Changes whenever the result of [`Registry::list`] changes.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// How many are in force.
    pub(super) fn in_force(&self) -> usize {
        self.items.iter().filter(|item| !item.waits()).count()
    }

    /// Report once why a declaration is not in force.
    fn report(&mut self, declared: &Declared, why: &str) {
        let name = declared.declaration.name.to_string();
        let kind = kind_of(why);
        if self.reported.get(&name) == Some(&kind) {
            return;
        }
        let Declaration { ports, transports, .. } = &declared.declaration;
        tracing::warn!(name, %ports, %transports, from = %declared.origin, reason = why, "declared, but not in force");
        self.reported.insert(name, kind);
    }

    fn index(&mut self) {
        self.version += 1;
        let items = self.items.iter().enumerate();
        self.by_id = items.flat_map(|(index, item)| item.blocks().iter().map(move |(id, ..)| (*id, index))).collect();
        let waits: Vec<&str> = self.items.iter().filter(|item| item.waits()).map(|item| item.name().as_str()).collect();
        self.reported.retain(|name, _| waits.contains(&name.as_str()));
    }

    /// The declaration of the reservation with this id, if it is persistent.
    pub(super) fn declared(&self, id: u32) -> Option<&Declared> {
        self.by_id.get(&id).map(|index| &self.items[*index].declared)
    }

    /// All that is declared.
    pub(super) fn list(&self) -> Vec<Info> {
        let items = self.items.iter().map(Item::info);
        let conflicts =
            self.conflicts.iter().map(|conflict| not_in_force(&conflict.loser, State::Conflict, conflict.to_string()));
        items.chain(conflicts).collect()
    }

    /// Stores that cannot be read, one sentence each.
    pub(super) fn complaints(&self) -> Vec<String> {
        [&self.persistent, &self.active].into_iter().filter_map(|slot| slot.why_closed().map(str::to_owned)).collect()
    }
}

/// A reason without its numbers and addresses. The declaration is tried every few seconds, and those differ each time:
/// the seconds until the kernel ends a connection, its peer, how many ephemeral ports are left.
fn kind_of(why: &str) -> String {
    why.chars().filter(|c| !c.is_ascii_hexdigit() && *c != ':').collect()
}
