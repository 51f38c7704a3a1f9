//! The audience of a persistent reservation.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeStruct};

use super::Others;
use crate::wire;

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
///
/// Users and groups are [`Account`]s as they were declared, and numbers (`Audience<u32>`) once they were looked up.
///
/// As JSON: `{"kind":"unit","value":"nginx.service"}`; the value is null for administrators.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(tag = "kind", content = "value", rename_all = "lowercase")]
#[serde(bound(deserialize = "Id: Deserialize<'de> + Ord + fmt::Display"))]
pub enum Audience<Id = Account> {
    /// Administrators and nobody else: what Windows has.
    #[default]
    Administrators,
    /// The processes of a user.
    User(Id),
    /// The processes of a group.
    Group(Id),
    /// The processes of a systemd unit, "postgresql.service". [`Audience::unit`] makes only valid ones.
    Unit(#[serde(deserialize_with = "unit")] String),
    /// The processes of a cgroup and of those below it, "/system.slice/postgresql.service": the path below the root of
    /// the cgroup hierarchy. [`Audience::cgroup`] makes only valid ones.
    Cgroup(#[serde(deserialize_with = "cgroup")] String),
    /// Each of these, two or more. [`Audience::any_of`] makes them.
    Several(#[serde(deserialize_with = "several")] Others<Id>),
}

fn unit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    check_unit(&name).map(|()| name).map_err(serde::de::Error::custom)
}

fn several<'de, D, Id>(deserializer: D) -> Result<Others<Id>, D::Error>
where
    D: Deserializer<'de>,
    Id: Deserialize<'de> + Ord + fmt::Display,
{
    let several = Others::deserialize(deserializer)?;
    if several.len() > 1 { Ok(several) } else { Err(serde::de::Error::custom("several are two or more")) }
}

fn cgroup<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let path = String::deserialize(deserializer)?;
    check_cgroup(&path).map(|()| path).map_err(serde::de::Error::custom)
}

/// What to write in place of an audience that cannot be. [`fmt::Display`] is the sentence for a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Correction {
    /// This name or path.
    Write(String),
    /// The user root, as which systemd binds the ports of a socket unit.
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

/// Why a text names nobody. The sentence in [`fmt::Display`] is whole; [`AudienceError::correction`] is what to write
/// instead.
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

    /// What to write instead, if it is known.
    pub fn correction(&self) -> Option<&Correction> {
        self.correction.as_ref()
    }
}

/// The longest name of a user or group (`LOGIN_NAME_MAX` less the end).
const ACCOUNT_MAX: usize = 255;
/// The longest unit name and the longest component of a cgroup path.
const PART_MAX: usize = 127;
/// The deepest cgroup path.
const DEPTH_MAX: usize = 16;

impl<Id: Ord + fmt::Display> Audience<Id> {
    /// All of these together; of none the administrators.
    ///
    /// # Errors
    ///
    /// If they are several and cannot be [`Others`].
    pub fn any_of(list: impl IntoIterator<Item = Self>) -> Result<Self, AudienceError> {
        let mut list: Vec<Self> = list.into_iter().collect();
        match list.len() {
            0 => Ok(Self::Administrators),
            1 => Ok(list.remove(0)),
            _ => Others::new(list).map(Self::Several),
        }
    }
}

impl<Id> Audience<Id> {
    /// Each of several, or itself.
    pub fn each(&self) -> &[Self] {
        match self {
            Self::Several(several) => several,
            Self::Administrators | Self::User(_) | Self::Group(_) | Self::Unit(_) | Self::Cgroup(_) => {
                std::slice::from_ref(self)
            }
        }
    }

    /// A systemd unit by its name.
    ///
    /// # Errors
    ///
    /// If it is not the name of a service or a scope.
    pub fn unit(name: &str) -> Result<Self, AudienceError> {
        check_unit(name).map(|()| Self::Unit(name.to_owned()))
    }

