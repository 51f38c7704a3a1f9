//! A store of reservations that commands created. If it cannot be read, the reservations that it may contain are not
//! changed.

use portkeep::persistent::protocol::{Reason, Refused};
use portkeep_persist::{Store, StoreError, Stored};

use crate::refused::{chain, refused};

#[derive(Debug)]
pub(super) enum StoreSlot {
    Open(Box<Store>),
    Closed {
        why: String,
        /// For example a full disk: the store may open later. A damaged store will not.
        passing: bool,
    },
}

impl StoreSlot {
    pub(super) fn of(opened: Result<Store, StoreError>) -> Self {
        match opened {
            Ok(store) => Self::Open(Box::new(store)),
            Err(error) => {
                let text = chain(&error);
                tracing::error!(reason = text, "what commands created cannot be read; it is left as it is");
                let passing =
                    matches!(error, StoreError::Full { .. } | StoreError::Io { .. } | StoreError::InUse { .. });
                Self::Closed { why: text, passing }
            }
        }
    }

    /// Try again what failed for a temporary reason. True if it is open now and was not before.
    pub(super) fn open_again(&mut self, open: impl FnOnce() -> Result<Store, StoreError>) -> bool {
        let Self::Closed { passing: true, .. } = self else { return false };
        let Ok(store) = open() else { return false };
        tracing::info!("what commands created can be read again");
        *self = Self::Open(Box::new(store));
        true
    }

    pub(super) fn list(&self) -> Vec<Stored> {
        match self {
            Self::Open(store) => store.list().into_iter().cloned().collect(),
            Self::Closed { .. } => Vec::new(),
        }
    }

    pub(super) fn store(&mut self) -> Result<&mut Store, Refused> {
        match self {
            Self::Open(store) => Ok(store),
            Self::Closed { why, .. } => Err(refused(Reason::Store, why.clone())),
        }
    }

    /// Why it cannot be read; `None` if it can.
    pub(super) fn why_closed(&self) -> Option<&str> {
        match self {
            Self::Open(_) => None,
            Self::Closed { why, .. } => Some(why),
        }
    }
}
