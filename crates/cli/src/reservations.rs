//! The reservations that can be seen, from the maps or from queries.

use std::{
    collections::{BTreeMap, HashSet},
    io,
};

use portkeep::{
    Info, PortRange, Transports,
    persistent::{Account, protocol::Reason},
};
use portkeep_core::{ListMark, wire};
use portkeep_kernel::{Instance, Maps, Reservation, netns};
use portkeep_observe::namespaces;

use crate::{
    args::pins::{Pins, Seen, served_here},
    exit::refused,
};

/// Blocks of ports with their transports.
pub(crate) type Blocks = [(PortRange, Transports)];

/// A reservation as the kernel keeps it, with its id.
pub(crate) type Kept = (u32, Reservation);

/// The reservations in the maps that `means` picks, with all blocks of their lists.
pub(crate) fn find(maps: &Maps, means: impl Fn(&Reservation) -> bool) -> anyhow::Result<Vec<Kept>> {
    let all: Vec<Kept> = maps.reservations().collect::<Result<_, _>>()?;
    // Refused requests stay until their socket has read the result. They reserve nothing.
    let all: Vec<Kept> = all.into_iter().filter(|(_, each)| each.state() != wire::REFUSED).collect();
    let list_of = |each: &Reservation| ListMark::of(&each.label).map(|mark| (mark, each.netns, each.pid));
    let meant: Vec<&Kept> = all.iter().filter(|(_, each)| means(each)).collect();
    let lists: HashSet<_> = meant.iter().filter_map(|(_, each)| list_of(each)).collect();
    let ids: HashSet<u32> = meant.into_iter().map(|(id, _)| *id).collect();
    let is_meant = |(id, each): &Kept| ids.contains(id) || list_of(each).is_some_and(|list| lists.contains(&list));
    Ok(all.into_iter().filter(is_meant).collect())
}

/// All reservations in force that can be seen: with root those of the whole machine, else those of this network
/// namespace. With `blocks`, only those that have one of these ports.
pub(crate) fn in_force(pins: &Pins, blocks: Option<&Blocks>) -> anyhow::Result<Vec<Info>> {
    let mut found = match pins.look() {
        Seen::Up(instance) => of_machine(&instance, blocks)?,
        _ if served_here()?.is_some() => here(blocks)?,
        Seen::NotUp => return Err(refused(Reason::NotUp, "kernel enforcement is not up, so nothing is reserved")),
        Seen::Hidden(reason) => {
            let text = format!("kernel enforcement does not serve this cgroup, and {reason}");
            return Err(refused(Reason::NotAllowed, text));
        }
        Seen::Unusable(error) => return Err(error.into()),
    };
    // The agent reports these as declarations that wait.
    found.retain(|info| !info.is_checked());
    Ok(found)
}

/// The reservations of the machine, from the maps.
fn of_machine(instance: &Instance, blocks: Option<&Blocks>) -> anyhow::Result<Vec<Info>> {
    let maps = instance.maps()?;
    let kept = match blocks {
        None => find(&maps, |_| true)?,
        Some(blocks) => find(&maps, |each| {
            let Some((its_ports, its_transports)) = each.ports().zip(each.transports()) else { return false };
            let mut wanted = blocks.iter().filter(|(_, transports)| transports.overlaps(its_transports));
            wanted.any(|(ports, _)| ports.common(its_ports).is_some())
        })?,
    };
    let mut names = NamespaceNames::new();
    let mut found = Vec::new();
    for (id, reservation) in kept {
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

/// Up to this number, ports are queried one by one.
const SINGLY: u32 = 16;

/// The reservations of this network namespace, through queries that every user may make.
fn here(blocks: Option<&Blocks>) -> anyhow::Result<Vec<Info>> {
    let ports = |blocks: &Blocks| blocks.iter().map(|(ports, _)| u32::from(ports.count())).sum::<u32>();
    let mut found = match blocks.filter(|blocks| ports(blocks) <= SINGLY) {
        None => portkeep::list()?,
        Some(blocks) => {
            let mut found: Vec<Info> = Vec::new();
            for (ports, transports) in blocks {
                for (port, transport) in ports.iter().flat_map(|port| transports.iter().map(move |each| (port, each))) {
                    if !found.iter().any(|info| info.has(transport, port)) {
                        found.extend(portkeep::who(transport, port)?);
                    }
                }
            }
            found
        }
    };
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

/// Names of network namespaces. They are looked up when the first namespace other than our own is found.
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
