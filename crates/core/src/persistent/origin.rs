//! Where a persistent reservation comes from.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::Time;

/// Where a declaration comes from.
///
/// As JSON: `{"path":"/etc/portkeep/ports.d/web.toml","line":3,"uid":null,"created":null,"until_reboot":false}`. For a
/// command, `path` and `line` are null, and the other members are set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "Object", try_from = "Object")]
pub enum Origin {
    /// A drop-in file.
    File {
        /// The file, as it was opened.
        path: PathBuf,
        /// The line its stanza begins on, from 1.
        line: usize,
    },
    /// A command.
    Command {
        /// The uid that gave the command.
        uid: u32,
        /// When.
        created: Time,
        /// Whether it is kept only until the next reboot. Otherwise it is kept until it is deleted.
        until_reboot: bool,
    },
}

/// An [`Origin`] as JSON has it: the same keys in both cases.
#[derive(Serialize, Deserialize)]
struct Object {
    /// A path can have bytes that are not text. JSON cannot.
    path: Option<String>,
    line: Option<usize>,
    uid: Option<u32>,
    created: Option<Time>,
    until_reboot: bool,
}

impl From<Origin> for Object {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::File { path, line } => Self {
                path: Some(path.to_string_lossy().into_owned()),
                line: Some(line),
                uid: None,
                created: None,
                until_reboot: false,
            },
            Origin::Command { uid, created, until_reboot } => {
                Self { path: None, line: None, uid: Some(uid), created: Some(created), until_reboot }
            }
        }
    }
}

impl TryFrom<Object> for Origin {
    type Error = &'static str;

    fn try_from(object: Object) -> Result<Self, Self::Error> {
        match object {
            Object { path: Some(path), line: Some(line), .. } => Ok(Self::File { path: path.into(), line }),
            Object { uid: Some(uid), created: Some(created), until_reboot, .. } => {
                Ok(Self::Command { uid, created, until_reboot })
            }
            _ => Err("an origin is a path and a line, or a uid and a time"),
        }
    }
}

impl fmt::Display for Origin {
    /// "/etc/portkeep/ports.d/web.toml:3", "`portkeep persist add`, by root".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Command { uid, until_reboot, .. } => {
                let until = if *until_reboot { ", until the next reboot" } else { "" };
                let by = if *uid == 0 { "root".to_owned() } else { format!("uid {uid}") };
                write!(f, "`portkeep persist add`, by {by}{until}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_read_as_it_is_written() {
        let file = Origin::File { path: "/a.toml".into(), line: 3 };
        let command = Origin::Command { uid: 7, created: Time::from_unix(0), until_reboot: true };
        for (origin, json) in [
            (file, r#"{"path":"/a.toml","line":3,"uid":null,"created":null,"until_reboot":false}"#),
            (command, r#"{"path":null,"line":null,"uid":7,"created":"1970-01-01T00:00:00Z","until_reboot":true}"#),
        ] {
            assert_eq!(serde_json::to_string(&origin).unwrap(), json);
            assert_eq!(serde_json::from_str::<Origin>(json).unwrap(), origin);
        }
        assert!(
            serde_json::from_str::<Origin>(
                r#"{"path":"/a","line":null,"uid":null,"created":null,"until_reboot":false}"#
            )
            .is_err()
        );
    }
}
