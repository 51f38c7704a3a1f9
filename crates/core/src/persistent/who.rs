//! The audience of a persistent reservation.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A user or a group, by number or by name. Looking names up is for the agent: they may not exist yet, or come from
/// a directory service that is not running yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Account {
    /// A uid or gid.
    Id(u32),
    /// A name. [`str::parse`] gives only valid ones, and ids for numbers.
    Name(String),
}

/// The audience of a persistent reservation: the processes that may consume it. Administrators always may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "Raw")]
pub enum Who {
    /// Administrators and nobody else: what Windows has.
    #[default]
    Administrators,
    /// The processes of a user.
    User(Account),
    /// The processes of a group.
    Group(Account),
    /// The processes of a systemd unit, "postgresql.service". [`Who::unit`] makes only valid ones.
    Unit(String),
    /// The processes of a cgroup and of those below it, "/system.slice/postgresql.service": the path below the root of
    /// the cgroup hierarchy. [`Who::cgroup`] makes only valid ones.
    Cgroup(String),
}

/// Why a text names nobody. The sentence in [`fmt::Display`] is whole; [`WhoError::help`] says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct WhoError {
    message: String,
    help: Option<String>,
}

impl WhoError {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None }
    }

    fn with_help(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: Some(help.into()) }
    }

    /// The correct spelling, if it is known.
    pub fn help(&self) -> Option<&str> {
        self.help.as_deref()
    }
}

/// The longest name of a user or group (`LOGIN_NAME_MAX` less the end).
const ACCOUNT_MAX: usize = 255;
/// The longest unit name and the longest component of a cgroup path.
const PART_MAX: usize = 127;
/// The deepest cgroup path.
const DEPTH_MAX: usize = 16;

impl Who {
    /// A systemd unit by its name.
    ///
    /// # Errors
    ///
    /// If it is not the name of a service or a scope.
    pub fn unit(name: &str) -> Result<Self, WhoError> {
        let quoted = format!("{name:?}");
        if name.is_empty() {
            return Err(WhoError::new("a unit needs a name, such as \"postgresql.service\""));
        }
        if let Some(wrong) = name.chars().find(|c| !c.is_ascii_alphanumeric() && !":-_.\\@".contains(*c)) {
            let message = format!("{wrong:?} cannot be part of a unit's name");
            return Err(if name.contains('/') {
                WhoError::with_help(message, format!("for a cgroup's path write `cgroup = {quoted}`"))
            } else {
                WhoError::new(message)
            });
        }
        if name.len() > PART_MAX {
            return Err(WhoError::new(format!("a unit's name has at most {PART_MAX} bytes, this one {}", name.len())));
        }
        if name.ends_with(".slice") {
            return Err(WhoError::with_help(
                format!("{quoted} is a slice; only services and scopes can be named here"),
                "for all that runs in a slice give its path: `cgroup = \"/system.slice\"`",
            ));
        }
        let stem = name.strip_suffix(".service").or_else(|| name.strip_suffix(".scope"));
        match stem {
            Some("") => Err(WhoError::new(format!("{quoted} has nothing before the suffix"))),
            Some(stem) if stem.ends_with('@') => Err(WhoError::with_help(
                format!("{quoted} is a template, not a unit that runs"),
                format!("name an instance of it, such as \"{stem}1.service\""),
            )),
            Some(_) => Ok(Self::Unit(name.to_owned())),
            None => {
                let other = ["target", "timer", "mount", "automount", "path", "device", "swap"];
                let stem = match name.rsplit_once('.') {
                    Some((stem, suffix)) if other.contains(&suffix) && !stem.is_empty() => stem,
                    _ => name,
                };
                // systemd itself binds the ports of such a unit, as root: the service would lock it out.
                let help = match name.ends_with(".socket") {
                    true => "systemd binds the ports of a socket unit, as root: write `user = \"root\"`".to_owned(),
                    false => format!("write \"{stem}.service\""),
                };
                let message =
                    format!("{quoted} is not the name of a service or scope: it ends in neither .service nor .scope");
                Err(WhoError::with_help(message, help))
            }
        }
    }

    /// A cgroup by its path below the root of the hierarchy.
    ///
    /// # Errors
    ///
    /// If it is not an absolute path, is the root itself, has `.`, `..` or empty components, a component of more than
    /// 127 bytes or more than 16 of them.
    pub fn cgroup(path: &str) -> Result<Self, WhoError> {
        if let Some(rest) = path.strip_prefix("/sys/fs/cgroup") {
            let rest = if rest.is_empty() { "/" } else { rest };
            return Err(WhoError::with_help(
                format!("{path:?} is a path of the file system; a cgroup's begins below /sys/fs/cgroup"),
                format!("write {rest:?}"),
            ));
        }
        let Some(parts) = path.strip_prefix('/') else {
            return Err(WhoError::with_help(
                format!("{path:?} is not absolute; a cgroup's path begins with /"),
                format!("write {:?}", format!("/{path}")),
            ));
        };
        if parts.is_empty() {
            return Err(WhoError::new("the root cgroup is everybody; name one below it"));
        }
        let parts: Vec<&str> = parts.split('/').collect();
        for part in &parts {
            match *part {
                "" => return Err(WhoError::new(format!("{path:?} has an empty component: // or / at its end"))),
                "." | ".." => return Err(WhoError::new(format!("{path:?} has {part:?} in it; write the path out"))),
                part if part.len() > PART_MAX => {
                    return Err(WhoError::new(format!("a component of a cgroup's path has at most {PART_MAX} bytes")));
                }
                part if part.chars().any(char::is_control) => {
                    return Err(WhoError::new("a control character cannot be part of a cgroup's path"));
                }
                _ => {}
            }
        }
        if parts.len() > DEPTH_MAX {
            return Err(WhoError::new(format!("a cgroup's path has at most {DEPTH_MAX} components")));
        }
        Ok(Self::Cgroup(path.to_owned()))
    }
}

