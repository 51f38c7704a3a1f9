//! The fleet's keys and values in etcd.
//!
//! | key | lease | value |
//! | --- | --- | --- |
//! | `cursor` | | the port after the block granted last; every decision changes it: they come one after the other |
//! | `block/START` | none; while the block rests, a lease as long as the rest | [`Block`]: the ports are not free |
//! | `job/NAME` | the requester's | [`Job`]; its creation revision distinguishes it from older decisions |
//! | `live/HOST/ID` | the requester's | [`Job`]: the host is to reserve; deleted: the job is over |
//! | `part/ID/HOST` | | [`Part`]: the host's answer. It stays until the host reports that the ports are vacant |
//! | `host/HOST` | the daemon's | [`Member`]: the daemon runs |
//! | `known/HOST` | | the host belongs to the fleet |

use portkeep::{
    PortRange, Transports,
    persistent::{Audience, protocol::Refused},
};
use serde::{Deserialize, Serialize};

use crate::etcd::{KeyValue, Prefix};

/// The keys of a fleet.
#[derive(Clone, Debug)]
pub(crate) struct Keys(pub(crate) String);

impl Keys {
    pub(crate) fn cursor(&self) -> String {
        format!("{}cursor", self.0)
    }

    pub(crate) fn blocks(&self) -> Prefix {
        Prefix(format!("{}block/", self.0))
    }

    pub(crate) fn block(&self, start: u16) -> String {
        format!("{}block/{start:05}", self.0)
    }

    pub(crate) fn jobs(&self) -> Prefix {
        Prefix(format!("{}job/", self.0))
    }

    pub(crate) fn job(&self, name: &str) -> String {
        format!("{}job/{name}", self.0)
    }

    pub(crate) fn live_of(&self, host: &str) -> Prefix {
        Prefix(format!("{}live/{host}/", self.0))
    }

    pub(crate) fn live(&self, host: &str, id: &str) -> String {
        format!("{}live/{host}/{id}", self.0)
    }

    pub(crate) fn all_parts(&self) -> Prefix {
        Prefix(format!("{}part/", self.0))
    }

    pub(crate) fn parts(&self, id: &str) -> Prefix {
        Prefix(format!("{}part/{id}/", self.0))
    }

    pub(crate) fn part(&self, id: &str, host: &str) -> String {
        format!("{}part/{id}/{host}", self.0)
    }

    pub(crate) fn hosts(&self) -> Prefix {
        Prefix(format!("{}host/", self.0))
    }

    pub(crate) fn host(&self, host: &str) -> String {
        format!("{}host/{host}", self.0)
    }

    pub(crate) fn known(&self) -> Prefix {
        Prefix(format!("{}known/", self.0))
    }

    pub(crate) fn known_host(&self, host: &str) -> String {
        format!("{}known/{host}", self.0)
    }
}

/// Ports that are not free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Block {
    pub(crate) ports: PortRange,
    /// The job's name and id.
    pub(crate) name: String,
    pub(crate) id: String,
    /// All hosts are done with it, and it rests.
    #[serde(default)]
    pub(crate) resting: bool,
    /// `release` ended the job: the process that asked for it must not take it back.
    #[serde(default)]
    pub(crate) released: bool,
}

impl Block {
    /// The block of a job that begins.
    pub(crate) fn of(job: &Job) -> Self {
        Self { ports: job.ports, name: job.name.clone(), id: job.id.clone(), resting: false, released: false }
    }
}

/// The same block on several hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) ports: PortRange,
    pub(crate) transports: Transports,
    pub(crate) audience: Audience,
    pub(crate) hosts: Vec<String>,
    /// The process that asked: "user@host, pid 812".
    pub(crate) by: String,
}

/// A host's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answer {
    /// It has not answered.
    Asked,
    /// Its kernel enforces the block.
    Granted,
    /// It reserves nothing.
    Refused,
    /// It had reserved the block, has lost it (a reboot), and another has a port of it now.
    Lost,
}

/// A host's part of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) answer: Answer,
    /// Why nothing is reserved, or why the ports of a job that is over are not vacant. The sentence names port and
    /// holder.
    pub(crate) reason: Option<Refused>,
    pub(crate) ports: PortRange,
    pub(crate) transports: Transports,
    pub(crate) name: String,
}

impl Part {
    pub(crate) fn of(job: &Job, answer: Answer, reason: Option<Refused>) -> Self {
        Self { answer, reason, ports: job.ports, transports: job.transports, name: job.name.clone() }
    }

    /// The id of the job that a part is of.
    pub(crate) fn id(found: &KeyValue) -> &str {
        found.key.rsplit('/').nth(1).unwrap_or_default()
    }
}

/// A daemon that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// Which machine it is, so that no two have one name.
    pub(crate) machine: String,
    pub(crate) version: String,
    /// Why it can reserve nothing at present.
    pub(crate) obstacle: Option<String>,
}
