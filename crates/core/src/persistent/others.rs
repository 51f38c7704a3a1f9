//! Others that a reservation lets in beside its scope or its audience (rule R11).

use std::{fmt, ops::Deref};

use serde::{Deserialize, Deserializer, Serialize};

use super::audience::{Account, Audience, AudienceError, check_unit};
use crate::wire;

/// Others that a reservation lets in beside its scope or its audience: users, groups and units, at most four, and each
/// once.
///
/// As JSON the list of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent, bound(serialize = "Id: Serialize"))]
pub struct Others<Id = Account>(Vec<Audience<Id>>);

impl<Id> Default for Others<Id> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<Id: Ord + fmt::Display> Others<Id> {
    /// These.
    ///
    /// # Errors
    ///
    /// If there are more than four, if one is there twice, or is neither a user nor a group nor a unit.
    pub fn new(list: impl IntoIterator<Item = Audience<Id>>) -> Result<Self, AudienceError> {
        let mut list: Vec<_> = list.into_iter().collect();
        if list.len() > wire::ALSO_MAX {
            return Err(AudienceError::new(format!(
                "at most {} users, groups and units can be let in, and these are {}",
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
        // In one order, so that the same ones are equal.
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

    pub(super) fn mapped<Other: Ord, E>(
        &self,
        user: &mut dyn FnMut(&Id) -> Result<Other, E>,
        group: &mut dyn FnMut(&Id) -> Result<Other, E>,
    ) -> Result<Others<Other>, E> {
        let mut list = self.0.iter().map(|one| one.mapped(user, group)).collect::<Result<Vec<_>, _>>()?;
        list.sort();
        // Two names can be one user's.
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

    fn unit(n: u32) -> Audience<u32> {
        Audience::Unit(format!("web{n}.service"))
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
