//! Reservations with all that is known of them: the declaration, the processes, what programs only hold.

use anyhow::Context;
use portkeep::{Info, PortRange, Transports};
use portkeep_kernel::netns;
use portkeep_observe::{Usage, listing};

use crate::{
    args::{
        asked,
        pins::Pins,
        sources::{ConfigFile, Sources},
    },
    commands::persist::view,
    reservations::{in_force, is_here},
    waiting::Heard,
};

/// All that can be seen: of the whole machine with root, else of this network namespace.
pub(crate) fn all(pins: &Pins) -> anyhow::Result<Vec<Info>> {
    let mut found = in_force(pins, None)?;
    complete(&mut found)?;
    Ok(found)
}

/// The blocks that programs only hold, as far as they can be seen.
pub(crate) fn held() -> Vec<Info> {
    Usage::bound_and_held(&[]).unwrap_or_default().held
}

/// Put them in order and add facts that the BPF programs lack: the agent's, if one runs, and processes.
pub(crate) fn complete(found: &mut [Info]) -> anyhow::Result<()> {
    name(found, None);
    let blocks = in_use(found)?;
    let usage = if blocks.is_empty() { Usage::default() } else { Usage::bound(&blocks).unwrap_or_default() };
    enter_sockets(found, &usage)
}

/// Put them in order and add all facts but the sockets. Without the agent's answer, it is asked if it can know more.
pub(crate) fn name(found: &mut [Info], heard: Option<&Heard>) {
    let sources = || Sources::of(&ConfigFile::default());
    let declared = match heard {
        _ if !found.iter().any(|info| info.persistent) => Vec::new(),
        None => view::all(&sources(), found),
        Some(Heard::Absent) => view::as_read(&sources(), found),
        Some(heard) => heard.declared().to_vec(),
    };
    listing::complete(found, &declared);
}

fn own_namespace() -> anyhow::Result<u64> {
    netns::current_cookie().context("finding out which network namespace this is")
}

/// Whether it can have bound sockets. The kernel counts only binds made after the reservation: a server that was adopted
/// bound its port before.
fn may_be_bound(info: &Info) -> bool {
    info.persistent || info.bound.is_some_and(|bound| bound > 0)
}

/// The blocks of this namespace that can have a bound socket.
pub(crate) fn in_use(found: &[Info]) -> anyhow::Result<Vec<(PortRange, Transports)>> {
    let own = own_namespace()?;
    let here = found.iter().filter(|info| is_here(info, own) && may_be_bound(info));
    Ok(here.flat_map(|info| asked::blocks_of(info).map(|block| (block, info.transports))).collect())
}

/// Enter the sockets of the blocks that are [`in_use`].
pub(crate) fn enter_sockets(found: &mut [Info], usage: &Usage) -> anyhow::Result<()> {
    let own = own_namespace()?;
    for info in found.iter_mut().filter(|info| is_here(info, own)) {
        let (mut sockets, mut bound) = (Vec::new(), 0);
        if may_be_bound(info) {
            for transport in info.transports.iter() {
                for found in info.ports.iter().filter_map(|port| usage.ports.get(&(port, transport))) {
                    bound += u32::from(!found.bound_by.is_empty());
                    sockets.extend(found.bound_by.iter().cloned());
                }
            }
        }
        // The kernel counts connected sockets, too.
        info.bound = info.bound.map(|counted| counted.max(bound));
        info.bound_by = Some(sockets);
    }
    Ok(())
}
