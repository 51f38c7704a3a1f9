//! `persist`: reservations that do not depend on a running program.
//!
//! Changes go through the agent, which is the only one to write the
//! store. Queries ask the agent, too; where none runs, the files, the store
//! and the BPF programs are read instead ([`view`]).

mod add;
mod agent;
mod audience;
mod delete;
mod export;
mod import;
mod list;
mod rename;
mod set;
mod show;
pub(crate) mod view;

use clap::Subcommand;

pub(crate) use agent::connect;
pub(crate) use delete::not_exactly;

use crate::Io;

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
#[command(after_long_help = AFTER_HELP, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
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
