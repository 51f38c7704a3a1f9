//! The audience of a reservation on the command line.

use std::path::Path;

use portkeep::{
    Info,
    persistent::{Account, Audience},
};

use crate::{Io, check::Known};

#[derive(Debug, clap::Args)]
#[group(id = "who", multiple = false)]
pub(super) struct For {
    /// For the processes of this user, by name or number
    ///
    /// Not for a server that binds as root and changes its user afterwards (nginx, Apache): use --unit.
    #[arg(long, help_heading = "Audience")]
    user: Option<Account>,
    /// For the processes of this group, by name or number
    #[arg(long, help_heading = "Audience")]
    group: Option<Account>,
    /// For the processes of this systemd service or scope
    #[arg(long, value_parser = unit, help_heading = "Audience")]
    unit: Option<Audience>,
    /// For the processes of this cgroup and those below it: a path below /sys/fs/cgroup, as /system.slice
    #[arg(long, value_name = "PATH", value_parser = cgroup, help_heading = "Audience")]
    cgroup: Option<Audience>,
    /// Only for administrators
    #[arg(long, help_heading = "Audience")]
    administrators: bool,
}

impl For {
    /// The audience, if one is named.
    pub(super) fn audience(&self) -> Option<Audience> {
        match (&self.user, &self.group) {
            (Some(user), _) => Some(Audience::User(user.clone())),
            (_, Some(group)) => Some(Audience::Group(group.clone())),
            _ if self.administrators => Some(Audience::Administrators),
            _ => self.unit.as_ref().or(self.cgroup.as_ref()).cloned(),
        }
    }
}

/// Warn of an audience that does not exist: with a mistake in its name the ports would be reserved for no process.
pub(super) fn warn_if_missing(info: &Info, io: &mut Io<'_>) {
    if let Some(missing) = info.audience.as_ref().and_then(|audience| Known::below(Path::new("/")).missing(audience)) {
        io.warning(format_args!("{missing} yet; the ports are reserved for it"));
    }
}

fn unit(text: &str) -> Result<Audience, String> {
    Audience::unit(text).map_err(|error| match error.help() {
        // The help is for those who write a file.
        Some(_) if text.ends_with(".socket") => {
            format!("{error}; systemd binds the ports of a socket unit, as root: use --user root")
        }
        Some(_) if text.contains('/') || text.ends_with(".slice") => format!("{error}; use --cgroup"),
        Some(help) => format!("{error}; {help}"),
        None => error.to_string(),
    })
}

fn cgroup(text: &str) -> Result<Audience, String> {
    Audience::cgroup(text).map_err(|error| match error.help() {
        Some(help) => format!("{error}; {help}"),
        None => error.to_string(),
    })
}
