//! Persistent reservations that are declared and not in force.

use std::fmt;

use portkeep::{
    PortRange, Transport, Transports,
    persistent::{Connection, Entry, PersistentError, Standing},
};
use serde::Serialize;

use crate::patience;

/// One that is not in force.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Waiting {
    name: String,
    ports: PortRange,
    transports: Transports,
    /// Its audience.
    for_whom: String,
    /// The obstacle, or the declaration it is in conflict with.
    why: String,
}

/// The agent's answer.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The declarations that wait.
    Waiting(Vec<Waiting>),
    /// It answers, but has no list for us now.
    Busy,
    /// It does not answer: it hangs, or was stopped.
    Silence,
    /// None runs, or its socket is not here (in a container, under another PORTKEEP_RUNTIME_DIR).
    NotHere,
}

/// Ask the agent.
pub(crate) fn ask() -> Heard {
    match Connection::open_within(patience::BRIEF).and_then(|mut agent| agent.list()) {
        Ok(entries) => Heard::Waiting(entries.into_iter().filter_map(Waiting::of).collect()),
        Err(PersistentError::Lost(_)) => Heard::Silence,
        Err(PersistentError::AgentAbsent { .. } | PersistentError::ConnectCall(_)) => Heard::NotHere,
        Err(_) => Heard::Busy,
    }
}

/// The declarations that wait, as far as an agent says so at once.
pub(crate) fn list() -> Vec<Waiting> {
    match ask() {
        Heard::Waiting(waiting) => waiting,
        Heard::Busy | Heard::Silence | Heard::NotHere => Vec::new(),
    }
}

impl Waiting {
    fn of(entry: Entry) -> Option<Self> {
        let Entry { declaration, standing, .. } = entry;
        let why = match standing {
            Standing::Active => return None,
            Standing::Waiting(why) | Standing::Conflict(why) => why,
        };
        Some(Self {
            name: declaration.name.to_string(),
            ports: declaration.ports,
            transports: declaration.transports,
            for_whom: declaration.who.to_string(),
            why,
        })
    }

    pub(crate) fn has(&self, transport: Transport, port: u16) -> bool {
        self.transports.contains(transport) && self.ports.contains(port)
    }
}

/// "web, 80/tcp for unit nginx.service, is not in force: 80/tcp is in use by pid 812 (nginx)".
impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, ports, transports, for_whom, why } = self;
        write!(f, "{name}, {ports}/{transports} for {for_whom}, is not in force: {why}")
    }
}
