//! Both tables, in Markdown.

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
        Self { suites: Vec::new(), loads: Vec::new(), reserved, short }
    }

    pub(super) fn write(&self) -> Result<()> {
        let file = repository().join("docs/internals/benchmarks.md");
        report::put(&file, "do-no-harm", &format!("# What others notice of it\n\n{self}"))?;
        Ok(())
    }

    /// Every test came out the same. The speed of servers is reported, not asserted.
    pub(super) fn check(&self) -> Result<()> {
        let different: Vec<_> = self.suites.iter().flat_map(|suite| &suite.different).map(String::as_str).collect();
        ensure!(
            different.is_empty(),
            "these tests have other results with kernel enforcement:\n{}",
            different.join("\n")
        );
        Ok(())
    }

    fn sums(&self) -> Vec<(&str, Sum)> {
        let mut sums: Vec<(&str, Sum)> = Vec::new();
        for verdict in &self.suites {
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
            writeln!(f, "| tests of | passed | failed on both sides | skipped | unsteady | different with it |")?;
            writeln!(f, "|---|---:|---:|---:|---:|---:|")?;
            for (suite, Sum { passed, failed, skipped, unsteady, different }) in self.sums() {
                writeln!(f, "| {suite} | {passed} | {failed} | {skipped} | {unsteady} | **{different}** |")?;
            }
            writeln!(f, "\nUnsteady tests come out now so, now otherwise on one side or both.\n")?;
            for line in self.suites.iter().flat_map(Verdict::remarkable) {
                writeln!(f, "- {line}")?;
            }
            writeln!(f)?;
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
