//! Checks whether the maps are right: every entry must follow from other entries. This works only while nobody changes
//! them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use portkeep_core::{Transport, wire};
use portkeep_kernel::{Maps, NOBODY, Reservation, SPACE_WORDS, Word, WordKey, has_share};

fn live(maps: &Maps) -> Vec<(u32, Reservation)> {
    let all = maps.reservations().map(|item| item.expect("a reservation"));
    all.filter(|(_, reservation)| reservation.state() != wire::REFUSED).collect()
}

/// A bit of the filter: at some time a socket was counted in this word.
const COUNTED: u32 = 1 << 31;

/// Bits `first..=last` of a word.
fn bits(first: u32, last: u32) -> u64 {
    (u64::MAX << first) & (u64::MAX >> (63 - last))
}

/// The value of a word that follows from the reservations.
#[derive(Default)]
struct Expected {
    reserved: u64,
    heads: u64,
    owner: BTreeMap<u32, u32>,
    lead: u32,
}

/// All that is wrong, one line each; empty if everything is right.
pub fn problems(maps: &Maps) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut expected: HashMap<(u64, u16, u16), Expected> = HashMap::new();
    let mut quotas: BTreeMap<u64, u64> = BTreeMap::new();
    let mut pending: BTreeMap<u64, u32> = BTreeMap::new();
    let mut spaces: BTreeMap<u64, u32> = BTreeMap::new();
    let (mut ports, mut count) = (0u64, 0u32);
    let mut tokens = BTreeSet::new();
    let mut ranges: BTreeMap<(u32, u16), u32> = BTreeMap::new();

    for (id, r) in live(maps) {
        let (Some(block), Some(transports), Some(token)) = (r.ports(), r.transports(), r.token()) else {
            wrong.push(format!("impossible reservation {id}: {r:?}"));
            continue;
        };
        if !tokens.insert(token) || maps.id_of(token).ok() != Some(id) {
            wrong.push(format!("token of {id} is of another, or twice: {r:?}"));
        }
        for transport in transports.iter() {
            if u32::from(r.flags) & wire::EPHEMERAL != 0 {
                ranges.insert((id, transport.bit().into()), range_kind(&r));
            }
            ports += u64::from(block.count());
            if !r.is_persistent() {
                *quotas.entry(r.payer).or_default() += u64::from(block.count());
            } else if r.payer != NOBODY {
                wrong.push(format!("account {} pays for a persistent one: {r:?}", r.payer));
            }
            for word in block.start() / 64..=block.last() / 64 {
                let base = u32::from(word) * 64;
                let first = u32::from(block.start()).saturating_sub(base);
                let last = (u32::from(block.last()) - base).min(63);
                let entry = expected.entry((r.netns, word, transport.bit().into())).or_default();
                if entry.reserved & bits(first, last) != 0 {
                    wrong.push(format!("{block} of {id} overlaps another reservation"));
                }
                entry.reserved |= bits(first, last);
                if u32::from(block.start()) >= base {
                    entry.heads |= 1 << first;
                    entry.owner.insert(first, id);
                } else {
                    entry.lead = id;
                }
            }
        }
        if !r.is_persistent() && r.payer != 0 && r.state() == wire::PENDING {
            *pending.entry(r.payer).or_default() += 1;
        }
        count += 1;
        *spaces.entry(r.netns).or_default() += 1;
    }

    // A refused request costs one port until its owner has asked about it.
    for (_, refused) in maps.reservations().flatten().filter(|(_, r)| r.state() == wire::REFUSED) {
        *quotas.entry(refused.payer).or_default() += 1;
    }

    let words: HashMap<_, _> = maps.words().map(|item| item.expect("a word")).map(|(k, w)| (key(&k), w)).collect();
    for (at, word) in &words {
        let nothing = Expected::default();
        let want = expected.get(at).unwrap_or(&nothing);
        let mut complain = |what: &str| wrong.push(format!("word {at:?}: {what}: {word:x?}"));
        let bound = (0..64).filter(|bit| word.uses(*bit) != 0).fold(0u64, |set, bit| set | 1 << bit);
        if word.reserved != want.reserved | word.lingering {
            complain("reserved ports that nothing explains, or the reverse");
        }
        if want.reserved & word.lingering != 0 {
            complain("a port is two things at once");
        }
        if word.lingering & !bound != 0 {
            complain("lingers without a bound socket");
        }
        if word.heads != want.heads || want.owner.iter().any(|(bit, id)| word.owner[*bit as usize] != *id) {
            complain("heads or owners are wrong");
        }
        if word.lead != want.lead {
            complain("the wrong block reaches in");
        }
        if word.bound != (0..64).map(|bit| u32::from(word.uses(bit))).sum::<u32>() {
            complain("the sum of bound sockets is wrong");
        }
    }
    let filter = maps.filter().expect("the filter");
    for (index, count) in filter.words.into_iter().enumerate() {
        let (transport, number) = (1 + (index / 1024) as u16, (index % 1024) as u16);
        let taken = words.iter().filter(|((_, w, t), word)| (*w, *t) == (number, transport) && word.reserved != 0);
        let taken = taken.count() as u32;
        if count & !COUNTED != taken {
            wrong.push(format!(
                "the filter counts {count} for word {number} of transport {transport}, there are {taken}"
            ));
        }
    }
    for at in expected.keys().filter(|at| !words.contains_key(at)) {
        wrong.push(format!("there is no word {at:?}"));
    }

    let known = maps.reservations().count();
    let taken = maps.entries_taken().expect("the entries");
    if taken as usize != known {
        wrong.push(format!("{taken} entries are taken and {known} are reservations"));
    }
    let counters = maps.counters().expect("the counters");
    if (counters.ports, counters.reservations) != (ports, count) {
        wrong.push(format!("counters say {counters:?}, there are {count} reservations of {ports} ports"));
    }
    let mut by_kind = [0u32; 8];
    for (key, id) in maps.ranges().map(|item| item.expect("a range")) {
        if ranges.remove(&(id, key.transport)) != Some(key.kind) {
            wrong.push(format!("a range that belongs to no reservation: {key:?} of {id}"));
        }
        by_kind[key.kind as usize & 7] += 1;
        by_kind[7] += 1;
    }
    wrong.extend(ranges.keys().map(|(id, transport)| format!("{id} is not found as a range of transport {transport}")));
    if counters.ranges != by_kind {
        wrong.push(format!("the counters say {:?} ranges, there are {by_kind:?}", counters.ranges));
    }
    let mut admitted: BTreeSet<(u64, u32, u32)> = BTreeSet::new();
    for (_, r) in live(maps) {
        admitted.extend(r.admitted().map(|key| (key.token, key.also, key.n)));
    }
    for key in maps.admitted().map(|item| item.expect("a key")) {
        if !admitted.remove(&(key.token, key.also, key.n)) {
            wrong.push(format!("{key:?} is admitted by no reservation"));
        }
    }
    wrong.extend(admitted.iter().map(|key| format!("{key:?} is counted and not admitted")));
    let mut room = room_taken(maps);
    for (uid, quota) in maps.quotas().map(|item| item.expect("a quota")) {
        let used = quotas.remove(&uid).unwrap_or(0);
        if u64::from(quota.used) != used {
            wrong.push(format!("account {uid} is charged {} ports and holds {used}", quota.used));
        }
        let waiting = pending.remove(&uid).unwrap_or(0);
        if quota.pending != waiting {
            wrong.push(format!("account {uid} has {} requests pending, there are {waiting}", quota.pending));
        }
        let taken = room.remove(&uid).unwrap_or(0);
        if quota.words != taken {
            wrong.push(format!("account {uid} is charged {} words and takes {taken}", quota.words));
        }
    }
    wrong.extend(quotas.iter().map(|(uid, used)| format!("account {uid} is not charged for {used} ports")));
    wrong.extend(room.iter().map(|(uid, words)| format!("account {uid} is not charged for {words} words")));
    for (netns, _) in maps.spaces().map(|item| item.expect("a space")) {
        spaces.remove(&netns);
    }
    wrong.extend(spaces.keys().map(|netns| format!("namespace {netns} has reservations and no entry")));
    wrong
}

