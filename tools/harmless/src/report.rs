//! The tables, in Markdown.

use std::fmt;

use anyhow::{Result, ensure};
use portkeep_testkit::report;

use super::{
    load::{Load, Unit},
    suite::Verdict,
};
use portkeep_tool::repository;

pub(super) struct Report {
    pub(super) suites: Vec<Verdict>,
    pub(super) servers: Vec<Verdict>,
    /// Binds that Portkeep refused while these ran.
    pub(super) refused: u64,
    pub(super) loads: Vec<Load>,
    /// Ports that were reserved meanwhile.
    reserved: u32,
    short: bool,
}

/// The units of one suite taken together.
#[derive(Default)]
struct Sum {
    passed: usize,
    failed: usize,
    skipped: usize,
    unsteady: usize,
    different: usize,
}

impl Report {
    pub(super) fn new(reserved: u32, short: bool) -> Self {
        Self { suites: Vec::new(), servers: Vec::new(), refused: 0, loads: Vec::new(), reserved, short }
    }

    pub(super) fn write(&self) -> Result<()> {
        let file = repository().join("docs/internals/benchmarks.md");
        report::put(&file, "do-no-harm", &format!("# What others notice of it\n\n{self}"))?;
        Ok(())
    }

    /// Every test came out the same, and nothing of the servers failed. The speed is reported, not asserted.
    pub(super) fn check(&self) -> Result<()> {
        let lines = |all: Vec<&String>| all.into_iter().map(String::as_str).collect::<Vec<_>>().join("\n");
        let different: Vec<_> = self.suites.iter().chain(&self.servers).flat_map(|it| &it.different).collect();
        ensure!(different.is_empty(), "these tests have other results with kernel enforcement:\n{}", lines(different));
        let failed: Vec<_> = self.servers.iter().flat_map(|it| &it.failed).collect();
        ensure!(failed.is_empty(), "these fail with kernel enforcement and without:\n{}", lines(failed));
        ensure!(
            self.refused == 0,
            "{} binds of servers were refused, and none of their ports is reserved",
            self.refused
        );
        Ok(())
    }
}

/// The units of a suite taken together.
fn sums(verdicts: &[Verdict]) -> Vec<(&str, Sum)> {
    let mut sums: Vec<(&str, Sum)> = Vec::new();
    for verdict in verdicts {
        let index = sums.iter().position(|(suite, _)| *suite == verdict.suite).unwrap_or_else(|| {
            sums.push((&verdict.suite, Sum::default()));
            sums.len() - 1
        });
        let sum = &mut sums[index].1;
        sum.passed += verdict.passed;
        sum.failed += verdict.failed.len();
        sum.skipped += verdict.skipped;
        sum.unsteady += verdict.unsteady.len();
        sum.different += verdict.different.len();
    }
    sums
}

fn table(f: &mut fmt::Formatter<'_>, head: &str, verdicts: &[Verdict]) -> fmt::Result {
    writeln!(f, "| {head} | passed | failed on both sides | skipped | unsteady | different with it |")?;
    writeln!(f, "|---|---:|---:|---:|---:|---:|")?;
    for (suite, Sum { passed, failed, skipped, unsteady, different }) in sums(verdicts) {
        writeln!(f, "| {suite} | {passed} | {failed} | {skipped} | {unsteady} | **{different}** |")?;
    }
    writeln!(f)
}

fn list(f: &mut fmt::Formatter<'_>, verdicts: &[Verdict]) -> fmt::Result {
    let mut lines = verdicts.iter().flat_map(Verdict::remarkable).peekable();
    if lines.peek().is_some() {
        lines.try_for_each(|line| writeln!(f, "- {line}"))?;
        writeln!(f)?;
    }
    Ok(())
}

fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let option = if self.short { "--short" } else { "--write" };
        writeln!(
            f,
            "Made by `cargo xtask do-no-harm {option}` as root. {}. \"With\" is in a cgroup with kernel enforcement, while \
             {} ports are reserved for TCP and UDP that nobody here has to do with; \"without\" is in one beside it.\n",
            report::machine(),
            self.reserved
        )?;
        if !self.suites.is_empty() {
            table(f, "tests of", &self.suites)?;
            writeln!(f, "Unsteady tests do not have the same result each time, on one side or both.\n")?;
            list(f, &self.suites)?;
        }
        if !self.servers.is_empty() {
            table(f, "servers on ports of the pool", &self.servers)?;
            writeln!(
                f,
                "Debian's packages, unchanged, each in a network namespace of its own, where 64 ports are reserved that it does \
                 not want. A row counts what clients had done: transfers, queries, messages. Binds that Portkeep refused \
                 meanwhile: {}.\n",
                self.refused
            )?;
            list(f, &self.servers)?;
        }
        if !self.loads.is_empty() {
            writeln!(f, "| under load | without (spread of the turns) | with (spread) | with / without | |")?;
            writeln!(f, "|---|---:|---:|---:|---|")?;
            for load in &self.loads {
                let unit = match load.unit {
                    Unit::Rate => "requests/s",
                    Unit::Milliseconds => "ms for the slowest 1 %",
                };
                let (plain, kept) = (Side::of(&load.without), Side::of(&load.with));
                let ratio = kept.median / plain.median;
                writeln!(f, "| {}: {unit} | {plain} | {kept} | {ratio:.2} | {} |", load.what, load.verdict())?;
            }
            writeln!(
                f,
                "\nMedians of turns that alternate between both sides. Within noise: the median with it lies in the spread \
                 of the turns without it."
            )?;
        }
        Ok(())
    }
}

/// The turns of one side.
struct Side {
    median: f64,
    least: f64,
    most: f64,
}

impl Side {
    fn of(turns: &[f64]) -> Self {
        Self {
            median: report::median(turns.to_vec()),
            least: turns.iter().copied().fold(f64::INFINITY, f64::min),
            most: turns.iter().copied().fold(0.0, f64::max),
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} to {})", number(self.median), number(self.least), number(self.most))
    }
}

impl Load {
    fn verdict(&self) -> &'static str {
        let (plain, kept) = (Side::of(&self.without), Side::of(&self.with));
        let (worse, better) = match self.unit {
            Unit::Rate => (kept.median < plain.least, kept.median > plain.most),
            Unit::Milliseconds => (kept.median > plain.most, kept.median < plain.least),
        };
        match (worse, better) {
            (true, _) => "WORSE",
            (_, true) => "better",
            _ => "within noise",
        }
    }
}
