//! Adds facts about reservations that the BPF programs do not have: facts from the agent, and about processes and
//! users.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use portkeep::{Info, Process, Scope};
use portkeep_kernel::cgroup;

use crate::{accounts, process};

/// Sort reservations, and add the facts that are known here. `declared` is the agent's list, empty if no agent runs.
pub fn complete(found: &mut [Info], declared: &[Info]) {
    found.sort_by_key(|info| (info.netns, info.ports.start(), info.transports));
    let by_token: BTreeMap<_, _> = declared.iter().filter_map(|each| Some((each.token?, each))).collect();
    let first_pids = process::in_first_pid_namespace();
    // One process can own thousands of reservations.
    let mut processes: HashMap<u32, Option<Process>> = HashMap::new();
    for info in found {
        if let Some(declared) = info.token.and_then(|token| by_token.get(&token)).filter(|_| info.persistent) {
            // The BPF programs keep only the beginning of the name.
            info.name.clone_from(&declared.name);
            info.audience.clone_from(&declared.audience);
            info.origin.clone_from(&declared.origin);
            info.description.clone_from(&declared.description);
            (info.around, info.force) = (declared.around, declared.force);
        } else {
            info.audience = info.audience.as_ref().map(accounts::named);
        }
        let mut owner_ended = false;
        info.also = accounts::named_others(&info.also);
        if let Some(owner) = &mut info.owner {
            owner.user = owner.uid.and_then(accounts::known_user);
            // Its pid may be another number here, or belong to another process by now.
            if first_pids {
                let found = processes.entry(owner.pid).or_insert_with(|| process::of(owner.pid)).as_ref();
                match found.filter(|found| found.comm == owner.comm) {
                    Some(found) => {
                        (owner.command, owner.unit, owner.started) =
                            (found.command.clone(), found.unit.clone(), found.started);
                    }
                    None => owner_ended = true,
                }
            }
        }
        if let Some(Scope::Cgroup(id)) = info.scope
            && let Some(path) = cgroup::path_of(id)
        {
            info.members = owner_ended.then(|| members(&path)).filter(|members| !members.is_empty());
            info.cgroup = Some(path.display().to_string());
        }
    }
}

/// How many processes of a cgroup are shown.
const MEMBERS: usize = 8;

/// The first few processes of a cgroup and those below it, by its path below the hierarchy's root.
fn members(cgroup: &Path) -> Vec<Process> {
    let Some(root) = cgroup::root() else { return Vec::new() };
    let mut folders = vec![root.join(cgroup.strip_prefix("/").unwrap_or(cgroup))];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        let pids = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        // A process of another PID namespace is 0.
        let processes = pids.lines().filter_map(|pid| process::of(pid.parse().ok()?));
        found.extend(processes.take(MEMBERS - found.len()));
        if found.len() == MEMBERS {
            break;
        }
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
    for process in &mut found {
        process.user = process.uid.and_then(accounts::known_user);
    }
    found
}
