//! Keeps `ip_local_reserved_ports` in step with the reservations.
//!
//! Only this sysctl keeps the source ports of `connect` out of a block (R3): the kernel chooses them without running a
//! hook. If the range of automatic choices overlaps the pool, the overlap is entered, too, as far as enough ephemeral
//! ports remain (N3, N5).

use std::{collections::BTreeMap, io};

use portkeep_core::{
    PortRange, PortSet,
    ephemeral::{Ephemeral, Exhausted, Shared},
    wire,
};
use portkeep_kernel::Maps;

use super::{namespaces, state::RuntimeDir, sysctl, sysctl_plan};

/// The entries of `ip_local_reserved_ports`.
#[derive(Debug)]
pub(super) struct ReservedPorts {
    pub(super) runtime: RuntimeDir,
    pub(super) pool: Option<PortRange>,
}

/// The result of [`restore_all`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Namespaces from which our entries were removed.
    pub namespaces: usize,
    /// Namespaces that have ended or could not be found. They stay remembered until the next boot.
    pub unreachable: usize,
}

/// Put the calling thread's namespace right, whose cookie is `netns`. `wanted` gets our entries and the entries in the
/// sysctl, and returns the entries that we need.
fn settle_here(
    runtime: &RuntimeDir,
    netns: u64,
    wanted: impl FnOnce(&PortSet, &PortSet) -> io::Result<PortSet>,
) -> io::Result<()> {
    let mut held = runtime.hold()?;
    let (ours, current) = (held.of(netns), sysctl::reserved()?);
    let plan = sysctl_plan::plan(&current, &ours, &wanted(&ours, &current)?);
    held.remember(netns, &plan.remember)?;
    if !plan.add.is_empty() {
        sysctl::add(&plan.add)?;
    }
    if !plan.remove.is_empty() {
        sysctl::remove(&plan.remove)?;
    }
    held.remember(netns, &plan.settled)
}

/// The blocks in force in each namespace.
pub(super) fn in_force(maps: &Maps) -> io::Result<BTreeMap<u64, PortSet>> {
    let mut in_force = BTreeMap::<u64, PortSet>::new();
    for item in maps.reservations() {
        let (_, reservation) = item.map_err(io::Error::other)?;
        if let Some(ports) = reservation.ports().filter(|_| reservation.state() == wire::ACTIVE) {
            in_force.entry(reservation.netns).or_default().insert(ports);
        }
    }
    Ok(in_force)
}

fn clear_here(runtime: &RuntimeDir, netns: u64) -> io::Result<()> {
    settle_here(runtime, netns, |_, _| Ok(PortSet::default()))
}

impl ReservedPorts {
    /// The ports of a set that require entries of their own. Pool ports are entered as far as automatic choices come
    /// from them.
    pub(super) fn outside_pool(&self, ports: PortSet) -> PortSet {
        match self.pool {
            Some(pool) => ports.minus(&pool.into()),
            None => ports,
        }
    }

    /// The part of the pool that is entered in the calling thread's namespace, and the part left to automatic choices
    /// (N3).
    fn shared(&self, ours: &PortSet, current: &PortSet) -> io::Result<(Option<Ephemeral>, Shared)> {
        let range = sysctl::local_port_range()?;
        let ephemeral = range.map(|range| Ephemeral { range, foreign: current.minus(ours) });
        let shared = match (&ephemeral, self.pool) {
            (Some(ephemeral), Some(pool)) => ephemeral.shared_with(pool),
            _ => Shared::default(),
        };
        Ok((ephemeral, shared))
    }

    /// The entries for `blocks` and for the part of the pool that automatic choices could use. Some of the pool is left
    /// to automatic choices; its reserved ports are entered all the same.
    fn entries(&self, blocks: &PortSet, shared: Shared) -> PortSet {
        let within = |part: Option<PortRange>| part.map(PortSet::from).unwrap_or_default();
        let reserved_there = within(shared.avoid).intersection(blocks);
        self.outside_pool(blocks.clone()).union(&within(shared.enter)).union(&reserved_there)
    }

