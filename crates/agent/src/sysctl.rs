//! Writing `ip_local_reserved_ports` of the calling thread's network namespace.

use std::{fs, io, os::unix::fs::FileExt};

use portkeep_core::PortSet;
use portkeep_observe::sysctl::RESERVED;
pub use portkeep_observe::sysctl::ephemeral;
pub(crate) use portkeep_observe::sysctl::{local_port_range, reserved, unprivileged_port_start};

/// The kernel accepts one byte less than a page at a time, and would cut an entry in two; this leaves a reserve.
const WRITE: usize = 4000;

/// Reserve more ports. If the text is not written at the beginning, the kernel adds it to the present entries
/// (`proc_do_large_bitmap`). So a change at the same moment loses no entry.
pub(super) fn add(ports: &PortSet) -> io::Result<()> {
    write(ports, false)
}

/// Stop reserving ports. The kernel has no such step: the remaining entries are written anew. If another process adds
/// an entry between our read and our write, that entry is lost. To make that moment short, the write follows the read
/// at once.
pub(super) fn remove(ports: &PortSet) -> io::Result<()> {
    write(&reserved()?.minus(ports), true)
}

fn named(path: &str) -> impl FnOnce(io::Error) -> io::Error + use<'_> {
    move |error| io::Error::new(error.kind(), format!("{path}: {error}"))
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

/// The text, cut at commas into parts of at most `most` bytes; an empty text is one part, which clears the list.
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
