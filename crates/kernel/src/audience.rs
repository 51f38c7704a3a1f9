//! The audience of a persistent reservation, as the BPF programs compare it with a process.

use portkeep_core::{persistent::Audience, wire};

use crate::layout::PLACE_NAME;

/// How deep below the root the cgroup of a scope can be.
pub const PLACE_DEPTH: u32 = 32;

/// If an audience has several members, the first one is the scope in the kernel. The rest are others that it admits.
pub(crate) fn parts(audience: &Audience<u32>) -> (&Audience<u32>, &[Audience<u32>]) {
    audience.each().split_first().unwrap_or((&Audience::Administrators, &[]))
}

/// Scope, uid, gid and depth of the scope in the kernel's layout.
pub(crate) fn wire_of(audience: &Audience<u32>) -> (u8, u32, u32, u8) {
    match parts(audience).0 {
        Audience::Administrators => (wire::SCOPE_ADMIN as u8, 0, 0, 0),
        Audience::User(uid) => (wire::SCOPE_USER as u8, *uid, 0, 0),
        Audience::Group(gid) => (wire::SCOPE_GROUP as u8, 0, *gid, 0),
        Audience::Unit(_) => (wire::SCOPE_UNIT as u8, 0, 0, 0),
        Audience::Cgroup(_) => (wire::SCOPE_CGROUP as u8, 0, 0, names(audience).len().min(usize::from(u8::MAX)) as u8),
        Audience::Several(_) => unreachable!("one of several is one"),
    }
}

/// The names that the BPF programs compare with, by level.
pub(crate) fn names(audience: &Audience<u32>) -> Vec<(u32, &str)> {
    match parts(audience).0 {
        Audience::Unit(name) => vec![(0, name)],
        Audience::Cgroup(path) => (1..).zip(path.split('/').filter(|part| !part.is_empty())).collect(),
        Audience::Administrators | Audience::User(_) | Audience::Group(_) | Audience::Several(_) => Vec::new(),
    }
}

/// Whether the BPF programs can compare with its names.
pub(crate) fn has_valid_names(audience: &Audience<u32>) -> bool {
    let names = names(audience);
    let is_valid = |name: &str| !name.is_empty() && name.len() < PLACE_NAME;
    let is_root = matches!(audience, Audience::Cgroup(_)) && names.is_empty();
    !is_root && names.len() <= PLACE_DEPTH as usize && names.iter().all(|(_, name)| is_valid(name))
}

/// The hash of the names, as `range_hash` in the BPF programs computes it; 0 if there are no names.
pub(crate) fn names_hash(audience: &Audience<u32>) -> u64 {
    let mut hash = 0u64;
    for (_, name) in names(audience) {
        let mut padded = [0; PLACE_NAME];
        let length = name.len().min(PLACE_NAME);
        padded[..length].copy_from_slice(&name.as_bytes()[..length]);
        for characters in padded.chunks_exact(8) {
            let characters = u64::from_le_bytes(characters.try_into().expect("eight bytes"));
            hash = (hash ^ characters).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash ^= hash >> 32;
        }
    }
    hash
}
