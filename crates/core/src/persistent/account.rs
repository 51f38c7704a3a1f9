//! Users, groups, units and cgroups by name.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A user or a group, by number or by name. The agent looks names up, because a name may not exist yet, or may come
/// from a directory service that is not running yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Account {
    /// A uid or gid.
    Id(u32),
    /// A name. [`str::parse`] gives only valid ones, and ids for numbers.
    Name(String),
}

/// The correction of an audience that is not possible. [`fmt::Display`] gives the sentence for a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Correction {
    /// This name or path.
    Write(String),
    /// The user root: systemd binds the ports of a socket unit as root.
    Root,
    /// A cgroup, with this path.
    Cgroup(String),
}

impl fmt::Display for Correction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(text) => write!(f, "write {text:?}"),
            Self::Root => f.write_str("systemd binds the ports of a socket unit, as root: write `user = \"root\"`"),
            Self::Cgroup(path) => write!(f, "for a cgroup give its path: `cgroup = {path:?}`"),
        }
    }
}

/// Why a text names no user, group, unit or cgroup. [`fmt::Display`] gives a complete sentence;
/// [`AudienceError::correction`] says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AudienceError {
    message: String,
    correction: Option<Correction>,
}

impl AudienceError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), correction: None }
    }

    fn with(message: impl Into<String>, correction: Correction) -> Self {
        Self { message: message.into(), correction: Some(correction) }
    }

    /// The correction, if it is known.
    pub fn correction(&self) -> Option<&Correction> {
        self.correction.as_ref()
    }
}

/// The longest name of a user or group (`LOGIN_NAME_MAX` without the zero byte).
const ACCOUNT_MAX: usize = 255;
/// The longest unit name and the longest component of a cgroup path.
const PART_MAX: usize = 127;
/// The deepest cgroup path.
const DEPTH_MAX: usize = 16;

impl Account {
    /// A uid or gid. 4294967295 means "none" to the kernel.
    ///
    /// # Errors
    ///
    /// If it is not a uid or gid.
    pub fn id(number: i64) -> Result<Self, AudienceError> {
        match u32::try_from(number) {
            Ok(u32::MAX) | Err(_) => {
                Err(AudienceError::new(format!("{number} is not a user or group: 0 to 4294967294")))
            }
            Ok(id) => Ok(Self::Id(id)),
        }
    }
}

impl FromStr for Account {
    type Err = AudienceError;

    /// Digits are an id; no user or group name consists of digits only.
    fn from_str(text: &str) -> Result<Self, AudienceError> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return match text.parse() {
                Ok(number) => Self::id(number),
                Err(_) => Err(AudienceError::new(format!("{text} is not a user or group: 0 to 4294967294"))),
            };
        }
        if text.is_empty() {
            return Err(AudienceError::new("a user or group needs a name or a number"));
        }
        if text.len() > ACCOUNT_MAX {
            return Err(AudienceError::new(format!("a user's or group's name has at most {ACCOUNT_MAX} bytes")));
        }
        if let Some(wrong) = text.chars().find(|c| c.is_control() || c.is_whitespace() || ":,/".contains(*c)) {
            return Err(AudienceError::new(format!("{wrong:?} cannot be part of a user's or group's name")));
        }
        if text.starts_with('-') {
            return Err(AudienceError::new("a user's or group's name does not start with -"));
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl Serialize for Account {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Id(id) => serializer.serialize_u32(*id),
            Self::Name(name) => serializer.serialize_str(name),
        }
    }
}

