//! The scope of a runtime reservation.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer, ser::SerializeStruct};

use crate::wire;

/// The scope of a runtime reservation: the processes that may associate with it, or bind its ports. A persistent one has
/// an [`Audience`](crate::persistent::Audience) instead.
///
/// As JSON: `{"kind":"process","value":null}`, and with `cgroup` its id as the value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(tag = "kind", content = "value", rename_all = "lowercase")]
pub enum Scope {
    /// The process that acquired it, with all its threads: the Windows rule.
    #[default]
    Process,
    /// Every process with the real uid of the one that acquired it.
    User,
    /// Every process in a cgroup (v2) or below it. The id is the cgroup's inode number in the cgroup file system; in a
    /// request 0 means the caller's own cgroup.
    Cgroup(u64),
}

impl Scope {
    /// From a reservation in the kernel's layout: a `SCOPE_` constant and the cgroup's id. `None`: it is no scope of a
    /// runtime reservation.
    pub fn from_wire(kind: u8, cgroup: u64) -> Option<Self> {
        match kind.into() {
            wire::SCOPE_PROCESS => Some(Self::Process),
            wire::SCOPE_USER => Some(Self::User),
            wire::SCOPE_CGROUP => Some(Self::Cgroup(cgroup)),
            _ => None,
        }
    }

    /// The `SCOPE_` constant and the cgroup's id.
    pub const fn to_wire(self) -> (u16, u64) {
        match self {
            Self::Process => (wire::SCOPE_PROCESS, 0),
            Self::User => (wire::SCOPE_USER, 0),
            Self::Cgroup(id) => (wire::SCOPE_CGROUP, id),
        }
    }

    const fn cgroup(self) -> Option<u64> {
        match self {
            Self::Process | Self::User => None,
            Self::Cgroup(id) => Some(id),
        }
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Scope", 2)?;
        object.serialize_field("kind", &self.to_string())?;
        object.serialize_field("value", &self.cgroup())?;
        object.end()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_read_as_it_is_written() {
        for (scope, json) in [
            (Scope::Process, r#"{"kind":"process","value":null}"#),
            (Scope::User, r#"{"kind":"user","value":null}"#),
            (Scope::Cgroup(7), r#"{"kind":"cgroup","value":7}"#),
        ] {
            assert_eq!(serde_json::to_string(&scope).unwrap(), json);
            assert_eq!(serde_json::from_str::<Scope>(json).unwrap(), scope);
            let (kind, cgroup) = scope.to_wire();
            assert_eq!(Scope::from_wire(kind as u8, cgroup), Some(scope));
        }
        assert_eq!(Scope::from_wire(wire::SCOPE_UNIT as u8, 0), None);
    }
}
