//! Conditions while all processes wait, and after they are gone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use anyhow::Result;
use portkeep_core::wire;
use portkeep_kernel::{Admin, Instance, Maps, Word, WordKey, root_elsewhere};
use portkeep_testkit::audit;

use super::{
    agent::{reserved_ports, reserved_set},
    ledger::Ledger,
    shared::{GRANTS, Shared},
};

/// The time that the kernel gets to close things on its own schedule (descriptors in a queue, for one). It measures
/// nothing: a real defect stays.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ask again until nothing is wrong, or until the time is up.
pub(super) fn settled(mut wrong: impl FnMut() -> Result<Vec<String>>) -> Result<Vec<String>> {
    let begin = Instant::now();
    loop {
        let found = wrong()?;
        if found.is_empty() || begin.elapsed() > PATIENCE {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The audit while all processes wait: the maps agree with each other, the ledger agrees with the maps, and the sysctl
/// covers them.
pub(super) fn audit(instance: &Instance, shared: Shared, netns: u64, theirs: &BTreeSet<u16>) -> Result<Vec<String>> {
    let maps = instance.maps()?;
    let mut wrong = audit::problems(&maps);
    wrong.extend(ledger_in_maps(&maps, shared)?);
    wrong.extend(quotas(&maps, shared)?);
    wrong.extend(sysctl(&maps, netns, theirs)?);
    Ok(wrong)
}

/// Everything that is certain is in force, as it was written down.
fn ledger_in_maps(maps: &Maps, shared: Shared) -> Result<Vec<String>> {
    let found: HashMap<u64, _> =
        maps.reservations().map(|item| item.map(|(_, r)| (r.token, r))).collect::<Result<_, _>>()?;
    let mut wrong = Vec::new();
    for section in 0..shared.sections.len() {
        let ledger = Ledger::new(shared, section, 0, 0);
        for number in 0..shared.crew.len() {
            for (_, grant) in (0..GRANTS).filter_map(|slot| ledger.of(number, slot)) {
                let right = found.get(&grant.token).is_some_and(|r| {
                    r.state() == wire::ACTIVE
                        && (r.start, r.count, r.transports) == (grant.start, grant.count, grant.transports)
                });
                if !right {
                    let kept = found.get(&grant.token);
                    wrong.push(format!("process {number} holds {}, and kept is {kept:?}", grant.describe()));
                }
            }
        }
    }
    Ok(wrong)
}

/// No user is over the quota, and no user holds more than is charged.
fn quotas(maps: &Maps, shared: Shared) -> Result<Vec<String>> {
    let mut held: BTreeMap<u64, u32> = BTreeMap::new();
    for section in 0..shared.sections.len() {
        let ledger = Ledger::new(shared, section, 0, 0);
        for number in 0..shared.crew.len() {
            for (_, grant) in (0..GRANTS).filter_map(|slot| ledger.of(number, slot)) {
                if u32::from(grant.flags) & wire::PERSISTENT == 0 {
                    *held.entry(grant.uid.into()).or_default() +=
                        u32::from(grant.count) * grant.transports.count_ones();
                }
            }
        }
    }
    let config = maps.config()?;
    let mut wrong = Vec::new();
    let mut charged: BTreeMap<u64, u32> = BTreeMap::new();
    for item in maps.quotas() {
        let (account, quota) = item?;
        // Root has an account in each namespace; the holders of ports are known by uid.
        let elsewhere = account >= root_elsewhere(0);
        *charged.entry(if elsewhere { 0 } else { account }).or_default() += quota.used;
        let limit = match account {
            0 => continue,
            _ if elsewhere => config.quota_elsewhere,
            _ => config.quota,
        };
        if quota.used > limit {
            wrong.push(format!("account {account} is charged {} ports of {limit}", quota.used));
        }
    }
    for (uid, used) in charged {
        let known = held.remove(&uid).unwrap_or(0);
        if used < known {
            wrong.push(format!("uid {uid} is charged {used} ports, and holds at least {known}"));
        }
    }
    wrong.extend(held.iter().map(|(uid, ports)| format!("uid {uid} holds {ports} ports and is charged for none")));
    Ok(wrong)
}

/// Reserved ports outside the pool are kept from automatic choices, and others' entries are there (R3).
fn sysctl(maps: &Maps, netns: u64, theirs: &BTreeSet<u16>) -> Result<Vec<String>> {
    let config = maps.config()?;
    let entered = reserved_set(&reserved_ports()?);
    let mut wrong = Vec::new();
    for item in maps.reservations() {
        let (id, r) = item?;
        let Some(ports) = r.ports().filter(|_| r.netns == netns && r.state() == wire::ACTIVE) else { continue };
        let pool = config.pool_first..=config.pool_last;
        let missing = ports.iter().find(|port| !pool.contains(port) && !entered.contains(port));
        if let Some(port) = missing {
            wrong.push(format!("{port} of reservation {id} ({ports}) is not in ip_local_reserved_ports"));
        }
    }
    let lost: Vec<_> = theirs.difference(&entered).collect();
    if !lost.is_empty() {
        wrong.push(format!("others' entries {lost:?} are gone from ip_local_reserved_ports"));
    }
    Ok(wrong)
}

/// Requests without an answer, while an agent is there to give one.
pub(super) fn unanswered(instance: &Instance) -> Result<Vec<String>> {
    let maps = instance.maps()?;
    let all: Vec<_> = maps.reservations().collect::<Result<_, _>>()?;
    let pending = all.iter().filter(|(_, r)| r.state() == wire::PENDING);
    Ok(pending.map(|(id, r)| format!("nobody answers {id}: {r:?}")).collect())
}

/// Ports of the pool that others use in namespaces of theirs: the agent looks into every namespace of the machine, and
/// has set them aside. In our namespace no process is left that could use one.
fn is_of_others(key: &WordKey, word: &Word, netns: u64) -> bool {
    key.netns != netns && word.aside != 0 && word.reserved == word.aside && word.bound == 0
}

/// In the filter: a socket has been counted in this word at some time.
const COUNTED: u32 = 1 << 31;

/// The remains in the BPF maps after every process is gone and every persistent reservation is deleted.
pub(super) fn left_in_maps(maps: &Maps, netns: u64) -> Result<Vec<String>> {
    let mut left = audit::problems(maps);
    for item in maps.reservations() {
        let (id, reservation) = item?;
        left.push(format!("reservation {id}: {reservation:?}"));
    }
    let mut of_others = 0;
    for item in maps.words() {
        let (key, word) = item?;
        if is_of_others(&key, &word, netns) {
            of_others += 1;
        } else if !word.is_vacant() || word.drawn != 0 {
            left.push(format!("{key:?}: {word:x?}"));
        }
    }
    for item in maps.quotas() {
        let (uid, quota) = item?;
        if quota.used != 0 {
            left.push(format!("uid {uid} is charged {} ports", quota.used));
        }
    }
    let taken = maps.entries_taken()?;
    if taken != 0 {
        left.push(format!("{taken} entries are taken"));
    }
    let filtered: u32 = maps.filter()?.words.iter().map(|count| count & !COUNTED).sum();
    if filtered != of_others {
        left.push(format!("the filter counts {filtered} words"));
    }
    left.extend(maps.places().map(|item| item.map(|(key, _)| format!("{key:?}"))).collect::<Result<Vec<_>, _>>()?);
    let counters = maps.counters()?;
    if (counters.ports, counters.reservations) != (0, 0) {
        left.push(format!("{counters:?}"));
    }
    Ok(left)
}

/// When no agent runs either: no process counts as the agent, and the empty tables of other namespaces can be forgotten
/// (those of the machine's own are never).
pub(super) fn left_without_agent(maps: &mut Maps, admin: &Admin, netns: u64) -> Result<Vec<String>> {
    let counters = maps.counters()?;
    let mut left = Vec::new();
    if (counters.agents, counters.listeners) != (0, 0) {
        left.push(format!("an agent is counted: {counters:?}"));
    }
    maps.forget_quiet_namespaces(admin, 0)?;
    let mut others = BTreeSet::new();
    for item in maps.words() {
        let (key, word) = item?;
        if is_of_others(&key, &word, netns) {
            others.insert(key.netns);
        } else if key.netns != netns {
            left.push(format!("{key:?} cannot be forgotten"));
        }
    }
    for item in maps.spaces() {
        let (space, _) = item?;
        if space != netns && !others.contains(&space) {
            left.push(format!("namespace {space} cannot be forgotten"));
        }
    }
    Ok(left)
}

/// Everything in one list is in the other.
pub(super) fn same(what: &str, before: &BTreeSet<String>, after: &BTreeSet<String>) -> Vec<String> {
    let new = after.difference(before).map(|item| format!("{what} left behind: {item}"));
    new.collect()
}