impl fmt::Display for Who {
    /// "unit tomcat.service", "user www-data", "administrators".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Administrators => f.write_str("administrators"),
            Self::User(account) => write!(f, "user {account}"),
            Self::Group(account) => write!(f, "group {account}"),
            Self::Unit(name) => write!(f, "unit {name}"),
            Self::Cgroup(path) => write!(f, "cgroup {path}"),
        }
    }
}

/// The input before it is checked.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Raw {
    Administrators,
    User(Account),
    Group(Account),
    Unit(String),
    Cgroup(String),
}

impl TryFrom<Raw> for Who {
    type Error = WhoError;

    fn try_from(raw: Raw) -> Result<Self, WhoError> {
        match raw {
            Raw::Administrators => Ok(Self::Administrators),
            Raw::User(account) => Ok(Self::User(account)),
            Raw::Group(account) => Ok(Self::Group(account)),
            Raw::Unit(name) => Self::unit(&name),
            Raw::Cgroup(path) => Self::cgroup(&path),
        }
    }
}

impl Account {
    /// A uid or gid. 4294967295 means "none" to the kernel.
    ///
    /// # Errors
    ///
    /// If it is no such number.
    pub fn id(number: i64) -> Result<Self, WhoError> {
        match u32::try_from(number) {
            Ok(u32::MAX) | Err(_) => Err(WhoError::new(format!("{number} is not a user or group: 0 to 4294967294"))),
            Ok(id) => Ok(Self::Id(id)),
        }
    }
}

impl FromStr for Account {
    type Err = WhoError;

    /// Digits are an id; no user or group name consists of digits only.
    fn from_str(text: &str) -> Result<Self, WhoError> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return match text.parse() {
                Ok(number) => Self::id(number),
                Err(_) => Err(WhoError::new(format!("{text} is not a user or group: 0 to 4294967294"))),
            };
        }
        if text.is_empty() {
            return Err(WhoError::new("a user or group needs a name or a number"));
        }
        if text.len() > ACCOUNT_MAX {
            return Err(WhoError::new(format!("a user's or group's name has at most {ACCOUNT_MAX} bytes")));
        }
        if let Some(wrong) = text.chars().find(|c| c.is_control() || c.is_whitespace() || ":,/".contains(*c)) {
            return Err(WhoError::new(format!("{wrong:?} cannot be part of a user's or group's name")));
        }
        if text.starts_with('-') {
            return Err(WhoError::new("a user's or group's name does not start with -"));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_services_and_scopes() {
        for good in ["postgresql.service", "getty@tty1.service", "session-3.scope", "a\\x2db.service"] {
            assert_eq!(Who::unit(good).unwrap(), Who::Unit(good.into()));
        }
        let help = |name: &str| Who::unit(name).unwrap_err().help().map(str::to_owned);
        assert_eq!(help("postgresql").unwrap(), "write \"postgresql.service\"");
        assert_eq!(help("postgresql.timer").unwrap(), "write \"postgresql.service\"");
        assert!(help("ssh.socket").unwrap().ends_with("write `user = \"root\"`"));
        assert!(help("web.slice").unwrap().contains("cgroup"));
        assert!(help("getty@.service").unwrap().contains("getty@1.service"));
        assert!(help("/system.slice/x.service").unwrap().contains("cgroup = "));
        for bad in ["", ".service", "a b.service", &format!("{}.service", "n".repeat(120))] {
            assert!(Who::unit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cgroups_are_absolute_and_written_out() {
        for good in ["/a", "/system.slice/postgresql.service", &"/x".repeat(16)] {
            assert_eq!(Who::cgroup(good).unwrap(), Who::Cgroup(good.into()));
        }
        for bad in
            ["", "/", "a/b", "/a/../b", "/a/./b", "/a//b", "/a/", &"/x".repeat(17), &format!("/{}", "x".repeat(128))]
        {
            assert!(Who::cgroup(bad).is_err(), "{bad}");
        }
        let help = Who::cgroup("/sys/fs/cgroup/system.slice").unwrap_err();
        assert_eq!(help.help(), Some("write \"/system.slice\""));
    }

    #[test]
    fn accounts_are_numbers_or_names() {
        assert_eq!("33".parse(), Ok(Account::Id(33)));
        assert_eq!("www-data".parse(), Ok(Account::Name("www-data".into())));
        for bad in ["", "4294967295", "99999999999999999999", "a b", "a:b", "-x", "a\n"] {
            assert!(bad.parse::<Account>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn json_says_it_in_few_words_and_is_checked() {
        let json = |who: &Who| serde_json::to_string(who).unwrap();
        assert_eq!(json(&Who::Administrators), "\"administrators\"");
        assert_eq!(json(&Who::User(Account::Id(33))), "{\"user\":33}");
        assert_eq!(json(&Who::Unit("a.service".into())), "{\"unit\":\"a.service\"}");
        assert!(serde_json::from_str::<Who>("{\"unit\":\"a\"}").is_err());
        assert!(serde_json::from_str::<Who>("{\"cgroup\":\"/..\"}").is_err());
        assert!(serde_json::from_str::<Who>("{\"user\":-1}").is_err());
        assert_eq!(serde_json::from_str::<Who>("{\"user\":\"33\"}").unwrap(), Who::User(Account::Id(33)));
    }
}
