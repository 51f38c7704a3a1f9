//! Adds facts about reservations that the BPF programs do not have: facts from the agent, and about processes and
//! users.

use std::collections::{BTreeMap, HashMap};

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
        info.also = accounts::named_others(&info.also);
        if let Some(owner) = &mut info.owner {
            owner.user = owner.uid.and_then(accounts::known_user);
            // Its pid may be another number here, or belong to another process by now.
            if first_pids
                && let Some(found) = processes.entry(owner.pid).or_insert_with(|| process::of(owner.pid))
                && found.comm == owner.comm
            {
                (owner.command, owner.unit, owner.started) = (found.command.clone(), found.unit.clone(), found.started);
            }
        }
        if let Some(Scope::Cgroup(id)) = info.scope {
            info.cgroup = cgroup::path_of(id).map(|path| path.display().to_string());
        }
    }
}
