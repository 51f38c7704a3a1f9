//! The `portkeep` command: `commands` has a module for each of its commands, `args` the arguments that several of them
//! have, and `render` what they print.
//!
//! Commands that are nouns (`status`, `list`, `who`) only look; those that are
//! verbs change something. [`run`] takes arguments and streams, so that tests
//! can call it in-process; [`command()`] is the table that help texts, manual
//! pages and completions are made from.
#![forbid(unsafe_code)]

mod args;
mod claim;
mod commands;
mod exit;
mod level;
mod render;
mod reservations;
mod signals;
mod survey;
mod units;
mod waiting;
mod whole_file;

use std::{
    ffi::OsString,
    io::{self, Write},
};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind};
use portkeep::persistent::{PersistentError, protocol::Reason};
use portkeep_agent as agent;
use portkeep_observe::process;

use commands::{
    acquire, adopt, check, doctor, down, excludedportrange, list, persist, portserver, release, reload,
    run::{self, into_command},
    status, up, upgrade, watch, who,
};
pub use exit::Exit;
use exit::{DONE, FAILED, NOTHING, TOO_FEW_FILES, USAGE, ran_out};
pub use render::streams::Io;

/// For `portkeep-fleet`, whose `run` treats its command as this one does.
pub mod command {
    pub use crate::{
        args::{
            help::{ADVANCED, arrange},
            patience::seconds,
            ports::{PortArgs, ports},
        },
        commands::run::{
            exit_code,
            substitute::{environment, fill_in},
        },
        render::table::write as write_table,
        signals::Forwarder,
    };
}

/// Without the empty lines that clap leaves around the usage: there are many commands.
const ON_ONE_SCREEN: &str = "{about-with-newline}{usage-heading} {usage}\nCommands:\n{subcommands}\n\n\
                             Options: -h, --help (shows more), -V, --version{after-help}";

/// Reserve ports, and have the kernel keep them
///
/// A reservation is a block of consecutive ports, or a list of such blocks. Only its owner, and processes
/// that the owner admits, can bind them. The kernel refuses all others.
#[derive(Debug, Parser)]
#[command(name = "portkeep", version, max_term_width = 100, after_long_help = args::help::of_all_commands())]
#[command(arg_required_else_help = true, infer_subcommands = false, help_template = ON_ONE_SCREEN)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

// The order of the help: first the commands that most people use, then persistent reservations, then the commands that
// bring kernel enforcement up and down, and last those that only show something.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    Run(run::Args),
    #[command(name = into_command::NAME, hide = true)]
    Become(into_command::Args),
    Acquire(acquire::Args),
    Release(release::Args),

    Persist(persist::Args),
    Adopt(adopt::Args),
    Check(check::Args),
    Reload(reload::Args),
    Excludedportrange(excludedportrange::Args),
    #[command(hide = true)]
    Netsh(excludedportrange::Netsh),

    Up(up::Args),
    Down(down::Args),
    Upgrade(upgrade::Args),
    Agent(commands::agent::Args),
    Portserver(portserver::Args),

    Doctor(doctor::Args),
    Status(status::Args),
    #[command(alias = "ls")]
    List(list::Args),
    Who(who::Args),
    Watch(watch::Args),
    /// Show the version
    #[command(hide = true)]
    Version,
}

/// The table of commands: help texts, manual pages and completions are made from it.
pub fn command() -> clap::Command {
    with_help(Cli::command().disable_help_subcommand(true))
}

/// The arguments of each command are made when it is parsed. Help texts need all of them, and more time.
fn with_help(mut table: clap::Command) -> clap::Command {
    table.build();
    table.mut_subcommands(args::help::arrange)
}

/// Run the command that `args` (the program's name first) ask for. Returns the exit status.
pub fn run(args: impl IntoIterator<Item = impl Into<OsString> + Clone>, io: &mut Io<'_>) -> u8 {
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    let is_run = args.get(1).is_some_and(|command| command == "run");
    let json = !is_run && args.iter().take_while(|word| *word != "--").any(|word| word == "--json");
    let parse =
        |table: clap::Command| table.try_get_matches_from(&args).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parse(Cli::command()) {
        Err(error) if is_help(&error) => parse(with_help(Cli::command())),
        parsed => parsed,
    };
    let cli = match cli {
        Ok(cli) => cli,
        Err(error) => {
            let text = error.render();
            let colour = io.colour && error.use_stderr() && !json;
            let text = if colour { text.ansi().to_string() } else { text.to_string() };
            // Rust's messages about numbers.
            let text = text
                .replace("invalid digit found in string", "it is not a number")
                .replace(" is not in 1..=65535", " is not a number from 1 to 65535");
            let usage = if is_run { Exit::RunFailed.code() } else { USAGE };
            let (to, code) = if error.use_stderr() { (&mut io.err, usage) } else { (&mut io.out, DONE) };
            let _ = write!(to, "{text}");
            if json && code != DONE {
                io.errors.extend(text.lines().next().map(|line| line.trim_start_matches("error: ").to_owned()));
                io.refuse(Reason::Malformed);
            }
            return code;
        }
    };
    let result = match cli.command {
        Command::Run(args) => run::run(args, io),
        Command::Become(args) => into_command::run(args, io),
        Command::Acquire(options) => acquire::run(options, &args, io),
        Command::Release(args) => release::run(args, io),
        Command::Persist(args) => persist::run(args, io),
        Command::Adopt(args) => adopt::run(args, io),
        Command::Check(args) => check::run(args, io),
        Command::Reload(args) => reload::run(args, io),
        Command::Excludedportrange(args) => excludedportrange::run(args, io),
        Command::Netsh(args) => excludedportrange::netsh(args, io),
        Command::Up(args) => up::run(args, io),
        Command::Down(args) => down::run(args, io),
        Command::Upgrade(args) => upgrade::run(args, io),
        Command::Agent(args) => commands::agent::run(args, io),
        Command::Portserver(args) => portserver::run(args, io),
        Command::Doctor(args) => doctor::run(args, io),
        Command::Status(args) => status::run(args, io),
        Command::List(args) => list::run(args, io),
        Command::Who(args) => who::run(args, io),
        Command::Watch(args) => watch::run(args, io),
        Command::Version => {
            writeln!(io.out, "portkeep {}", env!("CARGO_PKG_VERSION")).map(|()| DONE).map_err(anyhow::Error::from)
        }
    };
    let (code, reason) = match result.and_then(|code| io.out.flush().map(|()| code).map_err(Into::into)) {
        Ok(code) => (code, Exit::reason_of_status(code)),
        // `portkeep list | head` is no failure.
        Err(error) if is_broken_pipe(&error) => return DONE,
        Err(error) => {
            io.error(with_advice(&error));
            (Exit::of(&error, is_run), Exit::reason(&error))
        }
    };
    if json && code != DONE {
        io.refuse(reason);
    }
    code
}

fn is_help(error: &clap::Error) -> bool {
    matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand)
}

/// The message, and the next step if the error itself does not name one.
pub(crate) fn with_advice(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let advice = if ran_out(error) && !text.contains("ulimit") {
        TOO_FEW_FILES
    } else if matches!(error.downcast_ref(), Some(PersistentError::Lost(_))) {
        "; restart the agent (`systemctl restart portkeep`)"
    } else {
        ""
    };
    text + advice
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| match cause.downcast_ref::<io::Error>() {
        Some(error) => error.kind() == io::ErrorKind::BrokenPipe,
        None => {
            cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind)
                == Some(io::ErrorKind::BrokenPipe)
        }
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_table_of_commands_is_consistent() {
        super::command().debug_assert();
    }
}
