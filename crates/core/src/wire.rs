//! The control codes and their structures, as `setsockopt(2)` and
//! `getsockopt(2)` carry them at the level [`SOL_PORTKEEP`].
//!
//! The layouts are those of `crates/kernel/bpf/portkeep.h`, which has worked examples; a test of `portkeep-kernel`
//! compares the two. Every port is in host byte order.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The private level of `setsockopt` and `getsockopt`: "PK".
pub const SOL_PORTKEEP: i32 = 0x504b;
/// The version of these structures and of the maps.
pub const ABI: u32 = 5;

/// `setsockopt`: acquire a reservation, [`AcquireRequest`].
pub const ACQUIRE: i32 = 100;
/// `setsockopt`: release one, the token as a `u64`.
pub const RELEASE: i32 = 101;
/// `setsockopt`: associate this socket with one, the token as a `u64`.
pub const ASSOCIATE: i32 = 102;
/// `setsockopt`: choose what [`STATE`] shall report, [`SelectRequest`].
pub const SELECT: i32 = 103;
/// `setsockopt`: mark a socket of the agent, [`AgentMark`].
pub const AGENT: i32 = 104;
/// `getsockopt`: which Portkeep this is, [`Version`].
pub const VERSION: i32 = 200;
/// `getsockopt`: what this socket's last [`ACQUIRE`] gave, [`Grant`].
pub const GRANTED: i32 = 201;
/// `getsockopt`: the reservation chosen with [`SELECT`], [`State`].
pub const STATE: i32 = 202;

/// Flag of a request: the same numbers for TCP and UDP, one token.
pub const BOTH: u32 = 1;
/// Flag of a request: consumed by association only (rule A7).
pub const STRICT: u32 = 2;
/// Flag of a request: a private ephemeral range, for binds to port 0 of its scope (rule E1).
pub const EPHEMERAL: u32 = 4;
/// Flag of a reservation, never of a request: an administrator made it, no socket owns it.
pub const PERSISTENT: u32 = 0x80;

/// [`AcquireRequest::scope`]: the owner process.
pub const SCOPE_PROCESS: u16 = 0;
/// [`AcquireRequest::scope`]: the owner's real uid. [`Also::kind`]: a uid.
pub const SCOPE_USER: u16 = 1;
/// [`AcquireRequest::scope`]: a cgroup and all below it.
pub const SCOPE_CGROUP: u16 = 2;
/// Scope of a persistent reservation, and [`Also::kind`]: a group.
pub const SCOPE_GROUP: u16 = 3;
/// Scope of a persistent reservation, and [`Also::kind`]: a systemd unit.
pub const SCOPE_UNIT: u16 = 4;
/// Scope of a persistent reservation: root and the administrators' group.
pub const SCOPE_ADMIN: u16 = 5;

/// State of a reservation: claimed, and the agent is checking its ports.
pub const PENDING: u8 = 1;
/// State of a reservation: in force.
pub const ACTIVE: u8 = 2;
/// State of a reservation: refused by the agent.
pub const REFUSED: u8 = 3;

/// The largest number of reservations that one socket can own.
pub const OWNED: usize = 128;

/// The largest number of others that a reservation admits in addition to its scope.
pub const ALSO_MAX: usize = 4;

/// The request of [`ACQUIRE`]. It may be cut to its first 8, 16 or 24
/// bytes; missing bytes count as 0. As many [`Also`] follow it as `also` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AcquireRequest {
    /// First port, 0 for "the system chooses".
    pub start: u16,
    /// Number of ports, not 0.
    pub count: u16,
    /// [`BOTH`], and [`STRICT`] or [`EPHEMERAL`].
    pub flags: u32,
    /// One of the `SCOPE_` constants.
    pub scope: u16,
    /// `start` shall be a multiple of this power of two; 0 and 1 are "any".
    pub align: u16,
    /// How many [`Also`] follow, at most [`ALSO_MAX`].
    pub also: u16,
    /// Must be 0.
    pub zero: u16,
    /// With [`SCOPE_CGROUP`]: id of the caller's cgroup or one above it, 0 for the caller's.
    pub cgroup: u64,
    /// Shown in listings; padded with zeros.
    pub label: [u8; 24],
}

/// Others who may use the ports of a reservation in addition to its scope (rule R11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Also {
    /// [`SCOPE_USER`], [`SCOPE_GROUP`] or [`SCOPE_UNIT`].
    pub kind: u32,
    /// The uid or gid, as the first user namespace numbers it.
    pub id: u32,
    /// The unit's name, padded with zeros.
    pub name: [u8; 128],
}

/// The answer of [`GRANTED`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Grant {
    /// The token.
    pub token: u64,
    /// First port.
    pub start: u16,
    /// Number of ports.
    pub count: u16,
    /// Bits of [`crate::Transports`].
    pub transports: u8,
    /// [`PENDING`], [`ACTIVE`] or [`REFUSED`].
    pub state: u8,
    /// Why it was refused, an error number.
    pub error: u16,
}

