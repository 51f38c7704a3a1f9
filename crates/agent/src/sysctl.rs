//! `ip_local_reserved_ports` and its neighbours, of the calling thread's network namespace.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
};

use portkeep_core::{PortRange, PortSet, ephemeral::Ephemeral};

const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
/// The kernel takes one byte less than a page at a time, and would cut an entry in two; this leaves a reserve.
const WRITE: usize = 4000;
/// The longest text: every other port, each of five digits and a comma, is under 200,000 bytes.
const READ: usize = 256 * 1024;

fn named(path: &str) -> impl FnOnce(io::Error) -> io::Error + use<'_> {
    move |error| io::Error::new(error.kind(), format!("{path}: {error}"))
}

/// `ip_local_reserved_ports`.
///
/// # Errors
///
/// If the sysctl cannot be read.
pub fn reserved() -> io::Result<PortSet> {
    let file = File::open(RESERVED).map_err(named(RESERVED))?;
    // In one read: the kernel has nothing more to say to a second one.
    let mut text = vec![0; READ];
    let length = file.read_at(&mut text, 0).map_err(named(RESERVED))?;
    String::from_utf8_lossy(&text[..length]).parse().map_err(io::Error::other)
}

/// Reserve more. Text written anywhere but at the beginning is added by the
/// kernel to what is there (`proc_do_large_bitmap`), so no entry can be
/// lost to a change at the same moment.
pub(super) fn add(ports: &PortSet) -> io::Result<()> {
    write(ports, false)
}

/// Reserve no longer. The kernel has no such step: the rest is written anew, and
/// what another process adds between our read and our write is lost.
/// Reading and writing follow each other at once to make that moment short.
pub(super) fn remove(ports: &PortSet) -> io::Result<()> {
    write(&reserved()?.minus(ports), true)
}

fn write(ports: &PortSet, replace: bool) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).open(RESERVED).map_err(named(RESERVED))?;
    let mut offset = u64::from(!replace);
    for part in parts(&ports.to_string(), WRITE) {
        let written = file.write_at(part.as_bytes(), offset).map_err(named(RESERVED))?;
        if written != part.len() {
            return Err(named(RESERVED)(io::ErrorKind::WriteZero.into()));
        }
        offset += written as u64;
    }
    Ok(())
}

/// The text cut at commas into parts of at most `most` bytes; an empty text is one part, which clears the list.
fn parts(text: &str, most: usize) -> Vec<String> {
    let mut parts = vec![String::new()];
    for item in text.split(',') {
        let part = parts.last_mut().expect("never empty");
        if part.is_empty() {
            part.push_str(item);
        } else if part.len() + 1 + item.len() + 1 > most {
            parts.push(item.to_owned());
        } else {
            part.push(',');
            part.push_str(item);
        }
    }
    parts.iter_mut().for_each(|part| part.push('\n'));
    parts
}

/// Where automatic choices come from; `None` if there is no such range.
///
/// # Errors
///
/// If the sysctl cannot be read.
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
///
/// # Errors
///
/// If the sysctl cannot be read.
pub fn unprivileged_port_start() -> io::Result<u32> {
    let path = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let text = fs::read_to_string(path).map_err(named(path))?;
    text.trim().parse().map_err(|_| io::Error::other(format!("{path}: {text:?} is not a port")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_entries() {
        assert_eq!(parts("", 10), ["\n"]);
        assert_eq!(parts("1,2,3", 100), ["1,2,3\n"]);
        assert_eq!(parts("1000,2000,3000", 10), ["1000,2000\n", "3000\n"]);
        let text = (1..30000u16).step_by(2).map(|port| port.to_string()).collect::<Vec<_>>().join(",");
        let parts = parts(&text, WRITE);
        assert!(parts.len() > 10 && parts.iter().all(|part| part.len() <= WRITE));
        assert_eq!(parts.concat().parse::<PortSet>().unwrap(), text.parse().unwrap());
    }
}
