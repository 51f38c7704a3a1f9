//! `excludedportrange`: netsh's words and netsh's table, for people who come from Windows.
//!
//! An exclusion that an administrator adds in Windows is a persistent reservation for administrators here. netsh has no
//! names, so a name is made from the block. netsh's message comes first, and its meaning here follows.

mod words;

use std::io::Write;

use anyhow::Context;
use clap::Subcommand;
use portkeep::{
    Info, PortRange, Transport, Transports,
    persistent::{Connection, Lifetime, Origin, PersistentError, Proposal, Which},
};
use portkeep_kernel::netns;
use serde::Serialize;

use crate::{DONE, FAILED, Io, NOTHING, args::sources::Places, commands::persist, reservations, survey};

const AFTER_HELP: &str = "\
The syntax is netsh's: tags and values, or the values alone in their order. Words can be shortened as long as they are unambiguous. \
store=persistent, the default of add and delete, is permanent; store=active is until the next reboot. show lists the ports \
reserved now, or with store=persistent those declared to stay.

Persistent reservations have an asterisk: an administrator added them. The others belong to running programs; `portkeep \
list` shows their owners. delete requires start and number exactly as they were added.

Unlike on Windows, only administrators can bind the ports, explicitly or not. To give them to a service use \
`portkeep persist add`, which does the same and more.

Examples:
  portkeep excludedportrange show protocol=tcp
  portkeep excludedportrange add protocol=tcp startport=40000 numberofports=11 store=persistent
  portkeep excludedportrange del tcp 40000 11
  portkeep netsh int ipv4 show ex tcp          pasted lines work as well";

/// Exclude ports with the syntax of Windows' netsh
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP, arg_required_else_help = true, infer_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show the ranges of a protocol: [protocol=]tcp|udp [[store=]active|persistent]
    #[command(
        after_long_help = "Examples:\n  portkeep excludedportrange show protocol=udp\n  portkeep excludedportrange show tcp --json"
    )]
    Show {
        /// [protocol=]tcp|udp [[store=]active|persistent]
        #[arg(value_name = "TAG=VALUE", required = true)]
        words: Vec<String>,
        /// One JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        places: Places,
    },
    /// Exclude a range: [protocol=]tcp|udp [startport=]N [numberofports=]N [[store=]active|persistent]
    #[command(
        after_long_help = "Examples:\n  portkeep excludedportrange add protocol=tcp startport=40000 numberofports=11\n  portkeep excludedportrange add udp 5000 20 active"
    )]
    Add {
        /// [protocol=]tcp|udp [startport=]N [numberofports=]N [[store=]active|persistent]
        #[arg(value_name = "TAG=VALUE", required = true)]
        words: Vec<String>,
    },
    /// Take an exclusion back: the same words
    #[command(
        after_long_help = "Examples:\n  portkeep excludedportrange delete protocol=tcp startport=40000 numberofports=11"
    )]
    Delete {
        /// [protocol=]tcp|udp [startport=]N [numberofports=]N [[store=]active|persistent]
        #[arg(value_name = "TAG=VALUE", required = true)]
        words: Vec<String>,
    },
}

/// A line pasted from a Windows manual: `netsh interface ipv4 add excludedportrange ...`
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  portkeep netsh interface ipv4 show excludedportrange protocol=tcp")]
pub(crate) struct Netsh {
    /// interface ipv4|ipv6 show|add|delete excludedportrange ...
    #[arg(value_name = "WORD", required = true)]
    words: Vec<String>,
    #[command(flatten)]
    places: Places,
}

pub(crate) fn netsh(args: Netsh, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let (verb, words) = match words::behind_netsh(&args.words) {
        Ok((verb, words)) => (verb, words.to_vec()),
        Err(why) => return Ok(syntax(io, &why)),
    };
    let command = match verb {
        "show" => Verb::Show { words, json: false, places: args.places },
        "add" => Verb::Add { words },
        "delete" => Verb::Delete { words },
        verb => return Ok(syntax(io, &format!("{verb} is not show, add or delete"))),
    };
    run(Args { command }, io)
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let result = match args.command {
        Verb::Show { words, json, places } => {
            let said = match words::read(&words, words::SHOW) {
                Ok(said) => said,
                Err(why) => return Ok(syntax(io, &why)),
            };
            let Some(protocol) = said.protocol else { return Ok(syntax(io, "protocol is missing")) };
            return show(protocol, said.store.unwrap_or(Lifetime::UntilReboot), json, &places, io);
        }
        Verb::Add { words } => {
            block(&words).map(|(protocol, ports, store)| add(protocol, ports, store.unwrap_or_default()))
        }
        Verb::Delete { words } => block(&words).map(|(protocol, ports, store)| delete(protocol, ports, store)),
    };
    let result = match result {
        Ok(result) => result,
        Err(why) => return Ok(syntax(io, &why)),
    };
    match result {
        Ok(()) => {
            writeln!(io.out, "Ok.\n")?;
            Ok(DONE)
        }
        Err(failure) => {
            let _ = writeln!(io.err, "{}", failure.netsh);
            let exit = if failure.netsh == NOT_FOUND { NOTHING } else { FAILED };
            io.error(failure.reason);
            Ok(exit)
        }
    }
}

/// The block of `add` and `delete`.
fn block(words: &[String]) -> Result<(Transport, PortRange, Option<Lifetime>), String> {
    let said = words::read(words, words::BLOCK)?;
    said.block().map(|(protocol, ports)| (protocol, ports, said.store))
}

fn syntax(io: &mut Io<'_>, why: &str) -> u8 {
    let _ = writeln!(io.err, "The syntax supplied for this command is not valid. Check help for the correct syntax.");
    io.usage(why)
}