impl<'de> Deserialize<'de> for Account {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = Account;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a user or group, by number or by name")
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Account, E> {
                Account::id(number).map_err(E::custom)
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Account, E> {
                Account::id(i64::try_from(number).unwrap_or(-1)).map_err(E::custom)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Account, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

pub(super) fn check_unit(name: &str) -> Result<(), AudienceError> {
    let quoted = format!("{name:?}");
    if name.is_empty() {
        return Err(AudienceError::new("a unit needs a name, such as \"postgresql.service\""));
    }
    if let Some(wrong) = name.chars().find(|c| !c.is_ascii_alphanumeric() && !":-_.\\@".contains(*c)) {
        let message = format!("{wrong:?} cannot be part of a unit's name");
        return Err(if name.contains('/') {
            AudienceError::with(message, Correction::Cgroup(name.to_owned()))
        } else {
            AudienceError::new(message)
        });
    }
    if name.len() > PART_MAX {
        return Err(AudienceError::new(format!("a unit's name has at most {PART_MAX} bytes, this one {}", name.len())));
    }
    if name.ends_with(".slice") {
        return Err(AudienceError::with(
            format!("{quoted} is a slice; only services and scopes can be named here"),
            Correction::Cgroup(format!("/{name}")),
        ));
    }
    let stem = name.strip_suffix(".service").or_else(|| name.strip_suffix(".scope"));
    match stem {
        Some("") => Err(AudienceError::new(format!("{quoted} has nothing before the suffix"))),
        Some(stem) if stem.ends_with('@') => Err(AudienceError::with(
            format!("{quoted} is a template, which does not run; an instance of it does"),
            Correction::Write(format!("{stem}1.service")),
        )),
        Some(_) => Ok(()),
        None => {
            let other = ["target", "timer", "mount", "automount", "path", "device", "swap"];
            let stem = match name.rsplit_once('.') {
                Some((stem, suffix)) if other.contains(&suffix) && !stem.is_empty() => stem,
                _ => name,
            };
            // systemd itself binds the ports of a socket unit, as root. If the audience were the service, systemd could
            // not bind them.
            let correction = match name.ends_with(".socket") {
                true => Correction::Root,
                false => Correction::Write(format!("{stem}.service")),
            };
            let message =
                format!("{quoted} is not the name of a service or scope: it ends in neither .service nor .scope");
            Err(AudienceError::with(message, correction))
        }
    }
}

pub(super) fn check_cgroup(path: &str) -> Result<(), AudienceError> {
    if let Some(rest) = path.strip_prefix("/sys/fs/cgroup") {
        let rest = if rest.is_empty() { "/" } else { rest };
        return Err(AudienceError::with(
            format!("{path:?} is a path of the file system; a cgroup's begins below /sys/fs/cgroup"),
            Correction::Write(rest.to_owned()),
        ));
    }
    let Some(parts) = path.strip_prefix('/') else {
        return Err(AudienceError::with(
            format!("{path:?} is not absolute; a cgroup's path begins with /"),
            Correction::Write(format!("/{path}")),
        ));
    };
    if parts.is_empty() {
        return Err(AudienceError::new("the root cgroup is everybody; name one below it"));
    }
    let parts: Vec<&str> = parts.split('/').collect();
    for part in &parts {
        match *part {
            "" => return Err(AudienceError::new(format!("{path:?} has an empty component: // or / at its end"))),
            "." | ".." => return Err(AudienceError::new(format!("{path:?} has {part:?} in it; write the path out"))),
            part if part.len() > PART_MAX => {
                return Err(AudienceError::new(format!("a component of a cgroup's path has at most {PART_MAX} bytes")));
            }
            part if part.chars().any(char::is_control) => {
                return Err(AudienceError::new("a control character cannot be part of a cgroup's path"));
            }
            _ => {}
        }
    }
    if parts.len() > DEPTH_MAX {
        return Err(AudienceError::new(format!("a cgroup's path has at most {DEPTH_MAX} components")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_numbers_or_names() {
        assert_eq!("33".parse(), Ok(Account::Id(33)));
        assert_eq!("www-data".parse(), Ok(Account::Name("www-data".into())));
        for bad in ["", "4294967295", "99999999999999999999", "a b", "a:b", "-x", "a\n"] {
            assert!(bad.parse::<Account>().is_err(), "{bad:?}");
        }
    }
}
