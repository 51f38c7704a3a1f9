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
    /// It had been reserved and is not any more.
    pub(crate) lost: bool,
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
        self.held.insert(id.to_owned(), LocalPart { reserved, stage, over, lost: false, waits_for: None });
    }

    /// Whether the kernel enforces all that it is to enforce. While the agent does not answer, what is reserved stays so.
    pub(crate) fn complete(&mut self) -> bool {
        let Ok(reserved) = self.fence.reserved() else { return true };
        self.held.values().filter(|held| !held.over).all(|held| {
            let here = || reserved.iter().any(|here| here.revision == held.reserved.revision);
            !held.lost && (held.stage != PartStage::Reserved || here())
        })
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

#[cfg(test)]
mod tests {
    use portkeep::persistent::Audience;

    use portkeep::Transports;

    use super::*;

    /// Reserves all that it is asked for.
    #[derive(Default)]
    struct Willing(Vec<Reserved>);

    impl Fence for Willing {
        fn obstacle(&mut self) -> Option<String> {
            None
        }

        fn reserve(&mut self, job: &Job, revision: i64) -> Result<(), Refused> {
            let Job { name, ports, transports, .. } = job.clone();
            self.0.push(Reserved { name, revision, ports, transports });
            Ok(())
        }

        fn reserved(&mut self) -> Result<Vec<Reserved>, String> {
            Ok(self.0.clone())
        }

        fn release(&mut self, reserved: &Reserved) -> Result<(), String> {
            self.0.retain(|here| here != reserved);
            Ok(())
        }

        fn in_use(&mut self, _: PortRange, _: Transports) -> Result<Option<String>, String> {
            Ok(None)
        }
    }

    fn job(id: &str, start: u16) -> Job {
        Job {
            name: id.into(),
            id: id.into(),
            ports: PortRange::new(start, 4).unwrap(),
            transports: Transports::Tcp,
            audience: Audience::User(portkeep::persistent::Account::Id(0)),
            hosts: vec!["a".into()],
            by: String::new(),
        }
    }

    #[test]
    fn f3_a_decision_older_than_one_for_the_same_port_is_refused() {
        let mut parts = LocalParts::new(Willing::default(), PortRange::new(20000, 100).unwrap());
        assert_eq!(parts.reserve(&job("new", 20000), 10).0, Answer::Granted);
        // That the newer one has ended does not help the older one.
        parts.over("new");
        assert_eq!(parts.end("new"), Ending::Vacant);
        let (answer, reason) = parts.reserve(&job("old", 20003), 5);
        assert_eq!(answer, Answer::Refused);
        assert!(
            reason.unwrap().message.contains("(revision 5 of etcd) is older than one that this host has acted on (10)")
        );
        assert!(parts.fence.0.is_empty());
        assert_eq!(parts.reserve(&job("elsewhere", 20004), 5).0, Answer::Granted);
    }

    #[test]
    fn f8_a_part_whose_reservation_is_gone_is_noticed() {
        let mut parts = LocalParts::new(Willing::default(), PortRange::new(20000, 100).unwrap());
        parts.reserve(&job("one", 20000), 10);
        assert!(parts.complete());
        parts.fence.0.clear();
        assert!(!parts.complete());
    }
}
