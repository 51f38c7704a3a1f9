//! The audience of a persistent reservation, and the others that a reservation admits (rule R11).

use std::{fmt, ops::Deref};

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeStruct};

use super::account::{Account, AudienceError, check_cgroup, check_unit};
use crate::wire;

/// The audience of a persistent reservation: the processes that may consume it. Administrators always may.
///
/// Users and groups are [`Account`]s as they were declared, and numbers (`Audience<u32>`) once they were looked up.
///
/// As JSON: `{"kind":"unit","value":"nginx.service"}`; the value is null for administrators.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(tag = "kind", content = "value", rename_all = "lowercase")]
#[serde(bound(deserialize = "Id: Deserialize<'de> + Ord + fmt::Display"))]
pub enum Audience<Id = Account> {
    /// Administrators and nobody else, as on Windows.
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

impl<Id: Ord + fmt::Display> Audience<Id> {
    /// All of these together. Without any: the administrators.
    ///
    /// # Errors
    ///
    /// If there are several, and they cannot be [`Others`].
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
    /// The elements of [`Audience::Several`], or the audience itself.
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

    fn mapped<Other: Ord, E>(
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
    /// The audience that a `SCOPE_` constant, a uid and a gid of the kernel's layout name. `None` for a unit or a
    /// cgroup, because their names are kept elsewhere.
    pub fn from_wire(kind: u8, uid: u32, gid: u32) -> Option<Self> {
        match kind.into() {
            wire::SCOPE_ADMIN => Some(Self::Administrators),
            wire::SCOPE_USER => Some(Self::User(uid)),
            wire::SCOPE_GROUP => Some(Self::Group(gid)),
            _ => None,
        }
    }

    /// The audience as one of the others that a reservation admits; `None` if it cannot be one.
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

    /// The reverse of [`Audience::to_also`]; `None` if the kind is not known.
    pub fn from_also(also: &wire::Also) -> Option<Self> {
        match u16::try_from(also.kind).ok()? {
            wire::SCOPE_USER => Some(Self::User(also.id)),
            wire::SCOPE_GROUP => Some(Self::Group(also.id)),
            wire::SCOPE_UNIT => Some(Self::Unit(wire::text(&also.name))),
            _ => None,
        }
    }
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

/// Others that a reservation admits in addition to its scope or its audience: users, groups and units, at most four,
/// and each only once.
///
/// As JSON: a list.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent, bound(serialize = "Id: Serialize"))]
pub struct Others<Id = Account>(Vec<Audience<Id>>);

impl<Id> Default for Others<Id> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<Id: Ord + fmt::Display> Others<Id> {
    /// These users, groups and units.
    ///
    /// # Errors
    ///
    /// If there are more than four, or if one is there twice, or is neither a user nor a group nor a unit.
    pub fn new(list: impl IntoIterator<Item = Audience<Id>>) -> Result<Self, AudienceError> {
        let mut list: Vec<_> = list.into_iter().collect();
        if list.len() > wire::ALSO_MAX {
            return Err(AudienceError::new(format!(
                "at most {} users, groups and units can be admitted, and these are {}",
                wire::ALSO_MAX,
                list.len()
            )));
        }
        for (n, one) in list.iter().enumerate() {
            match one {
                Audience::User(_) | Audience::Group(_) => {}
                Audience::Unit(name) => check_unit(name)?,
                Audience::Administrators | Audience::Cgroup(_) | Audience::Several(_) => {
                    return Err(AudienceError::new(format!(
                        "{one} cannot be one of several; a user, a group or a unit can"
                    )));
                }
            }
            if list[..n].contains(one) {
                return Err(AudienceError::new(format!("{one} is named twice")));
            }
        }
        // Sorted, so that two lists with the same members are equal.
        list.sort();
        Ok(Self(list))
    }
}

impl<Id> Others<Id> {
    /// The same, with users and groups looked up.
    ///
    /// # Errors
    ///
    /// Those of `user` and `group`.
    pub fn try_map<Other: Ord, E>(
        &self,
        mut user: impl FnMut(&Id) -> Result<Other, E>,
        mut group: impl FnMut(&Id) -> Result<Other, E>,
    ) -> Result<Others<Other>, E> {
        self.mapped(&mut user, &mut group)
    }

    fn mapped<Other: Ord, E>(
        &self,
        user: &mut dyn FnMut(&Id) -> Result<Other, E>,
        group: &mut dyn FnMut(&Id) -> Result<Other, E>,
    ) -> Result<Others<Other>, E> {
        let mut list = self.0.iter().map(|one| one.mapped(user, group)).collect::<Result<Vec<_>, _>>()?;
        list.sort();
        // Two names can have the same id.
        list.dedup();
        Ok(Others(list))
    }
}

impl Others<u32> {
    /// In the kernel's layout.
    pub fn to_wire(&self) -> Vec<wire::Also> {
        self.0.iter().filter_map(Audience::to_also).collect()
    }

    /// From the kernel's layout. Kinds that are not known are left out.
    pub fn from_wire(list: &[wire::Also]) -> Self {
        let mut list: Vec<_> = list.iter().filter_map(Audience::from_also).collect();
        list.sort();
        Self(list)
    }
}

/// "unit nginx.service, user www-data".
impl<Id: fmt::Display> fmt::Display for Others<Id> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, one) in self.0.iter().enumerate() {
            write!(f, "{}{one}", if n == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl<Id> From<Others<Id>> for Vec<Audience<Id>> {
    fn from(others: Others<Id>) -> Self {
        others.0
    }
}

impl<Id> Deref for Others<Id> {
    type Target = [Audience<Id>];

    fn deref(&self) -> &[Audience<Id>] {
        &self.0
    }
}

impl<'de, Id: Deserialize<'de> + Ord + fmt::Display> Deserialize<'de> for Others<Id> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Vec::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::persistent::Correction;

    fn unit(n: u32) -> Audience<u32> {
        Audience::Unit(format!("web{n}.service"))
    }

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

    #[test]
    fn at_most_four_each_once_and_no_cgroup() {
        assert!(Others::new((0..4).map(unit)).is_ok());
        let message = |list: &[Audience<u32>]| Others::new(list.iter().cloned()).unwrap_err().to_string();
        assert!(message(&(0..5).map(unit).collect::<Vec<_>>()).contains("at most 4"));
        assert!(message(&[unit(1), Audience::User(0), unit(1)]).contains("unit web1.service is named twice"));
        assert!(message(&[Audience::Cgroup("/a".into())]).contains("cgroup /a cannot"));
        assert!(message(&[Audience::Administrators]).contains("administrators cannot"));
    }

    #[test]
    fn the_kernels_layout_is_read_as_it_is_written() {
        let others = Others::new([Audience::User(33), Audience::Group(999), unit(1)]).unwrap();
        assert_eq!(Others::from_wire(&others.to_wire()), others);
        let json = serde_json::to_string(&others).unwrap();
        assert_eq!(
            json,
            r#"[{"kind":"user","value":33},{"kind":"group","value":999},{"kind":"unit","value":"web1.service"}]"#
        );
        assert_eq!(serde_json::from_str::<Others<u32>>(&json).unwrap(), others);
        assert!(serde_json::from_str::<Others<u32>>(r#"[{"kind":"administrators"}]"#).is_err());
    }
}
