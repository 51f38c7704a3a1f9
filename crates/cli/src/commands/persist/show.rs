//! `persist show`.

use std::{collections::BTreeMap, io::Write};

use portkeep::{
    BoundSocket, Info, State, Transport,
    persistent::{Name, Origin},
};
use portkeep_observe::{Usage, usage};

use super::view;
use crate::{
    DONE, Io, NOTHING, args::sources::Places, commands::run::substitute::environment as variables_of,
    render::local_time::local, reservations,
};

const AFTER_HELP: &str = "\
Only root can see which processes of other users have a port bound.

--env prints the ports as variables, as EnvironmentFile= of systemd and shells read them: PORT (the first), PORT_LAST, \
PORT0, PORT1, ... (each), PORTS (all, comma-separated) and <NAME>_PORT (the first; MY_APP_PORT of `my-app`). They are \
the same after a reboot.

Examples:
  portkeep persist show tomcat
  portkeep persist show tomcat --json | jq -r '.[].bound_by[].process.pid'
  portkeep persist show tomcat --env >/run/tomcat.env

Exit status: 3 if there is no such reservation";

/// Show everything about a persistent reservation
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Its name
    name: Name,
    /// One JSON array; more than one element if the name is declared more than once
    #[arg(long)]
    json: bool,
    /// Its ports as variables, for EnvironmentFile= of a unit
    #[arg(long, conflicts_with = "json")]
    env: bool,
    #[command(flatten)]
    places: Places,
}

pub(super) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let declared = view::look(&args.places, io)?.declared;
    let mut found: Vec<Info> =
        declared.into_iter().filter(|info| info.name.as_deref() == Some(args.name.as_str())).collect();
    // A declaration in conflict reserves nothing, so its ports are not printed.
    if args.env
        && let Some(info) = found.iter().find(|info| info.state != State::Conflict)
    {
        if let Some(reason) = &info.reason {
            io.warning(format_args!("{} is not in force: {reason}", args.name));
        }
        write!(io.out, "{}", environment(info))?;
        return Ok(DONE);
    }
    for info in &mut found {
        info.bound_by = Some(bound_by(info));
    }
    if args.json {
        io.json(&found)?;
    } else {
        for info in &found {
            write(info, &mut io.out)?;
        }
    }
    if found.is_empty() {
        io.error(format_args!("there is no persistent reservation {}", args.name));
        return Ok(NOTHING);
    }
    Ok(DONE)
}

/// The ports of a reservation as variables, one a line.
pub(super) fn environment(info: &Info) -> String {
    let variables = variables_of(&info.ports, info.name.as_deref());
    let last = ("PORT_LAST".to_owned(), info.ports.last().to_string());
    let mut text = String::new();
    for (name, value) in variables.into_iter().chain([last]) {
        text += &format!("{name}={value}\n");
    }
    text
}

fn bound_by(info: &Info) -> Vec<BoundSocket> {
    let blocks: Vec<_> = info.ports.blocks().iter().map(|block| (*block, info.transports)).collect();
    let usage = Usage::bound(&blocks).unwrap_or_default();
    usage.ports.into_values().flat_map(|found| found.bound_by).collect()
}

fn write(info: &Info, out: &mut dyn Write) -> anyhow::Result<()> {
    writeln!(out, "{} {}/{}", info.name.as_deref().unwrap_or_default(), info.ports, info.transports)?;
    let mut line = |name: &str, value: &str| writeln!(out, "  {name:<12} {value}");
    line("for", &reservations::owner(info))?;
    let reason = info.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    line("state", &format!("{}{reason}", view::word(info.state)))?;
    if let Some(description) = &info.description {
        line("description", description)?;
    }
    if let Some(origin) = &info.origin {
        line("from", &origin.to_string())?;
    }
    if let Some(Origin::Command { created, .. }) = info.origin {
        line("created", &local(created))?;
    }
    if info.strict {
        line("strict", "associated sockets only")?;
    }
    if info.ephemeral {
        line("ephemeral", "binds to port 0 of its audience draw from it")?;
    }
    if info.around {
        line("around", "sockets of its audience may have had the ports before it")?;
    }
    if let Some(token) = info.token {
        line("token", &token.to_string())?;
    }
    // One line for each port.
    let mut bound: BTreeMap<(Transport, u16), Vec<String>> = BTreeMap::new();
    for socket in info.bound_by.iter().flatten() {
        let who = bound.entry((socket.transport, socket.port)).or_default();
        who.push(match (&socket.process, &socket.unit) {
            (Some(process), Some(unit)) => format!("{process} of {unit}"),
            _ => usage::holder(socket),
        });
    }
    if bound.is_empty() {
        line("bound by", "no process")?;
    }
    for (index, ((transport, port), who)) in bound.iter_mut().enumerate() {
        who.dedup();
        line(if index == 0 { "bound by" } else { "" }, &format!("{}: {port}/{transport}", who.join(", ")))?;
    }
    Ok(())
}
