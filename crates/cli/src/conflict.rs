//! Why ports were not granted, in words that name the process in the way.

use portkeep::{AcquireError, Align, PortRange, Transports, Version};

use crate::{
    ask::Ask,
    process::{self, Binders},
};

/// The library's message, with facts that only a program can find out: the process that
/// has an unreserved port bound, and the pool.
pub(crate) fn explain(ask: &Ask, block: Option<PortRange>, error: AcquireError) -> anyhow::Error {
    let text = match (&error, block) {
        (AcquireError::InUse { by: None, .. }, Some(block)) => in_use(block, ask.transports()),
        (AcquireError::NoRoom { .. }, _) => no_room(ask),
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
    match text {
        Some(text) => anyhow::anyhow!("{text}"),
        None => error.into(),
    }
}

pub(crate) fn privileged(block: PortRange) -> String {
    let s = if block.count() == 1 { "" } else { "s" };
    format!("reserving the privileged port{s} {block} requires root")
}

/// `None` if the ports were to be held: there is no pool to be full.
fn no_room(ask: &Ask) -> Option<String> {
    let version = portkeep::version().ok()?;
    let aligned = Some(ask.align)
        .filter(|n| *n != Align::ANY)
        .map_or_else(String::new, |n| format!(" from a multiple of {n} on"));
    let what = if ask.count == 1 { "port".into() } else { format!("{} ports in a row{aligned}", ask.count) };
    let reserved = version.ports;
    Some(format!("the pool ({}) has no {what} left; {reserved} ports are reserved on this machine", pool()))
}

fn pool() -> String {
    let pool = portkeep::version().ok().and_then(|Version { pool, .. }| pool);
    pool.map_or_else(|| "none".into(), |pool| pool.to_string())
}

/// "61004/tcp is in use by pid 812 (nginx)".
pub(crate) fn in_use(block: PortRange, transports: Transports) -> Option<String> {
    transports.iter().find_map(|transport| {
        let port = process::first_in_use(transport, block)?;
        let who = match Binders::of(transport, port)?.known.first() {
            Some(process) => process.to_string(),
            None => "a process that cannot be seen from here".into(),
        };
        Some(format!("{port}/{transport} is in use by {who}"))
    })
}