/// How the BPF programs find a private ephemeral range.
fn range_kind(r: &Reservation) -> u32 {
    const PATH: u32 = 5;
    if r.is_persistent() && u16::from(r.scope) == wire::SCOPE_CGROUP { PATH } else { r.scope.into() }
}

/// The share of each account in the port table.
fn room_taken(maps: &Maps) -> BTreeMap<u64, u32> {
    let mut taken: BTreeMap<u64, u32> = BTreeMap::new();
    for (_, word) in maps.words().map(|item| item.expect("a word")) {
        *taken.entry(word.payer).or_default() += 1;
    }
    for (_, space) in maps.spaces().map(|item| item.expect("a space")) {
        *taken.entry(space.payer).or_default() += SPACE_WORDS;
    }
    taken.retain(|account, _| has_share(*account));
    taken
}

fn key(key: &WordKey) -> (u64, u16, u16) {
    (key.netns, key.word, key.transport)
}

/// # Panics
///
/// If anything is wrong; the message contains all of it.
#[track_caller]
pub fn assert_consistent(maps: &Maps) {
    let wrong = problems(maps);
    assert!(wrong.is_empty(), "the maps are inconsistent:\n{}", wrong.join("\n"));
}

/// The remains in a namespace: reservations (also a refused one whose owner has not asked), claimed ports, bound
/// sockets, draws in progress.
///
/// # Panics
///
/// If the maps cannot be read.
pub fn leftovers(maps: &Maps, netns: u64) -> Vec<String> {
    let reservations = maps.reservations().map(|item| item.expect("a reservation")).filter(|(_, r)| r.netns == netns);
    let words = maps.words().map(|item| item.expect("a word")).filter(|(key, _)| key.netns == netns);
    let words = words.filter(|(_, word)| !word.is_vacant() || word.drawn != 0);
    reservations
        .map(|(id, reservation)| format!("{id}: {reservation:?}"))
        .chain(words.map(|(key, word)| format!("{key:?}: {word:x?}")))
        .collect()
}

