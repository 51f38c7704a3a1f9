//! `who`: whose port is this?

use std::{collections::BTreeSet, io::Write};

use anyhow::Context;
use portkeep::{BoundSocket, Info, PortList, PortRange, Ports, Transport, Transports};
use portkeep_core::{PortSet, time};
use portkeep_kernel::netns;
use portkeep_observe::Usage;
use serde::Serialize;

use crate::{
    DONE, Io, NOTHING, list,
    pins::{Pins, Seen},
    ports::ports,
    ran_out, reservations, waiting,
};

const AFTER_HELP: &str = "\
Shows which reservation of this network namespace has the port, which one waits for it, and which process has it bound. \
Only root can see other users' processes.

Examples:
  portkeep who 61004
  portkeep who 53/udp
  portkeep who 80,443,8000-8099 --json

Exit status: 0 if one of the ports is reserved or bound, 3 if all are free";

/// Show who owns a port
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// 61004, 61004/tcp, 80,443, 8000-8099, or a name of /etc/services
    #[arg(value_name = "PORTS[/TRANSPORT]", value_parser = ports)]
    ports: Ports,
    /// One JSON array, an element for each port and transport
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
    let Ports { list, transports } = &args.ports;
    let transports = transports.unwrap_or(Transports::Both);
    let blocks: Vec<_> = list.blocks().iter().map(|block| (*block, Transports::Both)).collect();
    let usage = Usage::of(&blocks).context("looking for sockets")?;
    let whose: Vec<Whose> = list
        .iter()
        .flat_map(|port| transports.iter().map(move |transport| (port, transport)))
        .map(|(port, transport)| {
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
        if let Some(free) = free(&args.ports, &whose) {
            writeln!(io.out, "{free} {} free", if free.list.count() == 1 { "is" } else { "are" })?;
        }
        for waiting in waiting.iter().filter(|waiting| whose.iter().any(|each| waiting.has(each.transport, each.port)))
        {
            writeln!(io.out, "{}", waiting::sentence(waiting))?;
        }
    }
    Ok(if anybody { DONE } else { NOTHING })
}

/// The ports that are free in all of the transports asked for, if there are any.
fn free(asked: &Ports, whose: &[Whose]) -> Option<Ports> {
    let taken: BTreeSet<u16> = whose.iter().filter(|each| each.is_somebodys()).map(|each| each.port).collect();
    let free = asked.list.iter().filter(|port| !taken.contains(port));
    let set: PortSet = free.filter_map(|port| PortRange::single(port).ok()).collect();
    let blocks = set.spans().filter_map(|(first, last)| PortRange::inclusive(first, last).ok());
    let list = PortList::new(blocks).ok()?;
    Some(Ports { list, transports: asked.transports })
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
                line("ports", &format!("{}/{}", info.ports, info.transports))?;
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
