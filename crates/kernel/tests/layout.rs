//! Compares the Rust mirrors with the BTF of the object: same fields, same names, same places, same sizes. Requires no
//! kernel and no root.
//!
//! The BTF is read by hand: a header, records, strings. aya's reader does not give access to the members of structures,
//! and the crates that do are larger than this code.
//! Format: <https://docs.kernel.org/bpf/btf.html>.

use std::{collections::HashMap, mem::offset_of};

use portkeep_core::wire;
use portkeep_kernel::{
    AdmittedKey, Config, Counters, Entries, Expiring, Offender, Place, PlaceKey, Quota, RangeKey, Reservation, Space,
    Word, WordKey,
};

static OBJECT: &[u8] = include_bytes!("../bpf/portkeep.bpf.o");

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

fn text_at(bytes: &[u8], at: usize) -> &str {
    let end = bytes[at..].iter().position(|byte| *byte == 0).unwrap();
    std::str::from_utf8(&bytes[at..at + end]).unwrap()
}

/// A section of the 64-bit little-endian ELF file that clang makes.
fn section(name: &str) -> &'static [u8] {
    assert_eq!(&OBJECT[..6], b"\x7fELF\x02\x01");
    let table = u64_at(OBJECT, 0x28);
    let (size, count, names) = (u16_at(OBJECT, 0x3a), u16_at(OBJECT, 0x3c), u16_at(OBJECT, 0x3e));
    let header = |index: u16| &OBJECT[table + usize::from(index) * usize::from(size)..][..usize::from(size)];
    let content = |header: &[u8]| &OBJECT[u64_at(header, 0x18)..][..u64_at(header, 0x20)];
    let names = content(header(names));
    (0..count)
        .map(header)
        .find(|header| text_at(names, u32_at(header, 0) as usize) == name)
        .map(content)
        .unwrap_or_else(|| panic!("the object has no section {name}"))
}

#[derive(Debug, Clone, Copy)]
enum Type {
    Sized(u32),
    Array { of: u32, count: u32 },
    Alias(u32),
    Pointer,
    Other,
}

