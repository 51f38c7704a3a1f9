//! Who may consume a reservation.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Who may consume a reservation: associate with it, or bind its ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Scope {
    /// The process that acquired it, with all its threads: the Windows rule.
    #[default]
    Process,
    /// Every process with the real uid of the one that acquired it.
    User,
    /// Every process in a cgroup (v2) or below it. The id is the cgroup's inode
    /// number in the cgroup file system; 0 stands for the caller's own cgroup.
    Cgroup(u64),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "process",
            Self::User => "user",
            Self::Cgroup(_) => "cgroup",
        })
    }
}
