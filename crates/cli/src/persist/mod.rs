//! `persist`: reservations that stand whether or not somebody runs.
//!
//! Changes go through the agent, which is the only one to write the
//! store. Queries ask the agent, too; where none runs, the files, the store
//! and the BPF programs are read instead ([`view`]).

mod add;
mod audience;
mod delete;
mod export;
mod import;
mod list;
mod rename;
mod set;
mod show;
pub(crate) mod view;

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use clap::Subcommand;
use portkeep::{
    Info,
    persistent::{Change, Connection, Name, PersistentError},
};
use portkeep_core::persistent::check_description;

pub(crate) use delete::not_exactly;

use crate::{Io, exit::refused, patience};

const AFTER_HELP: &str = "\
Such a reservation belongs to a service, a user, a group or a cgroup, not to a process. It is in force from boot until it is \
deleted. No other process gets its ports while its service is stopped, restarted or upgraded. Programs need no change.

It can also be declared in a file of /etc/portkeep/ports.d, which is the better way for packages and for the configuration \
of a machine; see portkeep-ports.d(5).

Examples:
  portkeep persist add 80,443 --name web --unit nginx.service
  portkeep persist list
  portkeep persist show web
  portkeep persist delete web
  portkeep persist export > reservations.toml";

/// Reserve ports permanently for a service, user or group
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Add(add::Args),
    #[command(aliases = ["remove", "rm"])]
    Delete(delete::Args),
    Rename(rename::Args),
    Set(set::Args),
    #[command(alias = "ls")]
    List(list::Args),
    Show(show::Args),
    Export(export::Args),
    Import(import::Args),
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    match args.command {
        Command::Add(args) => add::run(args, io),
        Command::Delete(args) => delete::run(args, io),
        Command::Rename(args) => rename::run(&args, io),
        Command::Set(args) => set::run(&args, io),
        Command::List(args) => list::run(args, io),
        Command::Show(args) => show::run(args, io),
        Command::Export(args) => export::run(args, io),
        Command::Import(args) => import::run(args, io),
    }
}

/// Where to write what should be reserved, where no agent can be asked to.
const INSTEAD: &str = "or declare it in a file of /etc/portkeep/ports.d, which the agent reads when it starts";

/// A connection to the agent, for what cannot be done without.
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
fn changed(agent: &mut Connection, name: &Name, change: &Change) -> anyhow::Result<Info> {
    agent.change(name, change).map_err(|error| match error {
        PersistentError::NotFound => refused(error.reason(), format!("there is no persistent reservation {name}")),
        other => other.into(),
    })
}

fn description(text: &str) -> Result<String, String> {
    check_description(text).map(|()| text.to_owned())
}

/// All of it or nothing: a file that is there stays as it is until the new one is whole on the disk.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let found = fs::metadata(path);
    if found.as_ref().is_ok_and(|found| !found.is_file()) {
        // A device or a FIFO has no half.
        return fs::write(path, text);
    }
    // Not the link to it.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut unfinished = path.clone().into_os_string();
    unfinished.push(".new");
    let written = File::create(&unfinished).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        if let Ok(found) = found {
            file.set_permissions(found.permissions())?;
        }
        file.sync_all()?;
        fs::rename(&unfinished, &path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}
