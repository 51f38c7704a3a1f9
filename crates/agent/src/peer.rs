//! The process at the other end of a connection, or behind a request, and whether it counts as root.
//!
//! Uid 0 alone does not make an administrator: root in a container without capabilities has it, too. Root is uid 0 in
//! the agent's own user namespace with a capability that allows it to decide about ports.

use std::{
    fs, io,
    os::unix::{fs::MetadataExt, net::UnixStream},
};

use nix::sys::socket::{
    getsockopt,
    sockopt::{PeerCredentials, PeerPidfd},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// `CAP_NET_BIND_SERVICE`, `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`. A process with one of them could have the port without
/// Portkeep, or could disable the network. The BPF programs check the same (`is_root` in process.h).
const OF_ROOT: u64 = 1 << 10 | 1 << 12 | 1 << 21;

/// The process at the other end, as the kernel reports it (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) pid: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Uid 0 with the rights of root.
    pub(super) is_root: bool,
}

impl Peer {
    pub(super) fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = getsockopt(stream, PeerCredentials)?;
        let (uid, gid) = (credentials.uid(), credentials.gid());
        // 0 if the process is in a pid namespace that cannot be seen from here.
        let pid = credentials.pid().unsigned_abs();
        let is_root = uid == 0 && has_rights_of_root(pid) && still_the_same(stream);
        Ok(Self { pid, uid, gid, is_root })
    }
}

/// Whether the process that connected is still running, so that its pid cannot belong to another process. Linux before
/// 6.5 does not show this.
fn still_the_same(stream: &UnixStream) -> bool {
    let Ok(process) = getsockopt(stream, PeerPidfd) else { return true };
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    let asked = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    asked.is_ok() && !fds[0].revents().contains(PollFlags::IN)
}

/// Whether a process with uid 0 has the rights of root here. A process that cannot be seen does not have them.
pub(super) fn has_rights_of_root(pid: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    let own_user_namespace = same_namespace(&format!("/proc/{pid}/ns/user"), "/proc/self/ns/user");
    own_user_namespace && capabilities(&status).is_some_and(|capabilities| capabilities & OF_ROOT != 0)
}

/// Effective capabilities in the text of `/proc/PID/status`.
fn capabilities(status: &str) -> Option<u64> {
    let text = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(text.trim(), 16).ok()
}

/// Whether two paths lead to the same namespace.
pub(super) fn same_namespace(one: &str, other: &str) -> bool {
    let identity = |path: &str| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_status() {
        assert_eq!(capabilities("Name:\tx\nCapEff:\t0000000000201400\n"), Some(OF_ROOT));
        assert_eq!(capabilities("Name:\tx\nCapEff:\t0000000000000000\n"), Some(0));
        assert_eq!(capabilities("Name:\tx\n"), None);
    }

    #[test]
    fn a_process_that_does_not_exist_is_not_root() {
        assert!(!has_rights_of_root(u32::MAX));
    }
}
