//! The scope of a reservation.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::wire;

/// The scope of a reservation: the processes that may associate with it, or bind its ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The process that acquired it, with all its threads: the Windows rule.
    #[default]
    Process,
    /// Every process with the real uid of the one that acquired it.
    User,
    /// Every process in a cgroup (v2) or below it. The id is the cgroup's inode
    /// number in the cgroup file system; 0 means the caller's own cgroup, and
    /// in a persistent reservation for one that is known by its path.
    Cgroup(u64),
    /// Every process of a group, by gid. Persistent reservations only, as the two below.
    Group(u32),
    /// Every process of a systemd unit.
    Unit,
    /// Root, and the group of administrators.
    Administrators,
}

impl Scope {
    /// From the fields of a reservation in the kernel's layout: a `SCOPE_` constant, the cgroup's id, the gid.
    pub fn from_wire(scope: u8, cgroup: u64, gid: u32) -> Self {
        match scope.into() {
            wire::SCOPE_USER => Self::User,
            wire::SCOPE_CGROUP => Self::Cgroup(cgroup),
            wire::SCOPE_GROUP => Self::Group(gid),
            wire::SCOPE_UNIT => Self::Unit,
            wire::SCOPE_ADMIN => Self::Administrators,
            _ => Self::Process,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "process",
            Self::User => "user",
            Self::Cgroup(_) => "cgroup",
            Self::Group(_) => "group",
            Self::Unit => "unit",
            Self::Administrators => "administrators",
        })
    }
}
