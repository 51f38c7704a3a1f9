//! `portkeep-fleet`: the same reserved ports on every host of a job.
//!
//! Nothing here decides which job owns a port, and nothing here keeps outsiders off. etcd decides, in one transaction
//! for each job (`arbiter`); the kernel of each host enforces (`fence`). Between them are a `daemon` on each host, and
//! the process that asks (`request`). `record` has the keys. The crate has no asynchronous code: `etcd` speaks to
//! etcd's JSON gateway with blocking calls, and each thing that waits is a thread.
#![forbid(unsafe_code)]

mod acquire;
mod arbiter;
mod ask;
mod config;
mod daemon;
mod etcd;
mod failure;
mod fence;
mod look;
mod manage;
mod memory;
mod output;
mod parts;
mod record;
mod request;
mod run;
mod search;
mod serve;
mod view;

#[doc(hidden)]
pub mod fuzz;

/// Measurements of many daemons in one process.
#[cfg(test)]
#[path = "../tests/scale/mod.rs"]
mod scale;

use std::{ffi::OsString, process::ExitCode, time::SystemTime};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind};
use portkeep::{
    Time,
    persistent::protocol::{Reason, Refused},
};
use portkeep_cli::{Exit, command::arrange};

use config::{Config, Options};
use failure::Failure;
use output::{complain, print_json};

const AFTER_HELP: &str = "\
A daemon on each host (`portkeep-fleet daemon`) reserves what etcd decides. etcd and the agent of each host must be \
running. The configuration is /etc/portkeep/fleet.toml.

Examples:
  portkeep-fleet run --hosts a,b,c --count 8 -- srun ./train
  portkeep-fleet show train42 --json";

/// Reserve the same ports on several hosts
#[derive(Debug, Parser)]
#[command(name = "portkeep-fleet", version, max_term_width = 100, after_long_help = AFTER_HELP)]
#[command(arg_required_else_help = true, infer_subcommands = false)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Acquire(acquire::Args),
    Show(look::Show),
    Wait(look::Wait),
    List(look::List),
    Release(manage::Release),
    Status(look::Status),
    Daemon(serve::Args),
    Forget(manage::Forget),
}

/// The table of commands: help texts, manual pages and completions are made from it.
pub fn command() -> clap::Command {
    let one_block = |arg: clap::Arg| arg.help("These ports, one block: 20000-20007 or 20000-20007/udp");
    let of = |name| move |table: clap::Command| table.mut_subcommand(name, |inner| inner.mut_arg("ports", one_block));
    arrange(of("acquire")(of("run")(Cli::command().disable_help_subcommand(true))))
}

/// Run the command, with the arguments of this process.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().take_while(|word| word != "--").collect();
    let has = |word: &str| words.iter().any(|found| found == word);
    let parsed = command().try_get_matches().and_then(|matches| {
        let is_run = matches.subcommand_name() == Some("run");
        Cli::from_arg_matches(&matches).map(|cli| (cli, is_run))
    });
    let (refused, is_run) = match parsed {
        Ok((cli, is_run)) => match dispatch(cli) {
            Ok(status) => return status.into(),
            Err(error) => {
                let refused = refused(&error);
                complain("error", &refused.message);
                (refused, is_run)
            }
        },
        Err(error) => {
            if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
                // Nothing can be done about an output that is closed.
                let _ = error.print();
                return ExitCode::SUCCESS;
            }
            // Rust's message for a text that is not a number.
            let text = error.to_string().replace("invalid digit found in string", "it is not a number");
            eprint!("{text}");
            let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            (Refused { reason: Reason::Malformed, message }, has("run"))
        }
    };
    if has("--json") && !is_run {
        let _ = print_json(&refused);
    }
    let status = match refused.reason {
        _ if is_run => Exit::RunFailed,
        Reason::Malformed => Exit::Usage,
        Reason::NotFound => Exit::Nothing,
        _ => Exit::Failed,
    };
    status.code().into()
}

fn dispatch(cli: Cli) -> anyhow::Result<u8> {
    let mut config = cli.options.load()?;
    if let Command::Daemon(serve::Args { host: Some(host) }) = &cli.command {
        config.host = Some(host.to_string());
    }
    if config.cluster.is_none() {
        // The cluster that this host's daemon belongs to.
        config.cluster = serve::facts(&config).map(|facts| facts.cluster).filter(|id| !id.is_empty());
    }
    let outcome = match cli.command {
        Command::Run(args) => run::run(args, &config),
        Command::Acquire(args) => acquire::run(&args, &config),
        Command::Show(args) => look::show(&args, &config),
        Command::Wait(args) => look::wait(&args, &config),
        Command::List(args) => look::list(&args, &config),
        Command::Release(args) => manage::release(&args, &config),
        Command::Status(args) => look::status(&args, &config),
        Command::Daemon(_) => serve::run(&config),
        Command::Forget(args) => manage::forget(&args, &config),
    };
    outcome.map_err(|error| since(error, &config))
}

/// If etcd does not answer a request, the message says since when it cannot be reached, as far as this host's daemon
/// knows.
fn since(error: anyhow::Error, config: &Config) -> anyhow::Error {
    let cut_off = match error.downcast_ref::<Failure>() {
        Some(failure) => failure.cut_off,
        None => matches!(error.downcast_ref(), Some(etcd::EtcdError::Unreachable { .. })),
    };
    if !cut_off {
        return error;
    }
    let known = serve::facts(config).and_then(|facts| facts.cut_off);
    let since = known.unwrap_or_else(|| Time::from(SystemTime::now()));
    let message =
        error.to_string().replacen("etcd cannot be reached", &format!("etcd cannot be reached since {since}"), 1);
    Refused { reason: Reason::Failed, message: format!("{message}; what is reserved stays reserved") }.into()
}

/// A failure as JSON has it.
fn refused(error: &anyhow::Error) -> Refused {
    if let Some(refused) = error.downcast_ref::<Refused>() {
        return refused.clone();
    }
    let reason = match (error.downcast_ref::<Failure>(), error.downcast_ref::<etcd::EtcdError>()) {
        (Some(failure), _) => failure.reason,
        (None, Some(error)) => error.reason(),
        (None, None) => Reason::Failed,
    };
    Refused { reason, message: format!("{error:#}") }
}