/// [`SelectRequest::by`]: the reservation with this token.
pub const BY_TOKEN: u16 = 1;
/// [`SelectRequest::by`]: the one a port belongs to.
pub const BY_PORT: u16 = 2;
/// [`SelectRequest::by`]: the first one that starts at or after a port.
pub const BY_NEXT: u16 = 3;
/// [`SelectRequest::by`]: the n-th one this socket owns.
pub const BY_INDEX: u16 = 4;
/// [`SelectRequest::by`]: the one this socket is associated with.
pub const BY_ASSOCIATED: u16 = 5;

/// The reservation that [`STATE`] shall report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SelectRequest {
    /// One of the `BY_` constants.
    pub by: u16,
    /// A port, or with [`BY_INDEX`] the index.
    pub port: u16,
    /// With [`BY_PORT`] and [`BY_NEXT`]: bit of [`crate::Transport`].
    pub transport: u8,
    /// Must be 0.
    pub zero: [u8; 3],
    /// With [`BY_TOKEN`].
    pub token: u64,
}

/// The answer of [`STATE`]. The [`Also`] that the buffer has room for follow it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct State {
    /// The token, 0 unless the caller may consume the reservation.
    pub token: u64,
    /// Network namespace cookie (`SO_NETNS_COOKIE`).
    pub netns: u64,
    /// Id of the scope's cgroup, or of the owner's.
    pub cgroup: u64,
    /// When it was acquired, nanoseconds of `CLOCK_MONOTONIC`.
    pub since: u64,
    /// The owner process, as the first pid namespace numbers it.
    pub pid: u32,
    /// Its real uid when it acquired. For a persistent reservation with [`SCOPE_USER`]: the user of its audience.
    pub uid: u32,
    /// First port.
    pub start: u16,
    /// Number of ports.
    pub count: u16,
    /// Bits of [`crate::Transports`].
    pub transports: u8,
    /// [`PENDING`], [`ACTIVE`] or [`REFUSED`].
    pub state: u8,
    /// One of the `SCOPE_` constants.
    pub scope: u8,
    /// [`BOTH`], [`STRICT`], [`EPHEMERAL`] and [`PERSISTENT`].
    pub flags: u8,
    /// Ports with at least one bound socket; TCP and UDP count apart.
    pub bound: u32,
    /// Why it was refused.
    pub error: u16,
    /// How many others are admitted.
    pub also: u16,
    /// Command name of the owner process, padded with zeros.
    pub comm: [u8; 16],
    /// The label, padded with zeros.
    pub label: [u8; 24],
    /// The group that may consume it, with [`SCOPE_GROUP`].
    pub gid: u32,
    /// Always 0.
    pub zero2: u32,
}

/// The answer of [`VERSION`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Version {
    /// [`ABI`] of the loaded BPF programs.
    pub abi: u32,
    /// 1 while an agent runs.
    pub agent: u32,
    /// First port of the pool.
    pub pool_first: u16,
    /// Last port of the pool, 0 if there is none.
    pub pool_last: u16,
    /// Reservations on the whole machine.
    pub reservations: u32,
    /// Ports in them.
    pub ports: u64,
    /// When kernel enforcement was brought up, nanoseconds of `CLOCK_MONOTONIC`.
    pub since: u64,
}

/// [`AgentMark::role`]: while this socket is open the agent counts as running.
pub const AGENT_BEACON: u32 = 1;
/// [`AgentMark::role`]: this socket may try reserved ports.
pub const AGENT_PROBE: u32 = 2;
/// [`AgentMark::role`]: while this socket is open events are written to the ring.
pub const AGENT_READER: u32 = 3;

/// The argument of [`AGENT`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AgentMark {
    /// The secret in the pinned `config` map.
    pub secret: [u64; 2],
    /// One of the `AGENT_` constants.
    pub role: u32,
    /// Must be 0.
    pub zero: u32,
}

/// The text in a zero-padded field, [printable].
pub fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    printable(&field[..end])
}

/// Bytes that any user may have written, made safe for terminals and logs, because these obey control characters.
pub fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A label field: padded with zeros, and cut between two characters if it is too long.
pub fn label(text: &str) -> [u8; 24] {
    let mut field = [0; 24];
    let end = (0..=field.len().min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    field[..end].copy_from_slice(&text.as_bytes()[..end]);
    field
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn labels_and_names_cannot_speak_to_a_terminal() {
        assert_eq!(text(b"web\0rest"), "web");
        assert_eq!(text(b"\x1b[2Jgone\r\nroot"), "?[2Jgone??root");
        assert_eq!(text("caf\u{e9} \u{9b}31m".as_bytes()), "caf\u{e9} ?31m");
        assert_eq!(text(b"\xff\xfe"), "\u{fffd}\u{fffd}");
    }
}
