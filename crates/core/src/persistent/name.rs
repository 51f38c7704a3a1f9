//! The name of a persistent reservation.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// 1 to 64 of `A-Z a-z 0-9 . _ @ : + -`, the first a letter or a digit. Unique among all that is in force.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// No character at all.
    #[error("a name needs at least one character")]
    Empty,
    /// More than [`Name::MAX`] bytes.
    #[error("a name has at most 64 characters, this one {0}")]
    Long(usize),
    /// The first character is neither a letter nor a digit.
    #[error("a name starts with a letter or a digit, not with {0:?}")]
    Start(char),
    /// A character that names do not have.
    #[error("{0:?} cannot be part of a name; use letters, digits and . _ @ : + -")]
    Character(char),
}

impl Name {
    /// The longest name, in bytes.
    pub const MAX: usize = 64;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let Some(first) = text.chars().next() else { return Err(NameError::Empty) };
        if !first.is_ascii_alphanumeric() {
            return Err(NameError::Start(first));
        }
        if let Some(wrong) = text.chars().find(|c| !c.is_ascii_alphanumeric() && !"._@:+-".contains(*c)) {
            return Err(NameError::Character(wrong));
        }
        if text.len() > Self::MAX {
            return Err(NameError::Long(text.len()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for good in ["a", "9", "web", "rtp-1.2_x@y:z+", &"n".repeat(64)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        assert_eq!("".parse::<Name>(), Err(NameError::Empty));
        assert_eq!("n".repeat(65).parse::<Name>(), Err(NameError::Long(65)));
        assert_eq!("-x".parse::<Name>(), Err(NameError::Start('-')));
        assert_eq!("a b".parse::<Name>(), Err(NameError::Character(' ')));
        assert_eq!("a/b".parse::<Name>(), Err(NameError::Character('/')));
        assert_eq!("nä".parse::<Name>(), Err(NameError::Character('ä')));
    }
}
