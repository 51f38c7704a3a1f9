//! Messages that say why ports were not granted, and which process has them.

use std::{
    collections::HashMap,
    io,
    net::{TcpListener, UdpSocket},
};

use portkeep::{AcquireError, Align, Info, PortList, PortRange, Transport, Transports, Version};
use portkeep_observe::{accounts, process, usage};
use portkeep_persist::config::Limit;
use rustix::process::{getgid, getuid};

use crate::{
    agent,
    args::{ask::Ask, sources::ConfigFile},
    exit::{TOO_FEW_FILES, refused},
};

/// The library's message, with facts that only a program can find out: the process that
/// has an unreserved port bound, the pool, and the quota.
pub(crate) fn explain(ask: &Ask, config: &ConfigFile, error: &AcquireError) -> anyhow::Error {
    let (list, transports) = match ask.wanted.ports() {
        Ok(ports) => ports,
        Err(wrong) => return wrong,
    };
    let text = match (error, &list) {
        (AcquireError::InUse { by: None, ports, .. }, Some(_)) => {
            Some(format!("{}; stop what has it, or wait with --wait", in_use(*ports, transports)))
        }
        (AcquireError::NoRoom { .. }, Some(block)) => Some(format!(
            "reserving {block} would leave too few ephemeral ports for outgoing connections; choose ports outside \
             net.ipv4.ip_local_port_range"
        )),
        (AcquireError::NoRoom { .. }, None) => no_room(ask),
        (AcquireError::OverQuota, _) => {
            let count = list.as_ref().map_or_else(|| ask.wanted.count(), PortList::count);
            Some(over_quota(count, transports, config))
        }
        (AcquireError::AgentAbsent, Some(block)) => Some(format!(
            "{block} is outside the pool ({}), so the agent has to check whether it is in use, and no agent runs; \
             start `portkeep agent`, or let the system choose",
            pool()
        )),
        (AcquireError::AgentFailed, Some(block)) => Some(format!(
            "{block} is outside the pool ({}), and the agent could not find out whether it is in use; its log says why",
            pool()
        )),
        (AcquireError::AgentSilent { limit }, Some(block)) => Some(format!(
            "{block} is outside the pool ({}), and the agent, which has to check whether it is in use, does not answer \
             ({} s); restart it (`systemctl restart portkeep`), or let the system choose",
            pool(),
            limit.as_secs_f32()
        )),
        (AcquireError::Privileged, Some(block)) => Some(privileged(block)),
        _ => None,
    };
    let reason = error.reason();
    let chain = || anyhow::Chain::new(error).map(ToString::to_string).collect::<Vec<_>>().join(": ");
    let advice = match error {
        AcquireError::SocketCall { source } | AcquireError::AcquireCall { source }
            if source.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) =>
        {
            TOO_FEW_FILES
        }
        _ => "",
    };
    refused(reason, text.unwrap_or_else(|| chain() + advice))
}

pub(crate) fn privileged(ports: &PortList) -> String {
    let s = if ports.count() == 1 { "" } else { "s" };
    format!("reserving the privileged port{s} {ports} requires {}", process::lacks().unwrap_or("root"))
}

/// `None` in held mode: it has no pool that could be full.
fn no_room(ask: &Ask) -> Option<String> {
    let Version { pool, ports, .. } = portkeep::version().ok()?;
    let count = ask.wanted.count();
    let aligned = Some(ask.wanted.align)
        .filter(|n| *n != Align::ANY)
        .map_or_else(String::new, |n| format!(" from a multiple of {n} on"));
    let what = if count == 1 { "port".into() } else { format!("{count} ports in a row{aligned}") };
    Some(match pool {
        None => "there is no pool; name the ports with --ports".into(),
        Some(pool) if pool.count() < count => {
            format!("this needs {count} ports, and the pool ({pool}) has {}; ask for fewer", pool.count())
        }
        Some(pool) => format!(
            "the pool ({pool}) has no {what} left; {ports} ports are reserved on this machine{} (see `portkeep list`)",
            most_of(pool).map_or_else(String::new, |most| format!(", {most}"))
        ),
    })
}

