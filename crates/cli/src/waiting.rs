//! Persistent reservations that are declared and not in force.

use portkeep::{
    Info, State,
    persistent::{Connection, PersistentError},
};

use crate::args::patience;

/// The agent's answer.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The declarations that wait.
    Waiting(Vec<Info>),
    /// It answers, but has no list for us now.
    Busy,
    /// It does not answer: it hangs, or was stopped.
    Silence,
    /// None runs, or its socket is not here (in a container, under another PORTKEEP_RUNTIME_DIR).
    NotHere,
}

/// All declarations, in force or not, as the agent reports them.
pub(crate) fn ask_for_all() -> Result<Vec<Info>, PersistentError> {
    Connection::open_within(patience::BRIEF)?.list()
}

/// Ask the agent.
pub(crate) fn ask() -> Heard {
    match ask_for_all() {
        Ok(declared) => Heard::Waiting(declared.into_iter().filter(|info| info.state != State::Active).collect()),
        Err(PersistentError::Lost(_)) => Heard::Silence,
        Err(PersistentError::AgentAbsent { .. } | PersistentError::ConnectCall(_)) => Heard::NotHere,
        Err(_) => Heard::Busy,
    }
}

/// The declarations that wait, if an agent reports them at once.
pub(crate) fn list() -> Vec<Info> {
    match ask() {
        Heard::Waiting(waiting) => waiting,
        Heard::Busy | Heard::Silence | Heard::NotHere => Vec::new(),
    }
}

/// "web, 80/tcp for unit nginx.service, is not in force: 80/tcp is in use by pid 812 (nginx)".
pub(crate) fn sentence(info: &Info) -> String {
    let (name, why) = (info.name.as_deref().unwrap_or_default(), info.reason.as_deref().unwrap_or_default());
    let audience = info.audience.as_ref().map_or_else(String::new, |audience| format!(" for {audience}"));
    format!("{name}, {}/{}{audience}, is not in force: {why}", info.ports, info.transports)
}
