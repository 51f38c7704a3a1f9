//! An entry of the store.

use portkeep_core::Time;
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use crate::{Declaration, Declared, Origin};

/// A declaration that a command created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stored {
    /// The declaration.
    pub declaration: Declaration,
    /// The user whose command it was.
    pub by_uid: u32,
    /// When, in seconds since 1970.
    pub created: u64,
}

impl Stored {
    /// As [`merge`](crate::merge()) requires it, for an entry of the store that survives reboots.
    pub fn persistent(self) -> Declared {
        self.declared(false)
    }

    /// As [`merge`](crate::merge()) requires it, for an entry of the store that lives until the next reboot.
    pub fn active(self) -> Declared {
        self.declared(true)
    }

    fn declared(self, until_reboot: bool) -> Declared {
        let Self { declaration, by_uid, created } = self;
        Declared {
            declaration,
            origin: Origin::Command { uid: by_uid, created: Time::from_unix(created), until_reboot },
        }
    }

    /// Refuse an entry that would be invalid or different when it is read again. The fields of a declaration are
    /// public, so they can have any value.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let again = serde_json::to_vec(self).and_then(|json| serde_json::from_slice::<Self>(&json));
        match again {
            Ok(again) if again == *self => Ok(()),
            Ok(_) => Err(StoreError::Invalid("a name of digits only is a number".into())),
            Err(error) => Err(StoreError::Invalid(error.to_string())),
        }
    }
}
