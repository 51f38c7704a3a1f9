//! The parts of jobs that a host has, and what it does next with each.

use std::collections::BTreeMap;

use portkeep::{
    PortRange,
    persistent::protocol::{Reason, Refused},
};

use crate::{
    fence::{Fence, Reserved},
    record::{Answer, Job},
};

/// A host's part of a job.
#[derive(Clone, Debug)]
pub(crate) struct LocalPart {
    pub(crate) reserved: Reserved,
    pub(crate) stage: PartStage,
    /// The job is over.
    pub(crate) over: bool,
    /// The socket that the end of the part waits for, as last reported.
    pub(crate) waits_for: Option<String>,
}

/// How far a part has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PartStage {
    /// Nothing was reserved.
    Refused,
    /// The agent was asked and has not answered, so it may be reserved.
    Unanswered,
    /// The kernel enforces it.
    Reserved,
    /// Its reservation has ended. A process of the job may still have a port.
    Released,
}

/// The parts by the ids of their jobs, and the fence.
pub(crate) struct LocalParts<F> {
    pub(crate) fence: F,
    pub(crate) held: BTreeMap<String, LocalPart>,
    /// For each port the latest decision that this host has acted on.
    latest: Vec<i64>,
    range: PortRange,
}

/// The result of a step towards the end of a part.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Nothing is reserved, and no socket is bound.
    Vacant,
    /// Not yet, because of this.
    Waits(String),
}

impl<F: Fence> LocalParts<F> {
    pub(crate) fn new(fence: F, range: PortRange) -> Self {
        Self { fence, held: BTreeMap::new(), latest: vec![0; 1 << 16], range }
    }

    /// Reserve what a decision grants. The answer, with the reason of a refusal.
    pub(crate) fn reserve(&mut self, job: &Job, revision: i64) -> (Answer, Option<Refused>) {
        let result = self.try_to_reserve(job, revision);
        let stage = match &result {
            Ok(()) => PartStage::Reserved,
            Err(Refused { reason: Reason::NoAgent, .. }) => PartStage::Unanswered,
            Err(_) => PartStage::Refused,
        };
        let Job { name, ports, transports, .. } = job.clone();
        self.adopt(&job.id, &Reserved { name, revision, ports, transports }, stage, false);
        match result {
            Ok(()) => (Answer::Granted, None),
            Err(reason) => (Answer::Refused, Some(reason)),
        }
    }

    fn try_to_reserve(&mut self, job: &Job, revision: i64) -> Result<(), Refused> {
        let Job { ports, .. } = job;
        let refused = |message| Err(Refused { reason: Reason::Failed, message });
        if !self.range.contains(ports.start()) || !self.range.contains(ports.last()) {
            return refused(format!(
                "ports {ports} are not within `range` of this host's fleet.toml, {}; all hosts require the same range",
                self.range
            ));
        }
        let latest = ports.iter().map(|port| self.latest[usize::from(port)]).max().unwrap_or_default();
        if revision < latest {
            return refused(format!(
                "ports {ports}: this decision (revision {revision} of etcd) is older than one that this host has acted \
                 on ({latest}); request the ports again"
            ));
        }
        self.fence.reserve(job, revision)
    }

    /// Note a part: of this daemon, of an earlier one, or of an earlier connection. If it is reserved, its decision is
    /// the latest one of its ports.
    pub(crate) fn adopt(&mut self, id: &str, reserved: &Reserved, stage: PartStage, over: bool) {
        if stage == PartStage::Reserved {
            for port in reserved.ports {
                let latest = &mut self.latest[usize::from(port)];
                *latest = reserved.revision.max(*latest);
            }
        }
        let reserved = reserved.clone();
        self.held.insert(id.to_owned(), LocalPart { reserved, stage, over, waits_for: None });
    }

    /// Note that the job is over. Returns whether the host has a part of it.
    pub(crate) fn over(&mut self, id: &str) -> bool {
        self.held.get_mut(id).map(|held| held.over = true).is_some()
    }

    /// Parts that are to end.
    pub(crate) fn ending(&self) -> Vec<String> {
        self.held.iter().filter(|(_, held)| held.over).map(|(id, _)| id.clone()).collect()
    }

    /// A step towards the end of a part. While a process of the job still uses a port, outsiders are kept off all of
    /// them.
    pub(crate) fn end(&mut self, id: &str) -> Ending {
        let Some(held) = self.held.get_mut(id) else { return Ending::Vacant };
        let fence = &mut self.fence;
        let mut step = || -> Result<(), String> {
            let reserved = &held.reserved;
            let vacant = |fence: &mut F| fence.in_use(reserved.ports, reserved.transports)?.map_or(Ok(()), Err);
            match held.stage {
                PartStage::Refused => Ok(()),
                // No process of the job can have had a port.
                PartStage::Unanswered => fence.release(reserved),
                PartStage::Released => vacant(fence),
                PartStage::Reserved => {
                    vacant(fence)?;
                    fence.release(reserved)?;
                    held.stage = PartStage::Released;
                    // A socket may have been bound in between.
                    vacant(fence)
                }
            }
        };
        match step() {
            Ok(()) => Ending::Vacant,
            Err(reason) => Ending::Waits(reason),
        }
    }
}
