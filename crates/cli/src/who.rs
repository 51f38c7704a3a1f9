//! `who`: whose port is this?

use std::io::Write;

use anyhow::Context;
use portkeep::{BoundSocket, Info, PortRange, Transport, Transports};
use portkeep_core::time;
use portkeep_kernel::netns;
use portkeep_observe::Usage;
use serde::Serialize;

use crate::{
    DONE, Io, NOTHING, list,
    pins::{Pins, Seen},
    port_arg::PortArg,
    ran_out, reservations, waiting,
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

/// One port of one transport.
#[derive(Debug, Serialize)]
struct Whose {
    port: u16,
    transport: Transport,
    /// The reservation that has it.
    reservation: Option<Info>,
    /// The sockets that have it bound.
    bound_by: Vec<BoundSocket>,
    /// Persistent reservations of the port that are not in force.
    waiting: Vec<Info>,
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let found = reserved(&args.pins, io)?;
    let own = netns::current_cookie().context("finding out which network namespace this is")?;
    let waiting = waiting::list();
    let block = PortRange::single(args.port.port)?;
    let usage = Usage::of(&[(block, Transports::Both)]).context("looking for sockets")?;
    let whose: Vec<Whose> = args
        .port
        .transports()
        .map(|transport| {
            let port = args.port.port;
            let mine = |info: &&Info| reservations::is_here(info, own) && info.has(transport, port);
            let waiting: Vec<Info> = waiting.iter().filter(|info| info.has(transport, port)).cloned().collect();
            let mut bound_by = usage.port(transport, port).bound_by;
            if bound_by.is_empty() {
                // Not every socket is listed before Linux 6.8; the agent knows those that it waits for.
                let sockets = waiting.iter().flat_map(|info| &info.waits_for);
                bound_by.extend(sockets.filter(|socket| (socket.port, socket.transport) == (port, transport)).cloned());
            }
            Whose { port, transport, reservation: found.iter().find(mine).cloned(), bound_by, waiting }
        })
        .collect();
    let anybody = whose.iter().any(Whose::is_somebodys);
    if args.json {
        io.json(&whose)?;
    } else {
        for each in whose.iter().filter(|whose| whose.is_somebodys()) {
            each.write(&mut io.out)?;
        }
        if !anybody {
            writeln!(io.out, "{} is free", args.port)?;
        }
        for waiting in waiting.iter().filter(|waiting| whose.iter().any(|each| waiting.has(each.transport, each.port)))
        {
            writeln!(io.out, "{}", waiting::sentence(waiting))?;
        }
    }
    Ok(if anybody { DONE } else { NOTHING })
}

/// The reservations. Where they cannot be seen, who has the port bound is still worth showing.
fn reserved(pins: &Pins, io: &mut Io<'_>) -> anyhow::Result<Vec<Info>> {
    match list::seen(pins) {
        Ok(found) => Ok(found),
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
    fn is_somebodys(&self) -> bool {
        self.reservation.is_some() || !self.bound_by.is_empty()
    }

    fn write(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let name = format!("{}/{}", self.port, self.transport);
        match &self.reservation {
            Some(info) => {
                let owner = reservations::owner(info);
                match info.age().filter(|_| !info.persistent) {
                    Some(age) => writeln!(out, "{name} belongs to {owner}, reserved {}", time::ago(age))?,
                    None => writeln!(out, "{name} is reserved for {owner}")?,
                }
                let mut line = |name: &str, value: &str| writeln!(out, "  {name:<9} {value}");
                line("block", &format!("{}/{}", info.ports, info.transports))?;
                if let Some(label) = &info.name {
                    line(if info.persistent { "name" } else { "label" }, label)?;
                }
                if let Some(command) = info.owner.as_ref().and_then(|owner| owner.command.as_ref()) {
                    line("command", command)?;
                }
                if let Some(unit) = info.owner.as_ref().and_then(|owner| owner.unit.as_ref()) {
                    line("unit", unit)?;
                }
                if let Some(description) = &info.description {
                    line("what", description)?;
                }
                if let Some(origin) = &info.origin {
                    line("from", &origin.to_string())?;
                }
                if let Some(uid) = info.owner.as_ref().and_then(|owner| owner.uid) {
                    line("uid", &uid.to_string())?;
                }
                let terms = match (info.strict, info.ephemeral) {
                    (true, _) => ", associated sockets only",
                    (_, true) => ", its private ephemeral range",
                    _ => "",
                };
                let scope = info.scope.map_or_else(|| "persistent".into(), |scope| scope.to_string());
                let cgroup = info.cgroup.as_deref().unwrap_or_default();
                line("scope", &format!("{}{terms}", format!("{scope} {cgroup}").trim_end()))?;
                if let Some(since) = info.since {
                    line("since", &since.to_string())?;
                }
            }
            None => writeln!(out, "{name} is not reserved")?,
        }
        let known: Vec<String> =
            self.bound_by.iter().filter_map(|socket| socket.process.as_ref()).map(ToString::to_string).collect();
        let bound = match (self.bound_by.is_empty(), known.is_empty()) {
            (true, _) => "no process".into(),
            (false, true) => "a process that cannot be seen from here".into(),
            (false, false) => known.join(", "),
        };
        writeln!(out, "  {:<9} {bound}", "bound by")?;
        Ok(())
    }
}
