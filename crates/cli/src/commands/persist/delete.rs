//! `persist delete`.

use std::io::Write;

use portkeep::{
    Info, PortList, Transports,
    persistent::{Name, PersistentError, Which},
};

use super::agent::connect;
use crate::{DONE, FAILED, Io, NOTHING, args::ports::ExactPorts, reservations, with_advice};

const AFTER_HELP: &str = "\
Deletes reservations that a command created. Ports and transports must match a reservation exactly. Sockets bound from \
it keep running. Those that exist are deleted, also if others of the names do not exist. To end a reservation that a file declares, remove or mask the file and run `portkeep reload`.

Examples:
  portkeep persist delete tomcat
  portkeep persist delete --udp 5000-5019

Exit status: 3 if there is no such reservation";

/// Delete persistent reservations
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP, override_usage = "portkeep persist delete [OPTIONS] <NAME>...")]
#[command(group = clap::ArgGroup::new("which").args(["names", "tcp", "udp", "both"]).required(true))]
pub(crate) struct Args {
    /// Their names
    #[arg(value_name = "NAME")]
    names: Vec<Name>,
    #[command(flatten)]
    exact: ExactPorts,
    /// One JSON array of what was deleted
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let block = args.exact.named().map(|(ports, transports)| Which::Block { ports, transports });
    let which = args.names.into_iter().map(Which::Name).chain(block);

    let mut agent = connect(None)?;
    let mut deleted = Vec::new();
    let mut code = DONE;
    for which in which {
        match agent.delete(&which) {
            Ok(info) => deleted.push(info),
            Err(PersistentError::NotFound) => {
                io.error(match &which {
                    Which::Name(name) => format!("there is no persistent reservation {name}"),
                    Which::Block { ports, transports } => not_exactly(&agent.list()?, ports, *transports),
                });
                code = code.max(NOTHING);
            }
            // Earlier deletions are reported all the same.
            Err(error) => {
                io.error(with_advice(&error.into()));
                code = FAILED;
                break;
            }
        }
    }
    if args.json {
        io.json(&deleted)?;
    } else {
        for each in deleted {
            let (name, whom) = (each.name.as_deref().unwrap_or_default(), reservations::owner(&each));
            writeln!(io.out, "{name} is deleted; it was {}/{} for {whom}", each.ports, each.transports)?;
        }
    }
    Ok(code)
}

/// A sentence: no reservation has exactly these ports, and which reservation may have been meant.
pub(crate) fn not_exactly(declared: &[Info], ports: &PortList, transports: Transports) -> String {
    let near = declared.iter().find(|info| info.ports.overlaps(ports) && info.transports.overlaps(transports));
    let none = format!("no persistent reservation is exactly {ports}/{transports}");
    match near {
        Some(near) => {
            format!("{none}; {} is {}/{}", near.name.as_deref().unwrap_or_default(), near.ports, near.transports)
        }
        None => none,
    }
}