/// # Panics
///
/// If there are [`leftovers`].
#[track_caller]
pub fn assert_empty(maps: &Maps, netns: u64) {
    let left = leftovers(maps, netns);
    assert!(left.is_empty(), "left over:\n{}", left.join("\n"));
}

/// Wait for the end of processes that are not children of this one, until nothing of theirs is left in the namespace.
/// After a time limit [`assert_empty`] reports what is left.
pub fn wait_until_empty(maps: &Maps, netns: u64) {
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !leftovers(maps, netns).is_empty() && std::time::Instant::now() < patience {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// The whole state of a namespace, for comparisons: its reservations and its words.
///
/// # Panics
///
/// If the maps cannot be read.
pub fn snapshot(maps: &Maps, netns: u64) -> (BTreeMap<u32, Reservation>, BTreeMap<(u16, u16), Word>) {
    let reservations = maps.reservations().map(|item| item.expect("a reservation")).filter(|(_, r)| r.netns == netns);
    let words = maps.words().map(|item| item.expect("a word")).filter(|(key, _)| key.netns == netns);
    let words = words.filter(|(_, word)| !word.is_vacant());
    (
        reservations.map(|(id, r)| (id, Reservation { next: 0, ..r })).collect(),
        words.map(|(key, word)| ((key.word, key.transport), Word { drawn: 0, owner: [0; 64], ..word })).collect(),
    )
}

/// Sockets bound to a port.
///
/// # Panics
///
/// If the maps cannot be read.
pub fn uses(maps: &Maps, netns: u64, transport: Transport, port: u16) -> u16 {
    let word = maps.word(&WordKey::of(netns, transport, port)).expect("the port table");
    word.map_or(0, |word| word.uses(usize::from(port % 64)))
}
