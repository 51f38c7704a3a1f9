//! The object with the BPF programs, and its content.

use crate::sys::AttachPoint;

/// The object with the BPF programs. The ELF parser requires 8-byte alignment.
pub(crate) static OBJECT: &[u8] = {
    #[repr(C, align(8))]
    struct Aligned<Bytes: ?Sized>(Bytes);
    static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!("../bpf/portkeep.bpf.o"));
    &ALIGNED.0
};

/// The embedded object's fingerprint (FNV-1a). If the BPF programs of two builds of Portkeep differ, so do their
/// fingerprints; `upgrade` replaces one build with the other.
pub const BUILD: u64 = {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut i = 0;
    while i < OBJECT.len() {
        hash = (hash ^ OBJECT[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    hash
};

/// The programs that enforce the reservations, in the order in which they are attached. The program for closing sockets
/// is attached first, so that every port that is acquired is also given back.
pub(crate) const ENFORCING: [(&str, AttachPoint); 8] = [
    ("portkeep_close", AttachPoint::SockRelease),
    ("portkeep_tcp", AttachPoint::SockOps),
    ("portkeep_bound4", AttachPoint::PostBind4),
    ("portkeep_bound6", AttachPoint::PostBind6),
    ("portkeep_bind4", AttachPoint::Bind4),
    ("portkeep_bind6", AttachPoint::Bind6),
    ("portkeep_conn4", AttachPoint::Connect4),
    ("portkeep_conn6", AttachPoint::Connect6),
];
/// The programs that serve the control codes.
pub(crate) const SERVING: [(&str, AttachPoint); 2] =
    [("portkeep_get", AttachPoint::GetSockopt), ("portkeep_set", AttachPoint::SetSockopt)];
/// The administrator program.
pub(crate) const ADMIN: &str = "portkeep_admin";
