//! `doctor`: what is wrong on this machine, and what to do about it.

mod declarations;
mod finding;
mod ports;
mod servers;
mod system;

use std::io::{Write, stdout};

use portkeep_observe::{Facts, process};
use serde::Serialize;

use crate::{
    DONE, FAILED, Io,
    args::sources::Places,
    commands::{persist::view, status},
    render::table::{self, Look},
    survey,
};
use finding::{Examined, Finding, Findings, Severity, requires_root};

const AFTER_HELP: &str = "\
Looks at the kernel, cgroups, other BPF programs, the agent, drop-ins and the configuration (as `portkeep check` does), the pool and \
the ephemeral ports of every network namespace, declared ports that are in use, units and users that do not exist, .socket units, \
servers that bind as another user, published ports of containers, NAT rules, the ports of Kubernetes' services, and quotas. It changes \
nothing. Some checks require root, or examine less without it; the output names them.

`hooks` reports the BPF programs of others on the hooks that Portkeep uses, by cgroup. Those on the cgroup that Portkeep \
enforces in, and on the cgroups above it, run for all its processes; those on a cgroup below it run for the processes there. \
Each can refuse a bind that a reservation allows.

Examples:
  portkeep doctor
  portkeep doctor --json | jq -r '.[].findings[].message'

Exit status: 0 if nothing is wrong, warnings or not; 1 if something is";

/// Examine this machine and report what is wrong
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    /// One JSON array, an element for each check
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    places: Places,
}

/// A check.
type Check = fn(&Examined<'_>) -> Findings;

/// In the order of the report; with the part that requires root, if a check is of use without it.
const CHECKS: [(&str, Check, Option<&str>); 15] = [
    ("kernel", system::kernel, None),
    ("cgroups", system::cgroups, None),
    ("enforcement", system::enforcement, None),
    ("agent", system::agent, Some("whether its program was replaced")),
    ("hooks", system::hooks, None),
    ("files", declarations::files, Some("reservations that commands created")),
    ("in-force", declarations::in_force, None),
    ("socket-units", declarations::socket_units, None),
    ("server-users", servers::users, Some("servers of other users")),
    ("containers", servers::containers, None),
    ("pool", ports::pool, Some("other network namespaces")),
    ("ephemeral-ports", ports::ephemeral, None),
    ("nat", ports::nat, None),
    ("node-ports", ports::node_ports, None),
    ("quotas", ports::quotas, None),
];

/// The result of one check.
#[derive(Debug, Serialize)]
struct Checked {
    check: &'static str,
    findings: Vec<Finding>,
    /// The part that it could not look at, with the reason.
    skipped: Option<String>,
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let Places { pins, sources } = &args.places;
    let reserved = survey::all(pins).unwrap_or_default();
    let examined = Examined {
        status: status::of(pins, io)?,
        declared: view::all(sources, &reserved),
        reserved,
        facts: Facts::here(),
        sources,
    };
    let checked: Vec<Checked> = CHECKS
        .into_iter()
        .map(|(check, look, of_root)| match look(&examined) {
            Ok(findings) => {
                let skipped = of_root.filter(|_| process::lacks().is_some());
                Checked { check, findings, skipped: skipped.map(|part| format!("{part}: {}", requires_root())) }
            }
            Err(why) => Checked { check, findings: Vec::new(), skipped: Some(why) },
        })
        .collect();
    if args.json {
        io.json(&checked)?;
    } else {
        write(&checked, table::has_colour(&stdout()), &mut io.out)?;
    }
    let is_wrong = checked.iter().flat_map(|each| &each.findings).any(|finding| finding.severity == Severity::Error);
    Ok(if is_wrong { FAILED } else { DONE })
}

fn write(checked: &[Checked], colour: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let count =
        |severity| checked.iter().flat_map(|each| &each.findings).filter(|one| one.severity == severity).count();
    for (severity, word, look) in [
        (Severity::Error, "error:", Look::Error),
        (Severity::Warning, "warning:", Look::Warning),
        (Severity::Note, "note:", Look::Note),
    ] {
        let word = look.if_colour(colour).of(word);
        for each in checked {
            for finding in each.findings.iter().filter(|finding| finding.severity == severity) {
                writeln!(out, "{word} {} [{}]", finding.message, each.check)?;
                if let Some(help) = &finding.help {
                    writeln!(out, "  help: {help}")?;
                }
            }
        }
    }
    for each in checked {
        if let Some(why) = &each.skipped {
            writeln!(out, "not examined: {why} [{}]", each.check)?;
        }
    }
    let s = |n: usize| if n == 1 { "" } else { "s" };
    let found = match (count(Severity::Error), count(Severity::Warning)) {
        (0, 0) => "nothing wrong".into(),
        (errors, warnings) => format!("{errors} error{}, {warnings} warning{}", s(errors), s(warnings)),
    };
    let left = checked.iter().filter(|each| each.skipped.is_some()).count();
    let left = if left == 0 { String::new() } else { format!(", {left} of them incomplete") };
    writeln!(out, "{} checks{left}: {found}", checked.len())?;
    Ok(())
}
