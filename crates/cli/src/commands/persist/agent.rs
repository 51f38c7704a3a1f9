//! The connection to the agent, for commands that require it.

use portkeep::{
    Info,
    persistent::{Change, Connection, Name, PersistentError},
};

use crate::{args::patience, exit::refused};

/// How to declare a reservation when no agent runs.
pub(super) const INSTEAD: &str =
    "or declare it in a file of /etc/portkeep/ports.d, which the agent reads when it starts";

/// Connect, or report how to start the agent and what to do `instead`.
pub(crate) fn connect(instead: Option<&str>) -> anyhow::Result<Connection> {
    Connection::open_within(patience::of_environment()).map_err(|error| match error {
        PersistentError::AgentAbsent { .. } => {
            let instead = instead.map_or_else(String::new, |instead| format!(", {instead}"));
            let start = "start it (`systemctl start portkeep`, or `portkeep agent`)";
            refused(error.reason(), format!("{error}; {start}{instead}"))
        }
        other => other.into(),
    })
}

/// Change a reservation.
pub(super) fn changed(agent: &mut Connection, name: &Name, change: &Change) -> anyhow::Result<Info> {
    agent.change(name, change).map_err(|error| match error {
        PersistentError::NotFound => refused(error.reason(), format!("there is no persistent reservation {name}")),
        other => other.into(),
    })
}
