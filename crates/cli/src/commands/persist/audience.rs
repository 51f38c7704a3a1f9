//! The audience and the description of a reservation on the command line.

use std::path::Path;

use portkeep::persistent::{Account, Audience, AudienceError, Correction};
use portkeep_core::persistent::check_description;

use crate::{
    Io,
    commands::check::{Known, binds_as_root},
};

#[derive(Debug, clap::Args)]
pub(super) struct For {
    /// For the processes of this user, by name or number
    ///
    /// Not for a server that binds as root and changes its user afterwards (nginx, Apache): use --unit. --user, --group and
    /// --unit can be given several times and together, four in all.
    #[arg(long, help_heading = "Audience")]
    user: Vec<Account>,
    /// For the processes of this group, by name or number
    #[arg(long, help_heading = "Audience")]
    group: Vec<Account>,
    /// For the processes of this systemd service or scope
    #[arg(long, value_parser = unit, help_heading = "Audience")]
    unit: Vec<Audience>,
    /// For the processes of this cgroup and those below it: a path below /sys/fs/cgroup, as /system.slice
    #[arg(long, value_name = "PATH", value_parser = cgroup, help_heading = "Audience")]
    #[arg(conflicts_with_all = ["user", "group", "unit"])]
    cgroup: Option<Audience>,
    /// Only for administrators
    #[arg(long, conflicts_with_all = ["user", "group", "unit", "cgroup"], help_heading = "Audience")]
    administrators: bool,
}

impl For {
    /// The audience, if the options name one. The error is a sentence: the options cannot be combined into one
    /// audience.
    pub(super) fn audience(&self) -> Result<Option<Audience>, String> {
        let accounts =
            self.user.iter().cloned().map(Audience::User).chain(self.group.iter().cloned().map(Audience::Group));
        let named: Vec<Audience> = accounts.chain(self.unit.iter().chain(&self.cgroup).cloned()).collect();
        if named.is_empty() {
            return Ok(self.administrators.then_some(Audience::Administrators));
        }
        Audience::any_of(named).map(Some).map_err(|error| error.to_string())
    }
}

/// Warn of an audience that does not exist: if its name has a mistake, no process can use the ports. And note that a
/// server that binds as root is not in an audience of other users.
pub(super) fn advise(audience: Option<&Audience>, io: &mut Io<'_>) {
    let Some(audience) = audience else { return };
    if let Some(missing) = Known::below(Path::new("/")).missing(audience) {
        io.warning(format_args!("{missing} yet; the ports are reserved for it"));
    }
    if let Some(note) = binds_as_root(audience) {
        io.note(format_args!("{note}; for such a server use --unit"));
    }
}

fn unit(text: &str) -> Result<Audience, String> {
    Audience::unit(text).map_err(corrected)
}

fn cgroup(text: &str) -> Result<Audience, String> {
    Audience::cgroup(text).map_err(corrected)
}

/// One line for listings.
pub(super) fn description(text: &str) -> Result<String, String> {
    check_description(text).map(|()| text.to_owned())
}

fn corrected(error: AudienceError) -> String {
    match error.correction() {
        Some(Correction::Root) => {
            format!("{error}; systemd binds the ports of a socket unit, as root: use --user root")
        }
        Some(Correction::Cgroup(_)) => format!("{error}; use --cgroup"),
        Some(correction) => format!("{error}; {correction}"),
        None => error.to_string(),
    }
}
