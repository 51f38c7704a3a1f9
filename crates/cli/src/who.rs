//! `who`: whose port is this?

use std::io::Write;

use anyhow::Context;
use portkeep::Transport;
use portkeep_kernel::netns;
use serde::Serialize;

use crate::{
    DONE, Io, NOTHING,
    entry::Entry,
    list,
    pins::{Pins, Seen},
    port_arg::PortArg,
    process::{Binders, Process},
    ran_out,
    waiting::{self, Waiting},
    when,
};

const AFTER_HELP: &str = "\
Shows which reservation of this network namespace has the port, which one waits for it, and which process has it bound. \
Only root can see other users' processes.

Examples:
  portkeep who 61004
  portkeep who 53/udp
  portkeep who http --json

Exit status: 0 if the port is reserved or bound, 3 if it is free";

/// Show who owns a port
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// 61004, 61004/tcp, or a name of /etc/services
    #[arg(value_name = "PORT[/TRANSPORT]")]
    port: PortArg,
    /// One JSON array, an element for each transport
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pins: Pins,
}

#[derive(Debug, Serialize)]
struct Whose {
    port: u16,
    transport: Transport,
    reservation: Option<Entry>,
    bound: bool,
    bound_by: Vec<Process>,
    /// Persistent reservations of the port that are not in force.
    waiting: Vec<Waiting>,
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let entries = reserved(&args.pins, io)?;
    let own = netns::current_cookie().context("finding out which network namespace this is")?;
    let waiting = waiting::list();
    let whose: Vec<Whose> = args
        .port
        .transports()
        .map(|transport| {
            let port = args.port.port;
            let mine = |entry: &&Entry| entry.is_here(own) && entry.has(transport, port);
            let binders = Binders::of(transport, port);
            Whose {
                port,
                transport,
                reservation: entries.iter().find(mine).cloned(),
                bound: binders.is_some(),
                bound_by: binders.map(|binders| binders.known).unwrap_or_default(),
                waiting: waiting.iter().filter(|waiting| waiting.has(transport, port)).cloned().collect(),
            }
        })
        .collect();
    let anybody = whose.iter().any(|whose| whose.reservation.is_some() || whose.bound);
    if args.json {
        io.json(&whose)?;
    } else {
        for each in whose.iter().filter(|whose| whose.reservation.is_some() || whose.bound) {
            each.write(&mut io.out)?;
        }
        if !anybody {
            writeln!(io.out, "{} is free", args.port)?;
        }
        for waiting in waiting.iter().filter(|waiting| whose.iter().any(|each| waiting.has(each.transport, each.port)))
        {
            writeln!(io.out, "{waiting}")?;
        }
    }
    Ok(if anybody { DONE } else { NOTHING })
}

/// The reservations. Where they cannot be seen, who has the port bound is still worth showing.
fn reserved(pins: &Pins, io: &mut Io<'_>) -> anyhow::Result<Vec<Entry>> {
    match list::entries(pins) {
        Ok(entries) => Ok(entries),
        // Neither is anything else to be found out then.
        Err(error) if ran_out(&error) => Err(error),
        Err(error) => {
            if !matches!(pins.look(), Seen::NotUp) {
                io.warning(format_args!("{error:#}"));
            }
            Ok(Vec::new())
        }
    }
}

impl Whose {
    fn write(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let name = format!("{}/{}", self.port, self.transport);
        match &self.reservation {
            Some(entry) => {
                let (owner, since) = (entry.owner(), when::ago(entry.since_ns));
                if entry.persistent {
                    writeln!(out, "{name} is reserved for {owner}")?;
                } else {
                    writeln!(out, "{name} belongs to {owner}, reserved {since}")?;
                }
                let mut line = |name: &str, value: &str| writeln!(out, "  {name:<9} {value}");
                line("block", &format!("{}/{}", entry.ports, entry.transports))?;
                if let Some(label) = &entry.label {
                    line(if entry.persistent { "name" } else { "label" }, label)?;
                }
                if let Some(command) = &entry.command {
                    line("command", command)?;
                }
                if let Some(unit) = &entry.unit {
                    line("unit", unit)?;
                }
                if let Some(description) = &entry.description {
                    line("what", description)?;
                }
                if let Some(origin) = &entry.origin {
                    line("from", &origin.to_string())?;
                }
                let strict = match (entry.strict, entry.ephemeral) {
                    (true, _) => ", associated sockets only",
                    (_, true) => ", its private ephemeral range",
                    _ => "",
                };
                if entry.persistent {
                    line("scope", &format!("persistent{strict}"))?;
                } else {
                    line("uid", &entry.uid.to_string())?;
                    let cgroup = entry.cgroup.as_deref().unwrap_or_default();
                    line("scope", format!("{} {cgroup}{strict}", entry.scope).trim())?;
                }
                line("since", &entry.since)?;
            }
            None => writeln!(out, "{name} is not reserved")?,
        }
        let bound: Vec<String> = self.bound_by.iter().map(Process::to_string).collect();
        let bound = match (self.bound, bound.is_empty()) {
            (false, _) => "no process".into(),
            (true, true) => "a process that cannot be seen from here".into(),
            (true, false) => bound.join(", "),
        };
        writeln!(out, "  {:<9} {bound}", "bound by")?;
        Ok(())
    }
}
