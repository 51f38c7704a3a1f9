//! Why a request of an administrator is refused.

use portkeep::persistent::protocol::{Reason, Refused};

pub(super) fn refused(reason: Reason, message: impl Into<String>) -> Refused {
    Refused { reason, message: message.into() }
}

/// A failure of the agent or of the system below it.
pub(super) fn failed(error: impl Into<anyhow::Error>) -> Refused {
    refused(Reason::Failed, format!("{:#}", error.into()))
}

/// The message, with its causes.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    anyhow::Chain::new(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