/// Name, offset and type.
type Member = (&'static str, u32, u32);

struct Btf {
    types: Vec<Type>,
    /// By name, with their sizes.
    structs: HashMap<&'static str, (u32, Vec<Member>)>,
}

impl Btf {
    fn read() -> Self {
        let btf = section(".BTF");
        assert_eq!((u16_at(btf, 0), btf[2]), (0xeb9f, 1), "magic and version");
        let header = u32_at(btf, 4) as usize;
        let records = &btf[header + u32_at(btf, 8) as usize..][..u32_at(btf, 12) as usize];
        let strings = &btf[header + u32_at(btf, 16) as usize..][..u32_at(btf, 20) as usize];
        let (mut types, mut structs) = (vec![Type::Sized(0)], HashMap::new());
        let mut at = 0;
        while at < records.len() {
            let (name, info, size) = (u32_at(records, at), u32_at(records, at + 4), u32_at(records, at + 8));
            let count = (info & 0xffff) as usize;
            let body = at + 12;
            let (kind, length) = match info >> 24 & 0x1f {
                1 => (Type::Sized(size), 4),
                2 => (Type::Pointer, 0),
                3 => (Type::Array { of: u32_at(records, body), count: u32_at(records, body + 8) }, 12),
                4 | 5 => {
                    let member = |i: usize| {
                        let at = body + 12 * i;
                        let offset = u32_at(records, at + 8);
                        assert_eq!(offset % 8, 0, "no bit fields here");
                        (text_at(strings, u32_at(records, at) as usize), offset / 8, u32_at(records, at + 4))
                    };
                    structs.insert(text_at(strings, name as usize), (size, (0..count).map(member).collect()));
                    (Type::Sized(size), 12 * count)
                }
                6 => (Type::Sized(size), 8 * count),
                8..=11 | 18 => (Type::Alias(size), 0),
                7 | 12 => (Type::Other, 0),
                13 => (Type::Other, 8 * count),
                14 | 17 => (Type::Other, 4),
                15 => (Type::Other, 12 * count),
                16 => (Type::Sized(size), 0),
                19 => (Type::Sized(size), 12 * count),
                kind => panic!("BTF kind {kind} is new here"),
            };
            types.push(kind);
            at = body + length;
        }
        Self { types, structs }
    }

    fn size(&self, id: u32) -> u32 {
        match self.types[id as usize] {
            Type::Sized(size) => size,
            Type::Array { of, count } => count * self.size(of),
            Type::Alias(of) => self.size(of),
            Type::Pointer => 8,
            Type::Other => panic!("type {id} has no size"),
        }
    }

    /// Name, offset and size of each field.
    fn fields(&self, name: &str) -> (u32, Vec<(&'static str, usize, usize)>) {
        let (size, members) = self.structs.get(name).unwrap_or_else(|| panic!("BTF has no struct {name}"));
        let field = |(name, offset, of): &(&'static str, u32, u32)| (*name, *offset as usize, self.size(*of) as usize);
        (*size, members.iter().map(field).collect())
    }
}

fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! same {
    ($btf:expr, $name:literal, $type:ty, [$($field:ident),* $(,)?]) => {
        let (size, fields) = $btf.fields($name);
        let mirror = [$((
            stringify!($field),
            offset_of!($type, $field),
            size_of_field(|value: &$type| &value.$field),
        )),*];
        assert_eq!(fields, mirror, "struct {} and {}", $name, stringify!($type));
        assert_eq!(size as usize, size_of::<$type>(), "size of struct {}", $name);
    };
}

#[test]
fn the_wire_structures_are_those_of_the_object() {
    let btf = Btf::read();
    same!(
        btf,
        "portkeep_acquire",
        wire::AcquireRequest,
        [start, count, flags, scope, align, also, zero, cgroup, label]
    );
    same!(btf, "portkeep_also", wire::Also, [kind, id, name]);
    same!(btf, "portkeep_grant", wire::Grant, [token, start, count, transports, state, error]);
    same!(btf, "portkeep_select", wire::SelectRequest, [by, port, transport, zero, token]);
    same!(
        btf,
        "portkeep_state",
        wire::State,
        [
            token, netns, cgroup, since, pid, uid, start, count, transports, state, scope, flags, bound, error, also,
            comm, label, gid, zero2
        ]
    );
    same!(btf, "portkeep_version", wire::Version, [abi, agent, pool_first, pool_last, reservations, ports, since]);
    same!(btf, "portkeep_agent", wire::AgentMark, [secret, role, zero]);
}

#[test]
fn the_requests_sizes_are_its_versions() {
    // The places where a request may end; the fields after them were added later.
    assert_eq!(offset_of!(wire::AcquireRequest, scope), 8);
    assert_eq!(offset_of!(wire::AcquireRequest, cgroup), 16);
    assert_eq!(offset_of!(wire::AcquireRequest, label), 24);
    assert_eq!(size_of::<wire::AcquireRequest>(), 48);
    // Owned reservations are found by slot.
    let (_, owner) = Btf::read().fields("owner_state");
    let token = owner.iter().find(|(name, ..)| *name == "token").unwrap();
    assert_eq!(token.2, wire::OWNED * 8);
}

#[test]
fn the_map_structures_are_those_of_the_object() {
    let btf = Btf::read();
    same!(
        btf,
        "config",
        Config,
        [
            abi,
            round_keys,
            secret,
            since,
            build,
            enforce,
            serve,
            deny_errno,
            quota,
            pool_first,
            pool_last,
            transient,
            admin_gid,
            group_quotas,
            enforce_level,
            share,
            home,
            quota_elsewhere,
            accounts_from,
            unprivileged_start,
            privileged_users,
            privileged_gids
        ]
    );
    same!(btf, "counters", Counters, [ports, reservations, agents, listeners, lost, refused, ranges]);
    same!(btf, "range_key", RangeKey, [netns, id, kind, transport, level]);
    same!(btf, "word_key", WordKey, [netns, word, transport, zero]);
    same!(
        btf,
        "word",
        Word,
        [reserved, heads, lingering, drawn, aside, left, closing, payer, lead, bound, sealed, zero, owner, uses]
    );
    same!(btf, "expiring", Expiring, [ports, period]);
    same!(btf, "entries", Entries, [hint, zero, taken]);
    same!(
        btf,
        "reservation",
        Reservation,
        [
            gate, token, generation, refusal, netns, cgroup, since, payer, pid, uid, start, count, transports, scope,
            flags, level, next, also, comm, label, gid, exhausted, slot, error, zero
        ]
    );
    same!(btf, "admitted_key", AdmittedKey, [token, also, n]);
    same!(btf, "offender", Offender, [second, told, untold]);
    same!(btf, "space", Space, [cursor, avoid_first, avoid_last, payer, last]);
    same!(btf, "quota", Quota, [used, limit, words, pending]);
    same!(btf, "place_key", PlaceKey, [id, level]);
    same!(btf, "place", Place, [name]);
}

/// The mirrors of these two are private, so their offsets are written here.
#[test]
fn events_and_the_administrators_requests_are_where_they_always_were() {
    let btf = Btf::read();
    let expected = [
        ("kind", 0, 4),
        ("id", 4, 4),
        ("when", 8, 8),
        ("netns", 16, 8),
        ("cgroup", 24, 8),
        ("pid", 32, 4),
        ("tid", 36, 4),
        ("uid", 40, 4),
        ("start", 44, 2),
        ("count", 46, 2),
        ("transports", 48, 1),
        ("zero", 49, 3),
        ("owner", 52, 4),
        ("comm", 56, 16),
        ("untold", 72, 4),
        ("zero2", 76, 4),
    ];
    assert_eq!(btf.fields("event"), (80, expected.to_vec()));
    let expected = [
        ("padding", 0, 16),
        ("op", 16, 4),
        ("id", 20, 4),
        ("token", 24, 8),
        ("netns", 32, 8),
        ("start", 40, 2),
        ("count", 42, 2),
        ("transports", 44, 1),
        ("scope", 45, 1),
        ("flags", 46, 1),
        ("level", 47, 1),
        ("error", 48, 4),
        ("uid", 52, 4),
        ("gid", 56, 4),
        ("align", 60, 2),
        ("zero", 62, 2),
        ("label", 64, 24),
        ("limit", 88, 4),
        ("also", 92, 4),
        ("account", 96, 8),
    ];
    assert_eq!(btf.fields("admin_request"), (104, expected.to_vec()));
}
