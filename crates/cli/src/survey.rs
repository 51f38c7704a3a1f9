//! Reservations with all that is known of them: the declaration, the processes, what programs only hold.

use std::cell::LazyCell;

use anyhow::Context;
use portkeep::{Info, PortRange, Transports};
use portkeep_kernel::netns;
use portkeep_observe::{Usage, listing};

use crate::{
    persist::view,
    pins::Pins,
    reservations::{in_force, is_here},
    sources::{ConfigFile, Sources},
};

/// All that can be seen: of the whole machine with root, else of this network namespace.
pub(crate) fn all(pins: &Pins) -> anyhow::Result<Vec<Info>> {
    let mut found = in_force(pins)?;
    complete(&mut found)?;
    Ok(found)
}

/// The blocks that programs only hold, as far as they can be seen.
pub(crate) fn held() -> Vec<Info> {
    let all = PortRange::inclusive(1, u16::MAX).expect("1 is at most 65535");
    Usage::bound(&[(all, Transports::Both)]).unwrap_or_default().held
}

/// Put them in order and add facts that the BPF programs lack: the agent's, if one runs, and processes.
pub(crate) fn complete(found: &mut [Info]) -> anyhow::Result<()> {
    let own = netns::current_cookie().context("finding out which network namespace this is")?;
    let declared = if found.iter().any(|info| info.persistent) {
        view::all(&Sources::of(&ConfigFile::default()), found)
    } else {
        Vec::new()
    };
    listing::complete(found, &declared);
    // One round for all of them, and none if there is nobody.
    let all = PortRange::inclusive(1, u16::MAX)?;
    let usage = LazyCell::new(|| Usage::bound(&[(all, Transports::Both)]).unwrap_or_default());
    for info in found.iter_mut().filter(|info| is_here(info, own)) {
        let mut sockets = Vec::new();
        if info.bound.is_some_and(|bound| bound > 0) {
            for transport in info.transports.iter() {
                let here = info.ports.iter().filter_map(|port| usage.ports.get(&(port, transport)));
                sockets.extend(here.flat_map(|found| found.bound_by.iter().cloned()));
            }
        }
        info.bound_by = Some(sockets);
    }
    Ok(())
}
