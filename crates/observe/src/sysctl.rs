//! `ip_local_reserved_ports` and its neighbours, of the calling thread's network namespace.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
};

use portkeep_core::{PortRange, PortSet, ephemeral::Ephemeral};

/// The list of ports that no automatic choice comes from.
pub const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
/// The longest text: every other port, each of five digits and a comma, is under 200,000 bytes.
const READ: usize = 256 * 1024;

fn named(path: &str) -> impl FnOnce(io::Error) -> io::Error + use<'_> {
    move |error| io::Error::new(error.kind(), format!("{path}: {error}"))
}

/// The ports in `ip_local_reserved_ports`.
///
/// # Errors
///
/// If the file does not exist, or its content is invalid; this applies to the other functions here, too.
pub fn reserved() -> io::Result<PortSet> {
    let file = File::open(RESERVED).map_err(named(RESERVED))?;
    // One read: the kernel returns nothing to a second one.
    let mut text = vec![0; READ];
    let length = file.read_at(&mut text, 0).map_err(named(RESERVED))?;
    String::from_utf8_lossy(&text[..length]).parse().map_err(io::Error::other)
}

/// The range of automatic choices.
pub fn local_port_range() -> io::Result<Option<PortRange>> {
    let path = "/proc/sys/net/ipv4/ip_local_port_range";
    let text = fs::read_to_string(path).map_err(named(path))?;
    let mut numbers = text.split_whitespace().map(str::parse::<u16>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok(PortRange::inclusive(first.max(1), last).ok()),
        _ => Err(io::Error::other(format!("{path}: {text:?} is not a range"))),
    }
}

/// The ephemeral ports; `ours` is what Portkeep has reserved. `None` if automatic choices have no range.
pub fn ephemeral(ours: &PortSet) -> io::Result<Option<Ephemeral>> {
    let Some(range) = local_port_range()? else { return Ok(None) };
    Ok(Some(Ephemeral { range, foreign: reserved()?.minus(ours) }))
}

/// Ports below this one are privileged.
pub fn unprivileged_port_start() -> io::Result<u32> {
    let path = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let text = fs::read_to_string(path).map_err(named(path))?;
    text.trim().parse().map_err(|_| io::Error::other(format!("{path}: {text:?} is not a port")))
}
