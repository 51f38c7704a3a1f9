//! Servers and containers that run, compared with what is declared.

use std::collections::BTreeMap;

use portkeep::{
    BoundSocket, Info, PortRange, Process, State, Transports,
    persistent::{Account, Audience},
};
use portkeep_core::PortSet;
use portkeep_observe::{Usage, accounts, usage};

use super::finding::{Examined, Finding, Findings, Severity, requires_root};
use crate::args::asked;

/// Servers that bind as a user outside the audience of their ports (mostly root), and serve as a user of the audience.
pub(super) fn users(examined: &Examined<'_>) -> Findings {
    let names_user = |info: &&Info| each(info).iter().any(|one| matches!(one, Audience::User(_)));
    let declared: Vec<&Info> = examined.declared.iter().filter(names_user).collect();
    let blocks = declared.iter().flat_map(|info| asked::blocks_of(info).map(|block| (block, info.transports)));
    let usage = Usage::bound(&blocks.collect::<Vec<_>>()).map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    for info in declared {
        let named = |one: &Audience| if let Audience::User(account) = one { accounts::uid(account).ok() } else { None };
        let uids: Vec<u32> = each(info).iter().filter_map(named).collect();
        let ports = usage.ports.values().filter(|one| info.has(one.transport, one.port));
        // One finding for a server, however many ports it has.
        let server = ports.into_iter().find_map(|one| {
            let serves = uids.iter().find(|uid| one.bound_by.iter().any(|socket| is_of(socket, **uid)))?;
            // Several processes can have the socket: find the one that can have bound it.
            let bound = |socket: &&BoundSocket| socket.uid.is_some_and(|owner| is_of(socket, owner));
            let outside = |socket: &&BoundSocket| !each(info).iter().any(|audience| includes(audience, socket));
            Some((one, *serves, one.bound_by.iter().filter(bound).find(outside)?))
        });
        let Some((one, uid, socket)) = server else { continue };
        let binder = socket.user.clone().or_else(|| socket.uid.map(|uid| uid.to_string())).unwrap_or_default();
        let user = accounts::user_name(uid);
        let message = format!(
            "{} is for user {user}, and {}, which has {}/{}, binds as {binder} and serves as {user}: it is refused the port",
            info.name.as_deref().unwrap_or_default(),
            usage::holder(socket),
            one.port,
            one.transport,
        );
        let help = match service(socket) {
            Some(unit) => format!("write `unit = \"{unit}\"` in place of `user`"),
            None => format!("add \"{binder}\" to `user`"),
        };
        found.push(Finding::new(Severity::Error, message).help(help));
    }
    Ok(found)
}

fn each(info: &Info) -> &[Audience] {
    info.audience.as_ref().map_or(&[], Audience::each)
}

/// Whether the audience includes the user that bound the socket, or the unit that it is in.
fn includes(audience: &Audience, socket: &BoundSocket) -> bool {
    match audience {
        Audience::User(account) => accounts::uid(account).ok() == socket.uid,
        Audience::Group(account) => {
            accounts::gid(account).is_ok_and(|gid| socket.uid.is_some_and(|uid| accounts::belongs(uid, gid)))
        }
        Audience::Unit(unit) => socket.unit.as_ref() == Some(unit),
        Audience::Administrators | Audience::Cgroup(_) | Audience::Several(_) => false,
    }
}

fn is_of(socket: &BoundSocket, uid: u32) -> bool {
    socket.process.as_ref().is_some_and(|process| process.uid == Some(uid))
}

fn service(socket: &BoundSocket) -> Option<&str> {
    socket.unit.as_deref().filter(|unit| unit.ends_with(".service"))
}

/// Programs that bind the published ports of containers: of Docker, and of Podman as root and as a user.
const PUBLISHERS: [&str; 7] =
    ["docker-proxy", "dockerd", "conmon", "rootlessport", "rootlessport-ch", "slirp4netns", "pasta"];
/// Where dockerd itself listens: for its clients, and for a swarm.
const OF_DOCKERD: [u16; 4] = [2375, 2376, 2377, 7946];

/// Ports that containers have published: not reserved, or declared for something else.
pub(super) fn containers(examined: &Examined<'_>) -> Findings {
    let usage = Usage::bound(&[(PortRange::ALL, Transports::Both)]).map_err(|error| error.to_string())?;
    if !usage.all {
        return Err(requires_root());
    }
    let mut found = Vec::new();
    let mut open: BTreeMap<_, (PortSet, &BoundSocket)> = BTreeMap::new();
    for one in usage.ports.values() {
        let Some(socket) = one.bound_by.iter().find(|socket| publishes(socket)) else { continue };
        let audience = audience(socket);
        match examined.all().find(|info| info.has(one.transport, one.port)) {
            Some(info) if info.state == State::Active || each(info).contains(&audience) => {}
            Some(info) => {
                let of = info.audience.as_ref().map_or_else(String::new, |audience| format!(" for {audience}"));
                let message = format!(
                    "{}/{} of {} is declared{of}, and a container has published it: {}",
                    one.port,
                    one.transport,
                    info.name.as_deref().unwrap_or_default(),
                    usage::holder(socket)
                );
                let help = format!("publish another port, or declare it for {audience}");
                found.push(Finding::new(Severity::Error, message).help(help));
            }
            None => {
                let (ports, _) =
                    open.entry((option(&audience), one.transport)).or_insert_with(|| (PortSet::default(), socket));
                ports.insert(PortRange::single(one.port).map_err(|error| error.to_string())?);
            }
        }
    }
    for ((option, transport), (ports, socket)) in open {
        let message = format!(
            "containers have published {ports}/{transport} (by {}), and nothing keeps these ports while a container is stopped",
            usage::holder(socket)
        );
        let help =
            format!("`portkeep persist add {ports}/{transport} --name containers-{transport} {option} --around`");
        found.push(Finding::new(Severity::Warning, message).help(help));
    }
    Ok(found)
}

fn publishes(socket: &BoundSocket) -> bool {
    let is_own = |process: &Process| process.comm == "dockerd" && OF_DOCKERD.contains(&socket.port);
    let is_publisher = |process: &Process| PUBLISHERS.contains(&process.comm.split('.').next().unwrap_or_default());
    socket.process.as_ref().is_some_and(|process| is_publisher(process) && !is_own(process))
}

/// The audience for a published port: the unit of the program, because it binds the port of the next container, too.
/// Without a unit it is the user: Podman's conmon is in a scope that ends with its container.
fn audience(socket: &BoundSocket) -> Audience {
    let uid = socket.process.as_ref().and_then(|process| process.uid).or(socket.uid).unwrap_or_default();
    match service(socket) {
        Some(unit) => Audience::Unit(unit.to_owned()),
        None => Audience::User(accounts::user_name(uid).parse().unwrap_or(Account::Id(uid))),
    }
}

fn option(audience: &Audience) -> String {
    format!("--{audience}")
}
