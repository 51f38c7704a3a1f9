//! The local half: the kernel of a host keeps outsiders off the ports, whatever etcd says.

use std::time::Duration;

use portkeep::{
    Info, PortRange, QueryError, State, Transports,
    persistent::{
        Connection, Lifetime, Name, PersistentError, Proposal, Which,
        protocol::{Reason, Refused},
    },
};
use portkeep_observe::usage::{Usage, sentence};

use crate::record::Job;

/// The names of the fleet's reservations begin with this.
const MARK: &str = "fleet:";
/// The longest wait for the agent.
const PATIENCE: Duration = Duration::from_secs(10);

/// A block that is reserved here for a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reserved {
    pub(crate) name: String,
    /// The decision that it was made by.
    pub(crate) revision: i64,
    pub(crate) ports: PortRange,
    pub(crate) transports: Transports,
}

/// Keeps outsiders off. Daemons use [`Kernel`]; the scale test has one that only records.
pub(crate) trait Fence: Send {
    /// Why nothing can be reserved here; `None`: it is possible.
    fn obstacle(&mut self) -> Option<String>;
    /// Reserve the job's block, or say why not: the port and its holder.
    fn reserve(&mut self, job: &Job, revision: i64) -> Result<(), Refused>;
    /// The reservations of jobs that the kernel enforces here. An error: they are not known.
    fn reserved(&mut self) -> Result<Vec<Reserved>, String>;
    /// End a reservation. If there is none, it has ended already, and this succeeds.
    fn release(&mut self, reserved: &Reserved) -> Result<(), String>;
    /// Which socket is bound to a port of the block, in a sentence.
    fn in_use(&mut self, ports: PortRange, transports: Transports) -> Result<Option<String>, String>;
}

/// Reservations of the agent that last until the reboot. So they outlive this daemon, and a host that boots has none.
#[derive(Debug)]
pub(crate) struct Kernel;

fn label(name: &str, revision: i64) -> Result<Name, String> {
    format!("{MARK}{name}@{revision}").parse().map_err(|error| format!("{name:?} is not a valid name: {error}"))
}

impl Kernel {
    fn agent() -> Result<Connection, String> {
        Connection::open_within(PATIENCE).map_err(|error| error.to_string())
    }

    fn of(info: &Info) -> Option<Reserved> {
        let (name, revision) = info.name.as_deref()?.strip_prefix(MARK)?.rsplit_once('@')?;
        let (revision, ports) = (revision.parse().ok()?, info.ports.as_block()?);
        Some(Reserved { name: name.to_owned(), revision, ports, transports: info.transports })
    }
}

impl Fence for Kernel {
    fn obstacle(&mut self) -> Option<String> {
        match portkeep::version() {
            Err(error) => Some(error.to_string()),
            Ok(version) if !version.agent => Some("the agent is not running; start portkeep.service".into()),
            Ok(_) => None,
        }
    }

    fn reserve(&mut self, job: &Job, revision: i64) -> Result<(), Refused> {
        if let Some(message) = self.obstacle() {
            return Err(Refused { reason: Reason::NotUp, message });
        }
        let name = label(&job.name, revision).map_err(|message| Refused { reason: Reason::Malformed, message })?;
        let mut proposal = Proposal::new(name.clone(), job.ports, job.transports).audience(job.audience.clone());
        proposal.description = format!("of the fleet, for {}", job.by);
        let refused = |error: PersistentError| {
            // This command has no such option.
            let message = error.to_string().replace("; if the reservation is for this process, add --around", "");
            Refused { reason: error.reason(), message }
        };
        let info = Connection::open_within(PATIENCE)
            .and_then(|mut agent| agent.create(&proposal, Lifetime::UntilReboot))
            .map_err(refused)?;
        if info.state == State::Active {
            return Ok(());
        }
        // This host does not know the user, and the agent would wait until it does.
        let message = info
            .reason
            .unwrap_or_else(|| format!("the agent has not put the reservation into force: it is {}", info.state));
        Connection::open_within(PATIENCE).and_then(|mut agent| agent.delete(&Which::Name(name))).map_err(refused)?;
        Err(Refused { reason: Reason::NotFound, message })
    }

    fn reserved(&mut self) -> Result<Vec<Reserved>, String> {
        if matches!(portkeep::version(), Err(QueryError::KernelAbsent)) {
            return Ok(Vec::new());
        }
        Ok(Self::agent()?.list().map_err(|error| error.to_string())?.iter().filter_map(Self::of).collect())
    }

    fn release(&mut self, reserved: &Reserved) -> Result<(), String> {
        match Self::agent()?.delete(&Which::Name(label(&reserved.name, reserved.revision)?)) {
            Ok(_) | Err(PersistentError::NotFound) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn in_use(&mut self, ports: PortRange, transports: Transports) -> Result<Option<String>, String> {
        let usage =
            Usage::bound(&[(ports, transports)]).map_err(|error| format!("the sockets cannot be listed: {error}"))?;
        let found = usage.ports.values().find(|found| !found.bound_by.is_empty());
        Ok(found.map(|found| sentence(found.transport, found.port, &found.bound_by)))
    }
}
