//! `list`: all reservations.

use std::{collections::BTreeSet, io::Write};

use portkeep::{Info, persistent::protocol::Reason};
use portkeep_core::time;

use crate::{
    DONE, Exit, Io,
    exit::refused,
    pins::{Pins, Seen, served_here},
    reservations, table, waiting,
};

const AFTER_HELP: &str = "\
Root sees all network namespaces; other users see only their own. Tokens are only shown to those who may use them. \
BOUND counts the ports of the block that have a socket, TCP and UDP apart.

For a persistent reservation, OWNER shows whom it is for. The last column shows the file or command that declared it (if \
an agent runs) and the processes that have its ports bound. Declarations that are not in force are reported on standard \
error; `portkeep persist list` shows them too.

Examples:
  portkeep list
  portkeep list --json | jq -r '.[] | select(.owner.uid == 1000) | .ports'";

/// List reservations and who holds them
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// One JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pins: Pins,
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let found = match seen(&args.pins) {
        // An answer for programs, whatever the exit status says to scripts.
        Err(error) if args.json && Exit::reason(&error) == Reason::NotUp => {
            io.json(&[(); 0])?;
            return Err(error);
        }
        found => found?,
    };
    if args.json {
        io.json(&found)?;
    } else {
        write(&found, &mut io.out)?;
    }
    for waiting in waiting::list() {
        io.warning(waiting::sentence(&waiting));
    }
    Ok(DONE)
}

/// All that can be seen: of the whole machine with root, else of this network namespace.
pub(crate) fn seen(pins: &Pins) -> anyhow::Result<Vec<Info>> {
    let mut found = match pins.look() {
        Seen::Up(instance) => reservations::all(&instance)?,
        _ if served_here()?.is_some() => reservations::here()?,
        Seen::NotUp => return Err(refused(Reason::NotUp, "kernel enforcement is not up, so nothing is reserved")),
        Seen::Hidden(reason) => {
            return Err(refused(
                Reason::NotAllowed,
                format!("kernel enforcement does not serve this cgroup, and {reason}"),
            ));
        }
        Seen::Unusable(error) => return Err(error.into()),
    };
    reservations::complete(&mut found)?;
    Ok(found)
}

fn write(found: &[Info], out: &mut dyn Write) -> anyhow::Result<()> {
    let header = ["PORTS", "PROTO", "OWNER", "UID", "SCOPE", "BOUND", "SINCE", "NETNS", "LABEL", "TOKEN", "COMMAND"];
    let mut rows = vec![header.map(String::from)];
    rows.extend(found.iter().map(row));
    table::write(&rows, out)
}

/// A whole shell script can be an argument.
pub(crate) fn short(command: &str) -> String {
    const ENOUGH: usize = 60;
    match command.char_indices().nth(ENOUGH) {
        Some((at, _)) => format!("{}...", &command[..at]),
        None => command.to_owned(),
    }
}

fn row(info: &Info) -> [String; 11] {
    let dash = || "-".to_owned();
    let scope = info.scope.map_or_else(|| "persistent".into(), |scope| scope.to_string());
    let uid = info.owner.as_ref().and_then(|owner| owner.uid);
    [
        info.ports.to_string(),
        info.transports.to_string(),
        match &info.owner {
            Some(owner) => format!("{} ({})", owner.pid, owner.comm),
            None => reservations::owner(info),
        },
        uid.map_or_else(dash, |uid| uid.to_string()),
        format!("{scope}{}", reservations::terms(info)),
        info.bound.unwrap_or_default().to_string(),
        info.age().map_or_else(dash, time::ago),
        info.netns_name.clone().or_else(|| Some(info.netns?.to_string())).unwrap_or_else(dash),
        info.name.clone().unwrap_or_else(dash),
        info.token.map_or_else(dash, |token| token.to_string()),
        last(info).unwrap_or_else(dash),
    ]
}

/// The command of a process; of a persistent reservation, where it comes from and who is there.
fn last(info: &Info) -> Option<String> {
    if let Some(owner) = &info.owner {
        return owner.command.as_deref().map(short);
    }
    let origin = info.origin.as_ref().map(|origin| format!("from {origin}"));
    let bound = info.bound_by.iter().flatten().filter_map(|socket| socket.process.as_ref());
    let bound: BTreeSet<String> = bound.map(ToString::to_string).collect();
    let bound = (!bound.is_empty()).then(|| format!("bound by {}", Vec::from_iter(bound).join(", ")));
    let parts: Vec<String> = origin.into_iter().chain(bound).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}
