//! The overlap of the pool and the ephemeral ports of this network namespace (N3).
//!
//! The agent prevents automatic choices from the overlap in every namespace. `up` does so in its own namespace, because
//! an agent is not required; `down` removes these entries.

use std::{fmt, io};

use portkeep_core::PortRange;
use portkeep_kernel::Instance;
use serde::Serialize;

use super::{
    reserved_ports::{ReservedPorts, restore_all},
    state::RuntimeDir,
    sysctl,
};

/// Ports of the pool that automatic choices may come from.
#[derive(Clone, Debug, Serialize)]
pub struct Overlap {
    pool: PortRange,
    /// `ip_local_port_range`.
    local_port_range: PortRange,
    /// The common ports.
    ports: PortRange,
    /// How many of these are in `ip_local_reserved_ports`: no automatic choice comes from them.
    reserved: u32,
}

impl Overlap {
    /// The overlap of a pool in the calling thread's namespace.
    pub fn of(pool: Option<PortRange>) -> io::Result<Option<Self>> {
        let (Some(pool), Some(range)) = (pool, sysctl::local_port_range()?) else { return Ok(None) };
        let both = PortRange::inclusive(pool.start().max(range.start()), pool.last().min(range.last()));
        let Ok(ports) = both else { return Ok(None) };
        let entered = sysctl::reserved()?;
        let reserved = ports.iter().filter(|port| entered.contains(*port)).count();
        Ok(Some(Self { pool, local_port_range: range, ports, reserved: u32::try_from(reserved).unwrap_or(u32::MAX) }))
    }

    /// Whether no automatic choice comes from the common ports.
    pub fn is_entered(&self) -> bool {
        self.reserved >= self.ports.count().into()
    }

    /// The remedy.
    pub const HELP: &str = "choose a pool outside net.ipv4.ip_local_port_range (`pool` in portkeep.toml)";
}

/// "the pool 61000-65535 overlaps net.ipv4.ip_local_port_range (1024-65535) in 61000-65535".
impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, local_port_range, ports, reserved } = self;
        let of = ports.count();
        write!(
            f,
            "the pool {pool} overlaps net.ipv4.ip_local_port_range ({local_port_range}) in {ports}; {reserved} of these {of} \
             ports are in ip_local_reserved_ports, so that outgoing connections do not use them"
        )
    }
}

/// Prevent automatic choices from the overlap in the calling thread's namespace, as far as enough ephemeral ports
/// remain. Wildcard requests get the rest last.
pub(super) fn enter_overlap(instance: &Instance) -> anyhow::Result<()> {
    let config = instance.config();
    let pool = PortRange::inclusive(config.pool_first, config.pool_last).ok();
    if Overlap::of(pool)?.is_some() {
        let entries = ReservedPorts { runtime: RuntimeDir::default(), pool };
        let netns = portkeep_kernel::netns::current_cookie()?;
        let shared = entries.settle_here(netns, &Default::default())?;
        instance.admin()?.avoid(netns, shared.avoid)?;
    }
    Ok(())
}

/// Remove these entries. Failures are returned as sentences.
pub fn leave_overlap() -> Option<String> {
    let restored = restore_all(&RuntimeDir::default());
    restored.err().map(|error| format!("ip_local_reserved_ports could not be put back: {error}"))
}