/// "most ports of the pool by user www-data: 4000".
fn most_of(pool: PortRange) -> Option<String> {
    let mut held: HashMap<String, u32> = HashMap::new();
    for info in portkeep::list().unwrap_or_default() {
        let by = match info.owner.as_ref().and_then(|owner| owner.uid) {
            Some(uid) => format!("user {}", accounts::user_name(uid)),
            None => format!("the persistent reservation `{}`", info.name.as_deref().unwrap_or_default()),
        };
        let of_pool = info.ports.blocks().iter().filter_map(|block| block.common(pool));
        *held.entry(by).or_default() += of_pool.map(|block| u32::from(block.count())).sum::<u32>();
    }
    let (by, ports) = held.into_iter().max_by_key(|(_, ports)| *ports).filter(|(_, ports)| *ports > 0)?;
    Some(format!("most ports of the pool by {by}: {ports}"))
}

/// The number of ports of the quota that a request uses.
fn ports(count: u16, transports: Transports) -> u32 {
    u32::from(count) * transports.iter().map(|_| 1).sum::<u32>()
}

fn quota(config: &ConfigFile) -> Option<Limit> {
    Some(agent::quota(&config.load().ok()?, getuid().as_raw(), getgid().as_raw()))
}

/// Whether the request is larger than the whole quota, so that it can never be granted.
pub(crate) fn never_allowed(ask: &Ask, config: &ConfigFile) -> bool {
    let Ok((list, transports)) = ask.wanted.ports() else { return false };
    let count = list.as_ref().map_or_else(|| ask.wanted.count(), PortList::count);
    matches!(quota(config), Some(Limit::Ports(quota)) if ports(count, transports) > quota)
}

/// "this needs 100 ports, and you hold 1000 of your quota of 1024".
fn over_quota(count: u16, transports: Transports, config: &ConfigFile) -> String {
    let needed = ports(count, transports);
    let sum = if needed > u32::from(count) { " (for TCP and as many for UDP)" } else { "" };
    let uid = getuid().as_raw();
    let is_own = |info: &Info| info.owner.as_ref().is_some_and(|owner| owner.uid == Some(uid));
    let own = portkeep::list().unwrap_or_default().into_iter().filter(is_own);
    let held: u32 = own.map(|info| ports(info.ports.count(), info.transports)).sum();
    let quota = quota(config);
    let found = match quota {
        Some(Limit::Ports(quota)) if held + needed > quota => format!("{held} of your quota of {quota}"),
        // An option of `up` set it, or reservations in other network namespaces count too.
        _ => format!("{held} here: more than your quota allows, or 64 of your requests wait for the agent"),
    };
    let fewer =
        if sum.is_empty() { "ask for fewer" } else { "ask for one transport only (--tcp or --udp), or for fewer" };
    format!("this needs {needed} ports{sum}, and you hold {found}; {fewer}, or see `quota` in portkeep.toml(5)")
}

fn pool() -> String {
    let pool = portkeep::version().ok().and_then(|Version { pool, .. }| pool);
    pool.map_or_else(|| "none".into(), |pool| pool.to_string())
}

/// "61004/tcp is in use by pid 812 (nginx): listening".
pub(crate) fn in_use(block: PortRange, transports: Transports) -> String {
    let listed = transports.iter().find_map(|transport| usage::in_use(transport, block));
    // Before Linux 6.8 a TCP socket that is bound and does not listen is in no list.
    let unlisted = || {
        let all = transports.iter().flat_map(|transport| block.iter().map(move |port| (transport, port)));
        let (transport, port) = { all }.find(|(transport, port)| cannot_be_bound(*transport, *port))?;
        Some(format!("{port}/{transport} is in use by a socket of a process that cannot be seen from here"))
    };
    listed.or_else(unlisted).unwrap_or_else(|| {
        format!("a port of {block}/{transports} was in use by another process, and is free now: try again")
    })
}

/// Tries to bind the port: before Linux 6.8 no list has all sockets.
pub(crate) fn cannot_be_bound(transport: Transport, port: u16) -> bool {
    ["::", "0.0.0.0"].into_iter().any(|address| {
        let bound = match transport {
            Transport::Tcp => TcpListener::bind((address, port)).map(drop),
            Transport::Udp => UdpSocket::bind((address, port)).map(drop),
        };
        bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    })
}