    /// Set our entries in the calling thread's namespace to those for `blocks`. Returns how the pool and automatic
    /// choices share their ports there.
    pub(super) fn settle_here(&self, netns: u64, blocks: &PortSet) -> io::Result<Shared> {
        let mut found = Shared::default();
        settle_here(&self.runtime, netns, |ours, current| {
            found = self.shared(ours, current)?.1;
            Ok(self.entries(blocks, found))
        })?;
        Ok(found)
    }

    /// Remove all our entries from the calling thread's namespace.
    pub(super) fn clear_here(&self, netns: u64) -> io::Result<()> {
        clear_here(&self.runtime, netns)
    }

    /// Add a block to our entries in the calling thread's namespace, unless that leaves too few ephemeral ports (N5).
    /// See [`Self::add_each_here`].
    pub(super) fn add_here(
        &self,
        netns: u64,
        block: PortRange,
        in_force: impl FnOnce() -> io::Result<PortSet>,
    ) -> io::Result<Result<(), Exhausted>> {
        let refused = self.add_each_here(netns, &[(block.into(), false)], in_force)?;
        Ok(refused.into_iter().next().map_or(Ok(()), |(_, why)| Err(why)))
    }

    /// Add many blocks at once. A block that would leave too few ephemeral ports is not added, unless it is forced.
    /// Returns the indices of those blocks and the reasons.
    ///
    /// Blocks that ended or were refused a moment ago still have entries. They must neither count as used up, nor allow
    /// a block that has the same ports. So when all entries together would be too many, `in_force` decides, and only
    /// the entries for these blocks remain.
    pub(super) fn add_each_here(
        &self,
        netns: u64,
        blocks: &[(PortSet, bool)],
        in_force: impl FnOnce() -> io::Result<PortSet>,
    ) -> io::Result<Vec<(usize, Exhausted)>> {
        let mut refused = Vec::new();
        settle_here(&self.runtime, netns, |ours, current| {
            let (ephemeral, shared) = self.shared(ours, current)?;
            let blocks: Vec<_> =
                blocks.iter().map(|(block, forced)| (self.outside_pool(block.clone()), *forced)).collect();
            let all = blocks.iter().fold(ours.clone(), |all, (block, _)| all.union(block));
            let Some(ephemeral) = ephemeral else { return Ok(all) };
            let entered = shared.enter.map(PortSet::from).unwrap_or_default();
            if ephemeral.check(&all.union(&entered)).is_ok() {
                return Ok(all);
            }
            let mut used = self.entries(&in_force()?, shared);
            for (index, (block, forced)) in blocks.iter().enumerate() {
                match ephemeral.check_more(&used, block) {
                    Err(why) if !forced => refused.push((index, why)),
                    _ => used = used.union(block),
                }
            }
            Ok(used)
        })?;
        Ok(refused)
    }

    /// Whether a pool leaves enough ephemeral ports in the calling thread's namespace, beside the blocks in force (N5).
    pub(super) fn check_pool_here(
        &self,
        maps: &Maps,
        netns: u64,
        pool: PortRange,
    ) -> io::Result<Result<(), Exhausted>> {
        let ours = self.runtime.hold()?.of(netns);
        let Some(ephemeral) = sysctl::ephemeral(&ours)? else { return Ok(Ok(())) };
        let in_force = in_force(maps)?.remove(&netns).unwrap_or_default();
        Ok(ephemeral.check_more(&in_force, &pool.into()))
    }

    /// Namespaces with entries of ours.
    pub(super) fn remembered(&self) -> io::Result<Vec<u64>> {
        Ok(self.runtime.hold()?.state.ours.keys().copied().collect())
    }
}

/// Remove our entries from `ip_local_reserved_ports` in every namespace. Entries of others stay. For `portkeep down`,
/// after kernel enforcement has ended.
pub fn restore_all(runtime: &RuntimeDir) -> io::Result<Restored> {
    let mut restored = Restored::default();
    if !runtime.exists() {
        return Ok(restored);
    }
    let remembered: Vec<u64> = runtime.hold()?.state.ours.keys().copied().collect();
    for netns in remembered {
        match namespaces::find(netns)? {
            Some(namespace) => {
                namespace.within(|| clear_here(runtime, netns))?;
                restored.namespaces += 1;
            }
            None => restored.unreachable += 1,
        }
    }
    runtime.sweep()?;
    Ok(restored)
}
