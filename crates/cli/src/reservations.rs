//! The reservations that can be seen, from the maps or from queries.

use std::{cell::LazyCell, collections::BTreeMap, io};

use anyhow::Context;
use portkeep::{
    Info, PortRange, Process, Scope, Transports,
    persistent::{self, Account},
};
use portkeep_core::wire;
use portkeep_kernel::{Instance, cgroup, netns};
use portkeep_observe::{Usage, accounts, namespaces};

use crate::{patience, process};

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
    found.sort_by(|one, other| {
        let key = |info: &Info| (info.netns, info.ports.start(), info.transports);
        key(one).cmp(&key(other))
    });
    let own = netns::current_cookie().context("finding out which network namespace this is")?;
    let declared = if found.iter().any(|info| info.persistent) { agent_list() } else { Vec::new() };
    let by_token: BTreeMap<_, _> = declared.into_iter().filter_map(|each| Some((each.token?, each))).collect();
    let first_pids = process::in_first_pid_namespace();
    // One round for all of them, and none if there is nobody.
    let all = PortRange::inclusive(1, u16::MAX)?;
    let usage = LazyCell::new(|| Usage::bound(&[(all, Transports::Both)]).unwrap_or_default());
    for info in found {
        if let Some(declared) = info.token.and_then(|token| by_token.get(&token)).filter(|_| info.persistent) {
            // The BPF programs keep only the beginning of the name.
            info.name.clone_from(&declared.name);
            info.audience.clone_from(&declared.audience);
            info.origin.clone_from(&declared.origin);
            info.description.clone_from(&declared.description);
            (info.around, info.force) = (declared.around, declared.force);
        } else {
            info.audience = info.audience.as_ref().map(accounts::named);
        }
        if let Some(owner) = &mut info.owner {
            complete_owner(owner, first_pids);
        }
        if let Some(Scope::Cgroup(id)) = info.scope {
            info.cgroup = cgroup::path_of(id).map(|path| path.display().to_string());
        }
        if !is_here(info, own) {
            continue;
        }
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

/// The names of the users of processes.
pub(crate) fn name_users<'a>(processes: impl Iterator<Item = &'a mut Process>) {
    for process in processes {
        process.user = process.uid.and_then(accounts::known_user);
    }
}

/// Add facts about the process, unless its pid means something else here or belongs to somebody else by now.
fn complete_owner(owner: &mut Process, first_pids: bool) {
    if first_pids && let Some(found) = process::of(owner.pid).filter(|found| found.comm == owner.comm) {
        (owner.command, owner.unit, owner.started) = (found.command, found.unit, found.started);
    }
    name_users(std::iter::once(owner));
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
