//! One persistent reservation as declared.

use serde::{Deserialize, Serialize};

use super::{Audience, Name};
use crate::{PortList, PortRange, PortSet, Transports};

/// One persistent reservation as declared. Files, the store and the agent's socket use this same form.
///
/// As JSON: `{"name":"web","ports":"8443","transports":"tcp","audience":{"kind":"unit","value":"nginx.service"}}`, and
/// `strict`, `around`, `force` and `description` where they are not the default. Reading checks everything and refuses unknown members.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declaration {
    /// Its name, unique among all that is in force.
    pub name: Name,
    /// The ports, host byte order.
    pub ports: PortList,
    /// TCP, UDP, or both.
    pub transports: Transports,
    /// Its audience, besides administrators.
    #[serde(default)]
    pub audience: Audience,
    /// Only associated sockets may bind its ports (rule A7).
    #[serde(default, skip_serializing_if = "is_false")]
    pub strict: bool,
    /// A private ephemeral range: binds of its audience to port 0 draw from it (rule E6).
    #[serde(default, skip_serializing_if = "is_false")]
    pub ephemeral: bool,
    /// Sockets of its audience that have one of its ports already keep it (rule R4).
    #[serde(default, skip_serializing_if = "is_false")]
    pub around: bool,
    /// It may leave the namespace few ephemeral ports (rule N5).
    #[serde(default, skip_serializing_if = "is_false")]
    pub force: bool,
    /// One line about it, at most [`Declaration::DESCRIPTION_MAX`] bytes.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "description")]
    pub description: String,
}

// serde requires a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(flag: &bool) -> bool {
    !flag
}

fn description<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    check_description(&text).map_err(serde::de::Error::custom)?;
    Ok(text)
}

/// Check whether a text can be a description. Descriptions are printed in tables and logs, so a description must be a
/// single line without characters that move the cursor.
///
/// # Errors
///
/// A sentence that says what is wrong with it.
pub fn check_description(text: &str) -> Result<(), String> {
    if text.len() > Declaration::DESCRIPTION_MAX {
        return Err(format!(
            "a description has at most {} bytes, this one {}",
            Declaration::DESCRIPTION_MAX,
            text.len()
        ));
    }
    match text.chars().find(|c| c.is_control()) {
        Some(wrong) => Err(format!("a description is one line of text; {wrong:?} cannot be in it")),
        None => Ok(()),
    }
}

impl Declaration {
    /// The longest description, in bytes.
    pub const DESCRIPTION_MAX: usize = 256;

    /// A reservation for administrators with neither flag nor description.
    pub fn new(name: Name, ports: impl Into<PortList>, transports: Transports) -> Self {
        Self {
            name,
            ports: ports.into(),
            transports,
            audience: Audience::Administrators,
            strict: false,
            ephemeral: false,
            around: false,
            force: false,
            description: String::new(),
        }
    }

    /// Why a reservation with these properties cannot be a private ephemeral range: a sentence without its subject.
    /// `None` if it can be one.
    pub fn no_range(ports: Option<&PortList>, audience: &Audience, strict: bool) -> Option<&'static str> {
        match audience {
            _ if ports.is_some_and(|ports| ports.as_block().is_none()) => Some(
                "has to be one block, not several: the kernel draws from one block; reserve the others under another name, \
                 without `ephemeral`",
            ),
            _ if strict => Some("cannot be `strict` as well: only sockets that are not associated draw from it"),
            Audience::Administrators => Some("needs a user, group, unit or cgroup that it is for"),
            Audience::Several(_) => Some("is for one user, group, unit or cgroup, not for several"),
            Audience::User(_) | Audience::Group(_) | Audience::Unit(_) | Audience::Cgroup(_) => None,
        }
    }

    /// Why a reservation in force cannot be changed to the ports of `other`, as a sentence with the next step. Whole
    /// blocks can stay or go, because the kernel has each port once.
    pub fn cannot_move_to(&self, other: &Self) -> Option<String> {
        if !self.transports.overlaps(other.transports) {
            return None;
        }
        let stays = |block: &PortRange| self.transports == other.transports && other.ports.blocks().contains(block);
        let gone = || self.ports.blocks().iter().filter(|block| !stays(block));
        let is_new = |block: &&PortRange| self.transports != other.transports || !self.ports.blocks().contains(block);
        let block = other.ports.blocks().iter().filter(is_new).find(|new| gone().any(|gone| gone.overlaps(**new)))?;
        let (ports, transports) = (&other.ports, other.transports);
        let own = PortSet::from(&self.ports);
        let more = PortSet::from(ports).minus(&own);
        let next = if self.transports != transports || more.is_empty() {
            "keep its ports as they are, or use ports that it does not have".to_owned()
        } else {
            format!("reserve the others under another name: `portkeep persist add {more}/{transports} --name <NAME>`")
        };
        Some(format!(
            "{block}/{transports} overlaps {}/{}, which `{}` has now, and its ports would be free for an instant: only whole \
             blocks can stay; {next}",
            self.ports, self.transports, self.name
        ))
    }

    /// Whether the two have a port of the same transport in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.transports.overlaps(other.transports) && self.ports.overlaps(&other.ports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_read_as_it_is_written() {
        let mut web =
            Declaration::new("web".parse().unwrap(), crate::PortRange::single(8443).unwrap(), Transports::Tcp);
        let short =
            r#"{"name":"web","ports":"8443","transports":"tcp","audience":{"kind":"administrators","value":null}}"#;
        assert_eq!(serde_json::to_string(&web).unwrap(), short);
        assert_eq!(serde_json::from_str::<Declaration>(short).unwrap(), web);
        web.ports = "443,8443".parse().unwrap();
        web.audience = Audience::unit("nginx.service").unwrap();
        web.strict = true;
        web.ephemeral = true;
        web.around = true;
        web.description = "the front door".into();
        let json = serde_json::to_string(&web).unwrap();
        assert_eq!(serde_json::from_str::<Declaration>(&json).unwrap(), web);
    }

    #[test]
    fn json_is_checked() {
        for wrong in [
            r#"{"name":"web","ports":"0","transports":"tcp"}"#,
            r#"{"name":"web","ports":"65536","transports":"tcp"}"#,
            r#"{"name":"","ports":"1","transports":"tcp"}"#,
            r#"{"name":"web","ports":"1","transports":"sctp"}"#,
            r#"{"name":"web","ports":"1","transports":"tcp","stict":true}"#,
            r#"{"name":"web","ports":"1","transports":"tcp","description":"a\nb"}"#,
        ] {
            assert!(serde_json::from_str::<Declaration>(wrong).is_err(), "{wrong}");
        }
    }
}
