//! The reservations that can be seen, from the maps or from queries.

use std::{cell::LazyCell, collections::BTreeMap, io};

use anyhow::Context;
use portkeep::{
    Info, PortRange, Transports,
    persistent::{self, Account},
};
use portkeep_core::wire;
use portkeep_kernel::{Instance, netns};
use portkeep_observe::{Usage, listing, namespaces};

use crate::{
    patience,
    persist::view,
    sources::{ConfigFile, Sources},
};

/// All reservations of the machine, out of the maps.
pub(crate) fn all(instance: &Instance) -> anyhow::Result<Vec<Info>> {
    let maps = instance.maps()?;
    let mut names = NamespaceNames::new();
    let mut found = Vec::new();
    for item in maps.reservations() {
        let (id, reservation) = item?;
        // Refused ones stay until their socket has heard of it; they hold nothing.
        if reservation.state() == wire::REFUSED {
            continue;
        }
        let Some(mut info) = Info::from_wire(&maps.state(&reservation)?) else { continue };
        info.netns_name = names.name(reservation.netns);
        if let Some(audience) = maps.audience(id, &reservation) {
            let id = |id: &u32| Ok::<_, std::convert::Infallible>(Account::Id(*id));
            info.audience = audience.try_map(id, id).ok();
        }
        found.push(info);
    }
    Ok(Info::join(found))
}

/// Those of this network namespace, through queries that anybody may make.
pub(crate) fn here() -> anyhow::Result<Vec<Info>> {
    let mut found = portkeep::list()?;
    for info in &mut found {
        info.netns_name = Some("this".into());
    }
    Ok(found)
}

/// All that is declared, if an agent says so at once.
pub(crate) fn agent_list() -> Vec<Info> {
    persistent::Connection::open_within(patience::BRIEF).and_then(|mut agent| agent.list()).unwrap_or_default()
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

pub(crate) fn is_here(info: &Info, own_netns: u64) -> bool {
    info.netns == Some(own_netns)
}

/// The terms of its scope or audience: ", strict", ", ephemeral" or nothing.
pub(crate) const fn terms(info: &Info) -> &'static str {
    match (info.strict, info.ephemeral) {
        (true, _) => ", strict",
        (_, true) => ", ephemeral",
        _ => "",
    }
}

/// The owner, as messages name it: "pid 812 (nginx)", "unit tomcat.service".
pub(crate) fn owner(info: &Info) -> String {
    match (&info.owner, &info.audience) {
        (Some(owner), _) => owner.to_string(),
        (None, Some(audience)) => audience.to_string(),
        // The BPF programs show these names to root only.
        (None, None) => "a service or cgroup".into(),
    }
}

/// Names of network namespaces, looked up when one that is not our own turns up.
struct NamespaceNames {
    own: io::Result<u64>,
    others: Option<BTreeMap<u64, String>>,
}

impl NamespaceNames {
    fn new() -> Self {
        Self { own: netns::current_cookie(), others: None }
    }

    fn name(&mut self, cookie: u64) -> Option<String> {
        if self.own.as_ref().is_ok_and(|own| *own == cookie) {
            return Some("this".into());
        }
        self.others.get_or_insert_with(named).get(&cookie).cloned()
    }
}

/// Names of the namespaces that a process or a name in /run/netns leads to. Entering them requires root.
fn named() -> BTreeMap<u64, String> {
    namespaces::visible().flatten().map(|namespace| (namespace.cookie, namespace.name())).collect()
}
