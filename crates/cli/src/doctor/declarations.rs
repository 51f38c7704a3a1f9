//! What is declared: in files, in force or not, and beside units of systemd.

use std::{
    fs,
    path::{Path, PathBuf},
};

use portkeep::{BoundSocket, Info, State, Transport, persistent::Audience};
use portkeep_observe::{Usage, usage};

use super::{Finding, Findings, Patient, Severity};
use crate::{asked, check, waiting};

/// The same as `portkeep check`.
pub(super) fn files(patient: &Patient<'_>) -> Findings {
    let (errors, warnings) = check::of_machine(patient.sources).map_err(|error| format!("{error:#}"))?;
    let all = [(Severity::Error, errors), (Severity::Warning, warnings)];
    Ok(all
        .into_iter()
        .flat_map(|(severity, diagnostics)| diagnostics.into_iter().map(move |diagnostic| (severity, diagnostic)))
        .map(|(severity, mut diagnostic)| {
            let help = diagnostic.help.take();
            Finding { severity, message: diagnostic.to_string(), help }
        })
        .collect())
}

/// Declarations that are not in force, and those whose server cannot have its port yet.
pub(super) fn in_force(patient: &Patient<'_>) -> Findings {
    let mut found = Vec::new();
    for info in &patient.declared {
        match info.state {
            State::Active => found.extend(leftovers(info)),
            // The check of the agent reports it.
            _ if patient.status.agent != Some(true) => {}
            State::Conflict => found.push(
                Finding::new(Severity::Error, waiting::sentence(info))
                    .help("change one of the two declarations; `portkeep persist list` shows where they are"),
            ),
            _ => found.push(Finding::new(Severity::Warning, waiting::sentence(info)).help(remedy(info))),
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
        None => "stop that program, or write `around = true` if it is the one that the ports are for".into(),
    }
}

/// Connections that keep the server of a reservation in force from its port for a while.
fn leftovers(info: &Info) -> Vec<Finding> {
    let blocks: Vec<_> = asked::blocks_of(info).map(|block| (block, info.transports)).collect();
    let usage = Usage::of(&blocks).unwrap_or_default();
    let mut found = Vec::new();
    for one in usage.ports.values().filter(|one| one.bound_by.is_empty()) {
        if let Some(socket) = one.connections.iter().find(|socket| socket.remaining.is_some()) {
            let name = info.name.as_deref().unwrap_or_default();
            let message = format!(
                "{name} is in force, and {}/{} is not free yet: {}",
                one.port,
                one.transport,
                usage::state(socket)
            );
            let help = "its server can bind it now only with SO_REUSEADDR, which most servers set; otherwise wait";
            found.push(Finding::new(Severity::Note, message).help(help));
        }
    }
    found
}

/// Folders of units, as systemd has them.
const UNITS: [&str; 4] = ["etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];

/// A reservation for a service whose port systemd binds itself.
pub(super) fn socket_units(patient: &Patient<'_>) -> Findings {
    let mut found = Vec::new();
    let units = enabled_sockets(patient.root());
    for info in &patient.declared {
        let Some(Audience::Unit(unit)) = &info.audience else { continue };
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

/// The ports of .socket units that start with the system.
fn enabled_sockets(root: &Path) -> Vec<(String, Transport, u16)> {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let name_of = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut enabled: Vec<String> = Vec::new();
    for folder in UNITS {
        let wants = entries(&root.join(folder)).filter(|path| path.extension().is_some_and(|kind| kind == "wants"));
        enabled.extend(wants.flat_map(|wants| entries(&wants)).filter_map(|path| name_of(&path)));
    }
    enabled.retain(|name| name.ends_with(".socket"));
    enabled.sort();
    enabled.dedup();
    let mut found = Vec::new();
    for name in enabled {
        // The first folder that has it wins; what is in NAME.d is added.
        let Some(file) = UNITS.iter().map(|folder| root.join(folder).join(&name)).find(|file| file.is_file()) else {
            continue;
        };
        let mut files: Vec<PathBuf> = vec![file];
        for folder in UNITS {
            let mut more: Vec<PathBuf> = entries(&root.join(folder).join(format!("{name}.d"))).collect();
            more.sort();
            files.extend(more);
        }
        let text: String =
            files.iter().filter_map(|file| fs::read_to_string(file).ok()).map(|text| text + "\n").collect();
        found.extend(listened(&text).into_iter().map(|(transport, port)| (name.clone(), transport, port)));
    }
    found
}

/// The ports that a .socket unit listens on. An empty value takes back what was named before.
fn listened(text: &str) -> Vec<(Transport, u16)> {
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once('=') else { continue };
        let transport = match key.trim() {
            "ListenStream" => Transport::Tcp,
            "ListenDatagram" => Transport::Udp,
            _ => continue,
        };
        let value = value.trim();
        if value.is_empty() {
            found.clear();
        } else if let Ok(port) = value.rsplit(':').next().unwrap_or(value).parse() {
            found.push((transport, port));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_socket_units_are_read() {
        let text =
            "[Socket]\nListenStream=22\nListenStream=[::1]:2222\nListenDatagram=127.0.0.1:53\nListenStream=/run/x\n";
        assert_eq!(listened(text), [(Transport::Tcp, 22), (Transport::Tcp, 2222), (Transport::Udp, 53)]);
        assert_eq!(listened("ListenStream=22\nListenStream=\nListenStream=2200\n"), [(Transport::Tcp, 2200)]);
    }
}
