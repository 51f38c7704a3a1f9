//! Puts `ip_local_reserved_ports` right in namespaces where something has changed and, from time to time, in all.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::Instant,
};

use anyhow::Context;
use portkeep_core::{PortSet, ephemeral::Shared};
use portkeep_kernel::Maps;

use super::{
    agent::{Agent, SLICE},
    namespaces::Namespace,
    reserved_ports::{ReservedPorts, in_force},
    set_aside::Round,
};

/// How many namespaces may wait to be put right at once; the sweep finds the others.
const UNSETTLED: usize = 4096;

/// The blocks of each namespace whose ports no automatic choice may have: those in force, and those declared that wait
/// until the present sockets close (`draining`, in the namespace `own`). A request that is being examined is not among
/// them: it must not count its own ports as used up (N5).
pub(super) fn wanted(maps: &Maps, own: u64, draining: &PortSet) -> io::Result<BTreeMap<u64, PortSet>> {
    let mut wanted = in_force(maps)?;
    let blocks = wanted.entry(own).or_default();
    *blocks = blocks.union(draining);
    Ok(wanted)
}

impl Agent<'_> {
    /// Something has changed in a namespace. One of `hints` caused it.
    pub(super) fn unsettle(&mut self, netns: u64, hints: &[u32]) {
        if self.unsettled.len() < UNSETTLED || netns == self.netns {
            let known = self.unsettled.entry(netns).or_default();
            if known.is_empty() {
                known.extend_from_slice(hints);
            }
        }
    }

    fn wanted(&self) -> io::Result<BTreeMap<u64, PortSet>> {
        wanted(&self.programs.maps, self.netns, &self.registry.draining())
    }

    /// Whether blocks require entries of their own: pool ports are entered only where automatic choices come from them.
    fn needs_entries(&self, blocks: &PortSet) -> bool {
        !self.reserved_ports.outside_pool(blocks.clone()).is_empty()
    }

    /// Put the sysctls right where something has changed, for one slice.
    pub(super) fn settle(&mut self) -> anyhow::Result<()> {
        let wanted = self.wanted()?;
        // Without free descriptors this cannot be read. The namespaces that are kept open are put right or closed all
        // the same, and the sweep later reaches the others.
        let remembered: BTreeSet<u64> = self.reserved_ports.remembered().unwrap_or_default().into_iter().collect();
        let begin = Instant::now();
        while begin.elapsed() < SLICE
            && let Some((netns, hints)) = self.unsettled.pop_first()
        {
            let blocks = wanted.get(&netns);
            // The search for a namespace reads all processes, so it is done only if there are entries to change.
            let entries = blocks.is_some_and(|blocks| self.needs_entries(blocks)) || remembered.contains(&netns);
            let found = if entries {
                self.open_namespaces.get(netns, &hints).is_ok()
            } else {
                blocks.is_some() && self.open_namespaces.keep_hinted(netns, &hints).unwrap_or(false)
            };
            if found || self.open_namespaces.contains(netns) {
                self.settle_kept(netns, blocks);
            }
        }
        Ok(())
    }

    fn settle_kept(&mut self, netns: u64, blocks: Option<&PortSet>) {
        let Ok(namespace) = self.open_namespaces.get(netns, &[]) else { return };
        let settled = settle_in(&self.reserved_ports, namespace, blocks);
        self.settled_in(netns, blocks, settled);
    }

    /// Act on the result of putting a namespace right.
    fn settled_in(&mut self, netns: u64, blocks: Option<&PortSet>, settled: io::Result<Shared>) {
        match settled {
            Ok(shared) => {
                if blocks.is_some()
                    && let Err(error) = self.programs.admin.avoid(netns, shared.avoid)
                {
                    tracing::warn!(netns, %error, "cannot keep wildcard requests off the ephemeral ports");
                }
                // Without entries we have no reason to keep it alive.
                if !blocks.is_some_and(|blocks| self.needs_entries(blocks))
                    && shared.enter.is_none()
                    && netns != self.netns
                {
                    self.open_namespaces.let_go(netns);
                }
            }
            Err(error) => {
                tracing::warn!(netns, %error, "cannot put ip_local_reserved_ports right");
                self.open_namespaces.let_go(netns);
            }
        }
    }

    /// Continue to put the sysctls right in every namespace that can be seen or that we remember.
    pub(super) fn sweep_on(&mut self) -> anyhow::Result<()> {
        if self.sweep.is_over() {
            return Ok(());
        }
        let wanted = self.wanted()?;
        let remembered: BTreeSet<u64> = self.reserved_ports.remembered()?.into_iter().collect();
        let begin = Instant::now();
        while begin.elapsed() < SLICE {
            let Some(namespace) = self.sweep.rest.as_mut().and_then(Iterator::next) else {
                return self.end_sweep(&wanted, &remembered);
            };
            let namespace = namespace.context("looking for network namespaces")?;
            let netns = namespace.cookie;
            if self.sweep.looks_for_use {
                Round { admin: &self.programs.admin, prober: &self.prober }
                    .set_aside_in(&namespace, &self.programs.config);
            }
            let blocks = wanted.get(&netns);
            if blocks.is_some() || remembered.contains(&netns) {
                self.sweep.seen.insert(netns);
                let settled = settle_in(&self.reserved_ports, &namespace, blocks);
                self.open_namespaces.keep(namespace);
                self.settled_in(netns, blocks, settled);
            }
        }
        Ok(())
    }

    /// Put namespaces right in which no process was seen. They may be found in another way.
    fn end_sweep(&mut self, wanted: &BTreeMap<u64, PortSet>, remembered: &BTreeSet<u64>) -> anyhow::Result<()> {
        self.sweep.rest = None;
        let seen = std::mem::take(&mut self.sweep.seen);
        let left = wanted.keys().chain(remembered).copied().chain(self.open_namespaces.cookies());
        let left: Vec<u64> = left.filter(|netns| !seen.contains(netns)).collect();
        left.into_iter().for_each(|netns| self.unsettle(netns, &[]));
        Ok(())
    }
}

fn settle_in(reserved_ports: &ReservedPorts, namespace: &Namespace, blocks: Option<&PortSet>) -> io::Result<Shared> {
    let netns = namespace.cookie;
    namespace.within(|| match blocks {
        Some(blocks) => reserved_ports.settle_here(netns, blocks),
        None => reserved_ports.clear_here(netns).map(|()| Shared::default()),
    })
}
