//! The reservations that can be seen, from the maps or from queries.

use std::{collections::BTreeMap, io};

use portkeep::{
    Info,
    persistent::{Account, protocol::Reason},
};
use portkeep_core::wire;
use portkeep_kernel::{Instance, netns};
use portkeep_observe::namespaces;

use crate::{
    exit::refused,
    pins::{Pins, Seen, served_here},
};

/// All that is in force and can be seen: of the whole machine with root, else of this network namespace.
pub(crate) fn in_force(pins: &Pins) -> anyhow::Result<Vec<Info>> {
    match pins.look() {
        Seen::Up(instance) => all(&instance),
        _ if served_here()?.is_some() => here(),
        Seen::NotUp => Err(refused(Reason::NotUp, "kernel enforcement is not up, so nothing is reserved")),
        Seen::Hidden(reason) => {
            Err(refused(Reason::NotAllowed, format!("kernel enforcement does not serve this cgroup, and {reason}")))
        }
        Seen::Unusable(error) => Err(error.into()),
    }
}

/// All reservations of the machine, out of the maps.
fn all(instance: &Instance) -> anyhow::Result<Vec<Info>> {
    let maps = instance.maps()?;
    let mut names = NamespaceNames::new();
    let mut found = Vec::new();
    for item in maps.reservations() {
        let (id, reservation) = item?;
        // Refused ones stay until their socket has heard of it; they hold nothing.
        if reservation.state() == wire::REFUSED {
            continue;
        }
        let Some(mut info) = Info::from_wire(&maps.state(&reservation)?, &maps.also(&reservation)?) else { continue };
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
fn here() -> anyhow::Result<Vec<Info>> {
    let mut found = portkeep::list()?;
    for info in &mut found {
        info.netns_name = Some("this".into());
    }
    Ok(found)
}

pub(crate) fn is_here(info: &Info, own_netns: u64) -> bool {
    info.netns == Some(own_netns)
}

/// The terms of its scope or audience: ", strict", ", ephemeral, also unit docker.service" or nothing.
pub(crate) fn terms(info: &Info) -> String {
    let kind = match (info.strict, info.ephemeral) {
        (true, _) => ", strict",
        (_, true) => ", ephemeral",
        _ => "",
    };
    let also = if info.also.is_empty() { String::new() } else { format!(", also {}", info.also) };
    format!("{kind}{also}")
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
