//! The parts of jobs that a host has, and what it does next with each.

use std::collections::BTreeMap;

use portkeep::{
    PortRange, Transports,
    persistent::protocol::{Reason, Refused},
};

use crate::{
    fence::{Fence, Reserved},
    record::{Answer, Job},
};

/// A host's part of a job.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) name: String,
    pub(crate) ports: PortRange,
    pub(crate) transports: Transports,
    /// The decision.
    pub(crate) revision: i64,
    pub(crate) stage: Stage,
    /// The job is over.
    pub(crate) over: bool,
    /// The socket that the end of the part waits for, as last reported.
    pub(crate) waits_for: Option<String>,
}

/// How far a part has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
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
pub(crate) struct Parts<F> {
    pub(crate) fence: F,
    pub(crate) held: BTreeMap<String, Held>,
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

impl<F: Fence> Parts<F> {
    pub(crate) fn new(fence: F, range: PortRange) -> Self {
        Self { fence, held: BTreeMap::new(), latest: vec![0; 1 << 16], range }
    }

    /// Reserve what a decision grants. The answer, with the reason of a refusal.
    pub(crate) fn reserve(&mut self, job: &Job, revision: i64) -> (Answer, Option<Refused>) {
        let reserved = self.try_to_reserve(job, revision);
        let held = Held {
            name: job.name.clone(),
            ports: job.ports,
            transports: job.transports,
            revision,
            stage: match &reserved {
                Ok(()) => Stage::Reserved,
                Err(Refused { reason: Reason::NoAgent, .. }) => Stage::Unanswered,
                Err(_) => Stage::Refused,
            },
            over: false,
            waits_for: None,
        };
        self.held.insert(job.id.clone(), held);
        match reserved {
            Ok(()) => (Answer::Granted, None),
            Err(reason) => (Answer::Refused, Some(reason)),
        }
    }

    fn try_to_reserve(&mut self, job: &Job, revision: i64) -> Result<(), Refused> {
        let Job { ports, .. } = job;
        let refused = |message| Err(Refused { reason: Reason::Failed, message });
        if !self.range.contains(ports.start()) || !self.range.contains(ports.last()) {
            return refused(format!("ports {ports} are not within the range {} of this host's fleet.toml", self.range));
        }
        let latest = ports.iter().map(|port| self.latest[usize::from(port)]).max().unwrap_or_default();
        if revision < latest {
            return refused(format!(
                "the decision is older ({revision}) than one that this host has acted on ({latest})"
            ));
        }
        self.fence.reserve(job, revision)?;
        self.saw(*ports, revision);
        Ok(())
    }

    /// Note the decision as the latest one of its ports.
    fn saw(&mut self, ports: PortRange, revision: i64) {
        for port in ports {
            let latest = &mut self.latest[usize::from(port)];
            *latest = revision.max(*latest);
        }
    }

    /// A part of an earlier daemon, or of an earlier connection.
    pub(crate) fn adopt(&mut self, id: &str, reserved: &Reserved, stage: Stage, over: bool) {
        let Reserved { name, revision, ports, transports } = reserved.clone();
        if stage == Stage::Reserved {
            self.saw(ports, revision);
        }
        let held = Held { name, ports, transports, revision, stage, over, waits_for: None };
        self.held.insert(id.to_owned(), held);
    }

    /// Note that the job is over. Returns whether the host has a part of it.
    pub(crate) fn over(&mut self, id: &str) -> bool {
        self.held.get_mut(id).map(|held| held.over = true).is_some()
    }

    /// Parts that are to end.
    pub(crate) fn ending(&self) -> Vec<String> {
        self.held.iter().filter(|(_, held)| held.over).map(|(id, _)| id.clone()).collect()
    }

    /// A step towards the end of a part. While a process of the job still uses a port, outsiders are kept off all of them.
    pub(crate) fn end(&mut self, id: &str) -> Ending {
        let Some(held) = self.held.get_mut(id) else { return Ending::Vacant };
        let fence = &mut self.fence;
        let mut step = || -> Result<(), String> {
            let Held { name, revision, ports, transports, stage, .. } = held.clone();
            let reserved = Reserved { name, revision, ports, transports };
            let mut vacant = || fence.in_use(ports, transports)?.map_or(Ok(()), Err);
            match stage {
                Stage::Refused => Ok(()),
                // No process of the job can have had a port.
                Stage::Unanswered => fence.release(&reserved),
                Stage::Released => vacant(),
                Stage::Reserved => {
                    vacant()?;
                    fence.release(&reserved)?;
                    held.stage = Stage::Released;
                    // A socket may have been bound in between.
                    fence.in_use(ports, transports)?.map_or(Ok(()), Err)
                }
            }
        };
        match step() {
            Ok(()) => Ending::Vacant,
            Err(reason) => Ending::Waits(reason),
        }
    }
}
