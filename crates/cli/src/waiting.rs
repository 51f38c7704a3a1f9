//! Persistent reservations that are declared and not in force.

use portkeep::{
    Info, State,
    persistent::{Connection, PersistentError},
};

use crate::args::patience;

/// The agent's answer.
#[derive(Debug)]
pub(crate) enum Heard {
    /// All declarations, in force or not.
    Declared(Vec<Info>),
    /// It answers, but has no list for us now.
    Busy,
    /// It does not answer: it hangs, or was stopped.
    Silence,
    /// None runs.
    Absent,
    /// Its socket cannot be reached from here.
    Unreachable,
}

/// Ask the agent.
pub(crate) fn ask() -> Heard {
    match Connection::open_within(patience::BRIEF).and_then(|mut agent| agent.list()) {
        Ok(declared) => Heard::Declared(declared),
        Err(PersistentError::Lost(_)) => Heard::Silence,
        Err(PersistentError::AgentAbsent { .. }) => Heard::Absent,
        Err(PersistentError::ConnectCall(_)) => Heard::Unreachable,
        Err(_) => Heard::Busy,
    }
}

impl Heard {
    /// All declarations, if the agent reported them.
    pub(crate) fn declared(&self) -> &[Info] {
        if let Self::Declared(declared) = self { declared } else { &[] }
    }

    /// The declarations that are not in force, if the agent reported them.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &Info> {
        self.declared().iter().filter(|info| info.state != State::Active)
    }

    /// If the agent hangs: a sentence that says so, with the facts that are therefore missing.
    pub(crate) fn silence(&self) -> Option<String> {
        matches!(self, Self::Silence).then(|| {
            format!(
                "the agent does not answer (waited {} s): declarations that are not in force are missing, and so are the \
                 names, audiences and origins that only it knows; restart it (`systemctl restart portkeep`)",
                patience::BRIEF.as_secs()
            )
        })
    }
}

/// "web, 80/tcp for unit nginx.service, is not in force: 80/tcp is in use by pid 812 (nginx)".
pub(crate) fn sentence(info: &Info) -> String {
    let (name, why) = (info.name.as_deref().unwrap_or_default(), info.reason.as_deref().unwrap_or_default());
    let audience = info.audience.as_ref().map_or_else(String::new, |audience| format!(" for {audience}"));
    format!("{name}, {}/{}{audience}, is not in force: {why}", info.ports, info.transports)
}