    /// A cgroup by its path below the root of the hierarchy.
    ///
    /// # Errors
    ///
    /// If it is not an absolute path, is the root itself, has `.`, `..` or empty components, a component of more than
    /// 127 bytes or more than 16 of them.
    pub fn cgroup(path: &str) -> Result<Self, AudienceError> {
        check_cgroup(path).map(|()| Self::Cgroup(path.to_owned()))
    }

    /// The same, with users and groups looked up.
    ///
    /// # Errors
    ///
    /// Those of `user` and `group`.
    pub fn try_map<Other: Ord, E>(
        &self,
        mut user: impl FnMut(&Id) -> Result<Other, E>,
        mut group: impl FnMut(&Id) -> Result<Other, E>,
    ) -> Result<Audience<Other>, E> {
        self.mapped(&mut user, &mut group)
    }

    pub(super) fn mapped<Other: Ord, E>(
        &self,
        user: &mut dyn FnMut(&Id) -> Result<Other, E>,
        group: &mut dyn FnMut(&Id) -> Result<Other, E>,
    ) -> Result<Audience<Other>, E> {
        Ok(match self {
            Self::Several(several) => {
                let several = several.mapped(user, group)?;
                if several.len() > 1 { Audience::Several(several) } else { Vec::from(several).remove(0) }
            }
            Self::Administrators => Audience::Administrators,
            Self::User(id) => Audience::User(user(id)?),
            Self::Group(id) => Audience::Group(group(id)?),
            Self::Unit(name) => Audience::Unit(name.clone()),
            Self::Cgroup(path) => Audience::Cgroup(path.clone()),
        })
    }

    /// The word for it in listings, drop-ins and JSON.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Administrators => "administrators",
            Self::User(_) => "user",
            Self::Group(_) => "group",
            Self::Unit(_) => "unit",
            Self::Cgroup(_) => "cgroup",
            Self::Several(_) => "several",
        }
    }
}

impl Audience<u32> {
    /// As far as a reservation in the kernel's layout shows it: a `SCOPE_` constant, the uid and the gid. `None` for a
    /// unit or a cgroup, whose names are kept elsewhere.
    pub fn from_wire(kind: u8, uid: u32, gid: u32) -> Option<Self> {
        match kind.into() {
            wire::SCOPE_ADMIN => Some(Self::Administrators),
            wire::SCOPE_USER => Some(Self::User(uid)),
            wire::SCOPE_GROUP => Some(Self::Group(gid)),
            _ => None,
        }
    }

    /// As one of the others that a reservation lets in; `None` of what cannot be one.
    pub fn to_also(&self) -> Option<wire::Also> {
        let (kind, id, text) = match self {
            Self::User(uid) => (wire::SCOPE_USER, *uid, ""),
            Self::Group(gid) => (wire::SCOPE_GROUP, *gid, ""),
            Self::Unit(name) => (wire::SCOPE_UNIT, 0, name.as_str()),
            Self::Administrators | Self::Cgroup(_) | Self::Several(_) => return None,
        };
        let mut name = [0; 128];
        name.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(wire::Also { kind: kind.into(), id, name })
    }

    /// The reverse of [`Audience::to_also`]; `None` of a kind that is not known.
    pub fn from_also(also: &wire::Also) -> Option<Self> {
        match u16::try_from(also.kind).ok()? {
            wire::SCOPE_USER => Some(Self::User(also.id)),
            wire::SCOPE_GROUP => Some(Self::Group(also.id)),
            wire::SCOPE_UNIT => Some(Self::Unit(wire::text(&also.name))),
            _ => None,
        }
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
            // systemd itself binds the ports of such a unit, as root: the service would lock it out.
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

fn check_cgroup(path: &str) -> Result<(), AudienceError> {
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

impl<Id: fmt::Display> fmt::Display for Audience<Id> {
    /// "unit tomcat.service", "user www-data", "administrators", "unit nginx.service, unit certbot.service".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind();
        match self {
            Self::Administrators => f.write_str(kind),
            Self::User(id) | Self::Group(id) => write!(f, "{kind} {id}"),
            Self::Unit(text) | Self::Cgroup(text) => write!(f, "{kind} {text}"),
            Self::Several(several) => several.fmt(f),
        }
    }
}

impl<Id: Serialize> Serialize for Audience<Id> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Audience", 2)?;
        object.serialize_field("kind", self.kind())?;
        match self {
            Self::Administrators => object.serialize_field("value", &())?,
            Self::User(id) | Self::Group(id) => object.serialize_field("value", id)?,
            Self::Unit(text) | Self::Cgroup(text) => object.serialize_field("value", text)?,
            Self::Several(several) => object.serialize_field("value", several)?,
        }
        object.end()
    }
}

