//! Events, which the agent reports as they come.

use std::fmt;

use portkeep_core::{PortList, Time, Transports};
use serde::{Deserialize, Serialize};

use crate::{Info, Process};

/// The kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum EventKind {
    /// A reservation came into force.
    Granted,
    /// A request for particular ports was not granted.
    Denied,
    /// A reservation ended.
    Ended,
    /// The bind of an outsider was refused.
    Refused,
    /// A bind to port 0 failed, because every port of the private ephemeral range is in use.
    Exhausted,
}

/// As JSON and the journal have it.
impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Granted => "granted",
            Self::Denied => "denied",
            Self::Ended => "ended",
            Self::Refused => "refused",
            Self::Exhausted => "exhausted",
        })
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub when: Time,
    /// The kind.
    pub what: EventKind,
    /// The ports of the reservation, or the port refused; host byte order.
    #[serde(flatten, with = "crate::info::list")]
    pub ports: PortList,
    /// The transports.
    pub transports: Transports,
    /// Cookie of the network namespace.
    pub netns: u64,
    /// The process that did it; `None` if it is not known.
    pub process: Option<Process>,
    /// The reservation it is about. Of one that has ended only the block and the owner process are known.
    pub reservation: Option<Info>,
    /// How many events of the same kind and process before this one were not reported.
    pub unreported: u32,
    /// All of it as a sentence.
    pub message: String,
}
