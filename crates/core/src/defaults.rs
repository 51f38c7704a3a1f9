//! The defaults. Each is defined here and nowhere else.

use std::time::Duration;

use crate::PortRange;

/// The pool: above the default ephemeral range (32768-60999), so that the two have no port in common.
pub const POOL: PortRange = match PortRange::inclusive(61000, 65535) {
    Ok(range) => range,
    Err(_) => unreachable!(),
};

/// Ports that one user may hold at a time, counted once for each transport.
pub const QUOTA: u32 = 1024;

/// Ports that root of another network namespace may hold at a time.
pub const CONTAINER_QUOTA: u32 = 4096;

/// The first port that every user may bind, where the namespace's `ip_unprivileged_port_start` cannot be read.
pub const UNPRIVILEGED_START: u16 = 1024;

/// How long a request waits for an agent that does not answer.
pub const TIMEOUT: Duration = Duration::from_secs(30);