impl Account {
    /// A uid or gid. 4294967295 means "none" to the kernel.
    ///
    /// # Errors
    ///
    /// If it is no such number.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_services_and_scopes() {
        for good in ["postgresql.service", "getty@tty1.service", "session-3.scope", "a\\x2db.service"] {
            assert_eq!(Audience::<Account>::unit(good).unwrap(), Audience::Unit(good.into()));
        }
        let help = |name: &str| Audience::<Account>::unit(name).unwrap_err().correction().map(ToString::to_string);
        assert_eq!(help("postgresql").unwrap(), "write \"postgresql.service\"");
        assert_eq!(help("postgresql.timer").unwrap(), "write \"postgresql.service\"");
        assert!(help("ssh.socket").unwrap().ends_with("write `user = \"root\"`"));
        assert!(help("web.slice").unwrap().contains("cgroup = \"/web.slice\""));
        assert!(help("getty@.service").unwrap().contains("getty@1.service"));
        assert!(help("/system.slice/x.service").unwrap().contains("cgroup = "));
        for bad in ["", ".service", "a b.service", &format!("{}.service", "n".repeat(120))] {
            assert!(Audience::<Account>::unit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cgroups_are_absolute_and_written_out() {
        for good in ["/a", "/system.slice/postgresql.service", &"/x".repeat(16)] {
            assert_eq!(Audience::<Account>::cgroup(good).unwrap(), Audience::Cgroup(good.into()));
        }
        for bad in
            ["", "/", "a/b", "/a/../b", "/a/./b", "/a//b", "/a/", &"/x".repeat(17), &format!("/{}", "x".repeat(128))]
        {
            assert!(Audience::<Account>::cgroup(bad).is_err(), "{bad}");
        }
        let help = Audience::<Account>::cgroup("/sys/fs/cgroup/system.slice").unwrap_err();
        assert_eq!(help.correction(), Some(&Correction::Write("/system.slice".into())));
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
    fn json_is_checked_and_read_as_it_is_written() {
        let read = |json: &str| serde_json::from_str::<Audience>(json);
        for (audience, json) in [
            (Audience::Administrators, r#"{"kind":"administrators","value":null}"#),
            (Audience::User(Account::Id(33)), r#"{"kind":"user","value":33}"#),
            (Audience::Group(Account::Name("voice".into())), r#"{"kind":"group","value":"voice"}"#),
            (Audience::Unit("a.service".into()), r#"{"kind":"unit","value":"a.service"}"#),
            (Audience::Cgroup("/a/b".into()), r#"{"kind":"cgroup","value":"/a/b"}"#),
            (
                Audience::any_of([Audience::Unit("a.service".into()), Audience::User(Account::Id(33))]).unwrap(),
                r#"{"kind":"several","value":[{"kind":"user","value":33},{"kind":"unit","value":"a.service"}]}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&audience).unwrap(), json);
            assert_eq!(read(json).unwrap(), audience);
        }
        for wrong in [
            r#"{"kind":"unit","value":"a"}"#,
            r#"{"kind":"cgroup","value":"/.."}"#,
            r#"{"kind":"user","value":-1}"#,
            r#"{"kind":"user","value":null}"#,
            r#"{"kind":"planet","value":"Earth"}"#,
            r#"{"kind":"several","value":[{"kind":"user","value":33},{"kind":"user","value":33}]}"#,
            r#"{"kind":"several","value":[{"kind":"user","value":33},{"kind":"cgroup","value":"/a"}]}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert_eq!(read(r#"{"kind":"user","value":"33"}"#).unwrap(), Audience::User(Account::Id(33)));
    }
}
