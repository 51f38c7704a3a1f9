//! Keeps `ip_local_reserved_ports` in step with the reservations.
//!
//! It is the only thing that keeps the source ports of `connect` out of a block
//! (R3): those are chosen without passing a hook. The pool needs no entry as long
//! as it lies outside the range automatic choices come from; where somebody has
//! widened that range, the part they share is entered.

use std::io;

use portkeep_core::PortRange;

use super::{merge, namespaces, port_set::PortSet, state::RuntimeDir, sysctl};

#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) runtime: RuntimeDir,
    pub(super) pool: Option<PortRange>,
}

/// What [`restore_all`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Namespaces that our entries were taken out of.
    pub namespaces: usize,
    /// Namespaces that are gone or could not be found. They stay remembered until the next boot.
    pub unreachable: usize,
}

/// Put the calling thread's namespace right, whose cookie is `netns`. `wanted` is told what is ours at the moment.
fn settle_here(runtime: &RuntimeDir, netns: u64, wanted: impl FnOnce(&PortSet) -> PortSet) -> io::Result<()> {
    let mut held = runtime.hold()?;
    let ours = held.of(netns);
    let plan = merge::plan(&sysctl::reserved()?, &ours, &wanted(&ours));
    held.remember(netns, &plan.remember)?;
    if !plan.add.is_empty() {
        sysctl::add(&plan.add)?;
    }
    if !plan.remove.is_empty() {
        sysctl::remove(&plan.remove)?;
    }
    held.remember(netns, &plan.settled)
}

impl Keeper {
    /// The part of a set of ports that needs entries: pool ports do not.
    pub(super) fn outside_pool(&self, ports: PortSet) -> PortSet {
        match self.pool {
            Some(pool) => ports.minus(&pool.into()),
            None => ports,
        }
    }

    /// Make `blocks` (outside the pool) the whole of our entries in the calling
    /// thread's namespace.
    pub(super) fn settle_here(&self, netns: u64, blocks: &PortSet) -> io::Result<()> {
        let shared = match (self.pool, sysctl::local_port_range()?) {
            (Some(pool), Some(automatic)) => PortSet::from(pool).intersection(&automatic.into()),
            _ => PortSet::default(),
        };
        settle_here(&self.runtime, netns, |_| blocks.union(&shared))
    }

    /// Add a block to our entries in the calling thread's namespace.
    pub(super) fn add_here(&self, netns: u64, block: PortRange) -> io::Result<()> {
        self.add_all_here(netns, block.into())
    }

    /// Add many at once.
    pub(super) fn add_all_here(&self, netns: u64, blocks: PortSet) -> io::Result<()> {
        let blocks = self.outside_pool(blocks);
        settle_here(&self.runtime, netns, |ours| ours.union(&blocks))
    }

    /// Namespaces that have entries of ours.
    pub(super) fn remembered(&self) -> io::Result<Vec<u64>> {
        Ok(self.runtime.hold()?.state.ours.keys().copied().collect())
    }
}

/// Take our entries out of `ip_local_reserved_ports` in every namespace: nothing
/// of what others wrote there is touched. For `portkeep down`, after the kernel part is gone.
pub fn restore_all(runtime: &RuntimeDir) -> io::Result<Restored> {
    let mut restored = Restored::default();
    if !runtime.exists() {
        return Ok(restored);
    }
    let remembered: Vec<u64> = runtime.hold()?.state.ours.keys().copied().collect();
    for netns in remembered {
        match namespaces::find(netns, &[])? {
            Some(namespace) => {
                namespace.within(|| settle_here(runtime, netns, |_| PortSet::default()))?;
                restored.namespaces += 1;
            }
            None => restored.unreachable += 1,
        }
    }
    runtime.sweep()?;
    Ok(restored)
}
