//! Whether a process belongs to the audience of a reservation. The agent checks the sockets that were there first
//! (`around`); the BPF programs check later ones in the same way.

use std::fs;

use portkeep::Process;
use portkeep_core::{PortRange, Transport, persistent::Audience};
use portkeep_kernel::{Config, cgroup};
use portkeep_observe::{Usage, process::unit_in};

/// The identity of a process, from `/proc/PID/status`.
struct Identity {
    uid: u32,
    /// Real, effective and supplementary.
    gids: Vec<u32>,
}

fn identity(pid: u32) -> Option<Identity> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = |key: &str| -> Vec<u32> {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.split_whitespace().filter_map(|number| number.parse().ok()).collect()
    };
    let uid = *numbers("Uid:").first()?;
    let gids = numbers("Gid:").into_iter().take(2).chain(numbers("Groups:")).collect();
    Some(Identity { uid, gids })
}

/// The cgroup of a process as names below the hierarchy's root.
fn cgroup_of(pid: u32) -> Option<Vec<String>> {
    let path = cgroup::of_process(pid)?;
    let below = path.strip_prefix(cgroup::root()?).ok()?;
    Some(below.iter().map(|part| part.to_string_lossy().into_owned()).collect())
}

/// The settings that the check depends on, as the BPF programs have them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AudienceCheck {
    /// How deep the enforced cgroup is below the hierarchy's root.
    enforced_depth: usize,
    admin_gid: u32,
}

impl AudienceCheck {
    pub(super) fn new(config: &Config) -> Self {
        Self { enforced_depth: config.enforce_level as usize, admin_gid: config.admin_gid }
    }

    fn includes(&self, pid: u32, audience: &Audience<u32>) -> bool {
        let Some(identity) = identity(pid) else { return false };
        match audience {
            Audience::Several(several) => several.iter().any(|one| self.includes(pid, one)),
            Audience::Administrators => {
                identity.uid == 0 || self.admin_gid != 0 && identity.gids.contains(&self.admin_gid)
            }
            Audience::User(uid) => identity.uid == *uid,
            Audience::Group(gid) => identity.gids.contains(gid),
            Audience::Unit(unit) => {
                cgroup_of(pid).is_some_and(|cgroup| unit_in(&cgroup, self.enforced_depth) == Some(unit.as_str()))
            }
            Audience::Cgroup(path) => {
                let mut parts = path.split('/').filter(|part| !part.is_empty());
                cgroup_of(pid).is_some_and(|cgroup| {
                    let mut names = cgroup.iter();
                    parts.all(|part| names.next().is_some_and(|name| name == part))
                })
            }
        }
    }

    /// Whether every process that has the port bound, in the calling thread's network namespace, is in the audience. A
    /// process that cannot be seen is not in it.
    pub(super) fn all_of(&self, transport: Transport, port: u16, audience: &Audience<u32>) -> bool {
        let Ok(block) = PortRange::single(port) else { return false };
        let usage = Usage::of(&[(block, transport.into())]).unwrap_or_default();
        let bound_by = usage.port(transport, port).bound_by;
        let included = |process: &Process| self.includes(process.pid, audience);
        !bound_by.is_empty() && bound_by.iter().all(|socket| socket.process.as_ref().is_some_and(included))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_itself() {
        let own = std::process::id();
        let who = identity(own).unwrap();
        let check = AudienceCheck { enforced_depth: 0, admin_gid: who.gids[0] };
        assert!(check.includes(own, &Audience::User(who.uid)) && !check.includes(own, &Audience::User(who.uid + 1)));
        assert!(check.includes(own, &Audience::Group(who.gids[0])));
        if let Some(cgroup) = cgroup_of(own).filter(|cgroup| !cgroup.is_empty()) {
            assert!(check.includes(own, &Audience::Cgroup(format!("/{}", cgroup.join("/")))));
        }
    }
}
