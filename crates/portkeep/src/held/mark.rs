//! The mark of a held block: a memory file whose name says what its process holds.
//!
//! The kernel has no table of held reservations. So the process keeps an empty memory file open, and `portkeep who` and
//! `list` read its name. The name is among the links of `/proc/PID/fd`, for every process that may see the sockets
//! there. The file ends with the process, as the sockets do.

use std::os::fd::OwnedFd;

use portkeep_core::{PortRange, Time, Transports};

use crate::{Info, sys};

/// The link to a memory file of this kind begins with this.
const LINK: &str = "/memfd:";
const NAME: &str = "portkeep-held ";
/// The kernel adds this to the name of a file that is in no folder.
const DELETED: &str = " (deleted)";
/// Replaces a zero byte: labels of lists have one, and names of files cannot.
const ZERO: &str = "\x1f";

/// A mark for this block. `None` if it cannot be made: then others only see the sockets.
pub(super) fn make(ports: PortRange, transports: Transports, since: Time, label: &str) -> Option<OwnedFd> {
    sys::memory_file(&format!("{NAME}{ports} {} {} {}", transports.bits(), since.unix(), label.replace('\0', ZERO)))
        .ok()
}

impl Info {
    /// The reservation that a process holds in held mode, without its owner. `link` is the target of a link of
    /// `/proc/PID/fd`. `None` if it is not a mark. Any process can make such a mark, so only the sockets of the process
    /// prove that it holds the ports.
    pub fn of_held_mark(link: &str) -> Option<Self> {
        let name = link.strip_prefix(LINK)?.strip_prefix(NAME)?;
        let mut words = name.strip_suffix(DELETED).unwrap_or(name).splitn(4, ' ');
        let (ports, transports, since) = (words.next()?, words.next()?, words.next()?);
        let label = words.next().unwrap_or_default().replace(ZERO, "\0");
        Some(Self {
            since: Some(Time::from_unix(since.parse().ok()?)),
            owner: None,
            ..Self::held(ports.parse().ok()?, Transports::from_bits(transports.parse().ok()?)?, &label)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsRawFd};

    use portkeep_core::{ListMark, Scope};

    use super::*;
    use crate::{Enforcement, State};

    #[test]
    fn a_mark_says_what_is_held() {
        let ports = PortRange::inclusive(61000, 61003).unwrap();
        let since = Time::from_unix(1_764_063_000);
        let mark = make(ports, Transports::Both, since, "of the build").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", mark.as_raw_fd())).unwrap();
        let info = Info::of_held_mark(link.to_str().unwrap()).unwrap();
        assert_eq!((info.ports, info.transports, info.since), (ports.into(), Transports::Both, Some(since)));
        assert_eq!((info.name.as_deref(), info.enforcement), (Some("of the build"), Some(Enforcement::Held)));
        assert_eq!((info.state, info.scope, info.owner), (State::Active, Some(Scope::Process), None));
        let list = ListMark::new(2, 7).unwrap();
        let of_list = make(ports, Transports::Tcp, since, &list.label("web")).unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", of_list.as_raw_fd())).unwrap();
        let info = Info::of_held_mark(link.to_str().unwrap()).unwrap();
        assert_eq!((info.name.as_deref(), info.list), (Some("web"), Some(list)));
        let unnamed = make(ports, Transports::Tcp, since, "").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", unnamed.as_raw_fd())).unwrap();
        assert_eq!(Info::of_held_mark(link.to_str().unwrap()).unwrap().name, None);
        for other in ["socket:[1]", "/memfd:x (deleted)", "/memfd:portkeep-held 0 1 1 ", "/memfd:portkeep-held 1-2"] {
            assert_eq!(Info::of_held_mark(other), None, "{other}");
        }
    }
}
