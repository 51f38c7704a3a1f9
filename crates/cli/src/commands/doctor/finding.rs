//! The input and the output of a check.

use std::path::Path;

use portkeep::Info;
use portkeep_observe::{Facts, process};
use serde::Serialize;

use crate::{args::sources::Sources, commands::status, reservations};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// Something does not work.
    Error,
    /// Something may not work.
    Warning,
    /// Something to know.
    Note,
}

/// Something that was found, with its remedy.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    pub(super) message: String,
    pub(super) help: Option<String>,
}

impl Finding {
    pub(super) fn new(severity: Severity, message: impl Into<String>) -> Self {
        Self { severity, message: message.into(), help: None }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// The findings of a check, or why it could not look.
pub(super) type Findings = Result<Vec<Finding>, String>;

/// Why something was not examined: "requires root".
pub(super) fn requires_root() -> String {
    format!("requires {}", process::lacks().unwrap_or("root"))
}

/// All that the checks look at, gathered once.
pub(super) struct Examined<'a> {
    pub(super) sources: &'a Sources,
    pub(super) status: status::Status,
    /// The reservations that can be seen, of all namespaces.
    pub(super) reserved: Vec<Info>,
    /// All that is declared, in force or not.
    pub(super) declared: Vec<Info>,
    pub(super) facts: Facts,
}

impl Examined<'_> {
    pub(super) fn root(&self) -> &Path {
        self.sources.root()
    }

    /// A fact of kernel enforcement that only root can read; `None` if it is not up, an error if it is hidden.
    pub(super) fn of_root<'a, T>(&self, read: &'a Option<T>) -> Result<Option<&'a T>, String> {
        if read.is_none() && self.status.up != Some(false) { Err(requires_root()) } else { Ok(read.as_ref()) }
    }

    /// Reservations of this namespace, and declarations that are not in force, each once.
    pub(super) fn all(&self) -> impl Iterator<Item = &Info> {
        let own = portkeep_kernel::netns::current_cookie().unwrap_or_default();
        let here = self.reserved.iter().filter(move |info| reservations::is_here(info, own));
        here.chain(self.declared.iter().filter(|info| info.state != portkeep::State::Active))
    }
}
