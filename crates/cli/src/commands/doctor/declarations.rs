//! Declared reservations: in files, in force or not, and beside units of systemd.

use portkeep::{BoundSocket, Info, State, persistent::Audience};
use portkeep_observe::{Usage, usage};

use super::finding::{Examined, Finding, Findings, Severity};
use crate::{args::asked, commands::check, units, waiting};

/// The same as `portkeep check`.
pub(super) fn files(examined: &Examined<'_>) -> Findings {
    let all = check::of_machine(examined.sources).map_err(|error| format!("{error:#}"))?;
    Ok([Severity::Error, Severity::Warning, Severity::Note]
        .into_iter()
        .zip(all)
        .flat_map(|(severity, diagnostics)| diagnostics.into_iter().map(move |diagnostic| (severity, diagnostic)))
        .map(|(severity, mut diagnostic)| {
            let help = diagnostic.help.take();
            Finding { severity, message: diagnostic.to_string(), help }
        })
        .collect())
}

/// Declarations that are not in force, and those whose server cannot have its port yet.
pub(super) fn in_force(examined: &Examined<'_>) -> Findings {
    let active = examined.declared.iter().filter(|info| info.state == State::Active);
    let blocks = active.flat_map(|info| asked::blocks_of(info).map(|block| (block, info.transports)));
    let usage = Usage::of(&blocks.collect::<Vec<_>>()).map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    for info in &examined.declared {
        match info.state {
            State::Active => found.extend(leftovers(info, &usage)),
            // Without an agent, the check of the agent reports it.
            _ if examined.status.agent != Some(true) => {}
            State::Conflict => found.push(
                Finding::new(Severity::Error, waiting::sentence(info))
                    .help("change one of the two declarations; `portkeep persist list` shows where they are"),
            ),
            State::Waiting => {
                found.push(Finding::new(Severity::Warning, waiting::sentence(info)).help(remedy(info)));
            }
            // No declaration is in another state.
            _ => {}
        }
    }
    Ok(found)
}

fn remedy(info: &Info) -> String {
    let ends = |socket: &BoundSocket| socket.remaining;
    let longest = info.waits_for.iter().map(ends).collect::<Option<Vec<u64>>>().and_then(|all| all.into_iter().max());
    match longest {
        Some(seconds) => format!("nothing: it comes into force by itself, in {seconds} s at most"),
        None if info.waits_for.is_empty() => "the agent tries again; remove what its reason names".into(),
        None if info.waits_for.iter().all(usage::is_left) => {
            "nothing: it comes into force by itself when the kernel ends these connections".into()
        }
        None => "stop that program, or write `around = true` if it is the one that the ports are for".into(),
    }
}

/// Connections that prevent the server of a reservation in force from binding its port for a while.
fn leftovers(info: &Info, usage: &Usage) -> Vec<Finding> {
    let ports = asked::blocks_of(info).flat_map(|block| block.iter());
    let each = ports.flat_map(|port| info.transports.iter().map(move |transport| (port, transport)));
    let mut found = Vec::new();
    for one in each.filter_map(|key| usage.ports.get(&key)).filter(|one| one.bound_by.is_empty()) {
        if let Some(socket) = one.connections.iter().find(|socket| usage::is_left(socket)) {
            let name = info.name.as_deref().unwrap_or_default();
            let state = usage::state(socket);
            let message = format!("{name} is in force, and {}/{} is not free yet: {state}", one.port, one.transport);
            let help = "its server can bind it now only with SO_REUSEADDR, which most servers set; otherwise wait";
            found.push(Finding::new(Severity::Note, message).help(help));
        }
    }
    found
}

/// A reservation for a service whose port systemd binds itself.
pub(super) fn socket_units(examined: &Examined<'_>) -> Findings {
    let mut found = Vec::new();
    let units = units::enabled_sockets(examined.root());
    for info in &examined.declared {
        let audience = info.audience.as_ref().map_or(&[][..], Audience::each);
        let Some(unit) = audience.iter().find_map(|one| if let Audience::Unit(unit) = one { Some(unit) } else { None })
        else {
            continue;
        };
        for (socket, transport, port) in &units {
            if info.has(*transport, *port) {
                let name = info.name.as_deref().unwrap_or_default();
                let message = format!(
                    "{name} reserves {port}/{transport} for {unit}, but {socket} has systemd itself bind it, outside of the unit"
                );
                let help = "write `user = \"root\"` in place of `unit`, or disable the .socket unit";
                found.push(Finding::new(Severity::Error, message).help(help));
            }
        }
    }
    Ok(found)
}
