//! The summary of a run, in Markdown.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::tally::Outcomes;

/// The actions of the host.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Deeds {
    pub(super) started: u64,
    pub(super) killed: u64,
    pub(super) ended_by_themselves: u64,
    pub(super) agent_kills: u64,
    pub(super) agent_stops: u64,
    pub(super) agent_hangups: u64,
    pub(super) upgrades: u64,
    pub(super) cgroups: u64,
    pub(super) audits: u64,
    /// Of the agent, at the end: it has half a minute for each.
    pub(super) late_answers: u64,
    pub(super) most_reservations: u32,
}

/// The report of the host.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) deeds: Deeds,
    /// Operation, how often, outcomes.
    pub(super) operations: Vec<(String, u64, Outcomes)>,
    pub(super) violations: Vec<String>,
    pub(super) leaks: Vec<String>,
    /// The network namespace, as /proc names it.
    pub(super) netns: String,
}

/// Of which run.
#[derive(Debug)]
pub(super) struct Run<'a> {
    pub(super) seed: u64,
    pub(super) seconds: u64,
    pub(super) processes: usize,
    pub(super) kernel: &'a str,
}

fn number(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap_or_default()).collect();
    groups.join(",")
}

pub(super) fn markdown(run: &Run<'_>, report: &Report) -> String {
    let mut text = String::new();
    let Deeds { started, killed, ended_by_themselves, .. } = report.deeds;
    let deeds = report.deeds;
    let all: u64 = report.operations.iter().map(|(_, all, _)| all).sum();
    let rows = [
        ("seed", run.seed.to_string()),
        ("kernel", format!("Linux {}", run.kernel)),
        ("length", format!("{} s", number(run.seconds))),
        ("processes at a time", number(run.processes as u64)),
        ("operations", number(all)),
        ("processes started", number(started)),
        ("processes killed (SIGKILL) in the middle", number(killed)),
        ("processes that ended by themselves", number(ended_by_themselves)),
        ("agents killed (SIGKILL)", number(deeds.agent_kills)),
        ("agents stopped (SIGTERM)", number(deeds.agent_stops)),
        ("agents made to read everything again (SIGHUP)", number(deeds.agent_hangups)),
        ("upgrades", number(deeds.upgrades)),
        ("cgroups that came and went", number(deeds.cgroups)),
        ("most reservations at an audit", number(deeds.most_reservations.into())),
        ("audits with everybody at rest", number(deeds.audits)),
        ("answers of the agent that took over 30 s, at the end", number(deeds.late_answers)),
        ("**violations**", format!("**{}**", report.violations.len())),
        ("**leaks**", format!("**{}**", report.leaks.len())),
    ];
    text.push_str("| | |\n|---|---:|\n");
    for (what, value) in rows {
        let _ = writeln!(text, "| {what} | {value} |");
    }
    text.push_str("\n| operation | times | outcomes |\n|---|---:|---|\n");
    for (what, times, outcomes) in &report.operations {
        let outcomes: Vec<_> = outcomes.iter().map(|(name, n)| format!("{name} {}", number(*n))).collect();
        let _ = writeln!(text, "| {what} | {} | {} |", number(*times), outcomes.join(", "));
    }
    for (title, list) in [("Violations", &report.violations), ("Leaks", &report.leaks)] {
        if !list.is_empty() {
            let _ = writeln!(text, "\n{title}:\n");
            text.extend(list.iter().map(|item| format!("```text\n{}\n```\n\n", item.trim_end())));
        }
    }
    text
}