/// netsh's message, and the reason behind it.
#[derive(Debug)]
struct Failure {
    netsh: &'static str,
    reason: String,
}

const IN_USE: &str = "The process cannot access the file because it is being used by another process.";
const NOT_FOUND: &str = "The system cannot find the file specified.";
const DENIED: &str = "Access is denied.";
const ELEVATION: &str = "The requested operation requires elevation (Run as administrator).";
const NOT_STARTED: &str = "The service has not been started.";

impl From<PersistentError> for Failure {
    fn from(error: PersistentError) -> Self {
        let netsh = match &error {
            PersistentError::InUse(_) | PersistentError::NameTaken(_) => IN_USE,
            PersistentError::NotFound => NOT_FOUND,
            PersistentError::FromFile(_) => DENIED,
            PersistentError::NotAllowed(_) => ELEVATION,
            PersistentError::AgentAbsent { .. } => NOT_STARTED,
            PersistentError::Malformed(_) => "The parameter is incorrect.",
            _ => "The request could not be performed.",
        };
        let help = match &error {
            PersistentError::AgentAbsent { .. } => "; start it (`systemctl start portkeep`, or `portkeep agent`)",
            _ => "",
        };
        Self { netsh, reason: format!("{:#}{help}", anyhow::Error::from(error)) }
    }
}

fn add(protocol: Transport, ports: PortRange, kept: Lifetime) -> Result<(), Failure> {
    // A known word, digits and a dash are always a valid name.
    let name = format!("excludedportrange:{protocol}:{ports}")
        .parse()
        .map_err(|error| Failure { netsh: "The parameter is incorrect.", reason: format!("{error}") })?;
    let mut proposal = Proposal::new(name, ports, protocol.into());
    proposal.description = "added with netsh's words".into();
    Connection::open()?.create(&proposal, kept)?;
    Ok(())
}

fn delete(protocol: Transport, ports: PortRange, store: Option<Lifetime>) -> Result<(), Failure> {
    let transports = Transports::from(protocol);
    let mut agent = Connection::open()?;
    let declared = agent.list()?;
    let exact = declared.iter().find(|info| info.ports == ports && info.transports == transports);
    match exact {
        None => {
            // A row without an asterisk is a runtime reservation.
            let runtime = portkeep::list()
                .unwrap_or_default()
                .into_iter()
                .find(|info| !info.persistent && info.ports == ports && info.transports.contains(protocol));
            Err(match runtime {
                Some(info) => {
                    Failure { netsh: DENIED, reason: format!("{info}; root can end it with `portkeep release`") }
                }
                None => {
                    Failure { netsh: NOT_FOUND, reason: persist::not_exactly(&declared, &ports.into(), transports) }
                }
            })
        }
        Some(info) if store == Some(Lifetime::UntilReboot) && stays(info) => Err(Failure {
            netsh: DENIED,
            reason: format!(
                "{} is declared to stay{}; it cannot be taken back until the next reboot only",
                info.name.as_deref().unwrap_or_default(),
                info.origin.as_ref().map_or_else(String::new, |origin| format!(" by {origin}"))
            ),
        }),
        Some(_) => {
            agent.delete(&Which::Block { ports: ports.into(), transports })?;
            Ok(())
        }
    }
}

fn stays(info: &Info) -> bool {
    !matches!(info.origin, Some(Origin::Command { until_reboot: true, .. }))
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Row {
    start: u16,
    end: u16,
    administered: bool,
}

fn show(protocol: Transport, store: Lifetime, json: bool, places: &Places, io: &mut Io<'_>) -> anyhow::Result<u8> {
    // Windows has only blocks: a list becomes one row for each block.
    let rows_of = |info: &Info, administered| {
        let row = |ports: &PortRange| Row { start: ports.start(), end: ports.last(), administered };
        info.ports.blocks().iter().map(row).collect::<Vec<_>>()
    };
    let mut rows: Vec<Row> = match store {
        Lifetime::UntilReboot => {
            let own = netns::current_cookie().context("finding out which network namespace this is")?;
            let here = survey::all(&places.pins)?.into_iter().filter(|info| reservations::is_here(info, own));
            let of_protocol = here.filter(|info| info.transports.contains(protocol));
            of_protocol.flat_map(|info| rows_of(&info, info.persistent)).collect()
        }
        Lifetime::UntilDeleted => {
            let declared = persist::view::look(places, io)?.declared.into_iter();
            let stays = declared.filter(|info| info.transports.contains(protocol) && stays(info));
            stays.flat_map(|info| rows_of(&info, true)).collect()
        }
    };
    rows.sort();
    rows.dedup();
    if json {
        io.json(&rows)?;
    } else {
        table(protocol, &rows, &mut io.out)?;
    }
    Ok(DONE)
}

/// As netsh prints it.
fn table(protocol: Transport, rows: &[Row], out: &mut dyn Write) -> anyhow::Result<()> {
    writeln!(out, "\nProtocol {protocol} Port Exclusion Ranges\n")?;
    writeln!(out, "Start Port    End Port")?;
    writeln!(out, "----------    --------")?;
    for Row { start, end, administered } in rows {
        let star = if *administered { "     *" } else { "" };
        writeln!(out, "{start:>10}  {end:>10}{star}")?;
    }
    writeln!(out, "\n* - Administered port exclusions.\n")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_netshs() {
        let rows =
            [Row { start: 80, end: 80, administered: false }, Row { start: 50000, end: 50059, administered: true }];
        let mut out = Vec::new();
        table(Transport::Tcp, &rows, &mut out).unwrap();
        let expected = "
Protocol tcp Port Exclusion Ranges

Start Port    End Port
----------    --------
        80          80
     50000       50059     *

* - Administered port exclusions.

";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
