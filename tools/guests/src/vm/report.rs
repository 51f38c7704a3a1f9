//! The output of a guest, and the verdict on it.

use std::{collections::BTreeSet, fmt};

use anyhow::{Context, Result};
use serde::Deserialize;

/// The rest of a line after this is for us; firmware and kernel may have begun the line.
const MARK: &str = "@vm ";

/// A line meant for us.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Ended(Ended),
    Word(Milestone),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Milestone {
    Booted,
    /// The guest got to its end.
    Complete,
}

/// How one run of a test binary ended.
#[derive(Deserialize)]
struct Ended {
    binary: String,
    attach: String,
    code: i32,
    milliseconds: u64,
}

/// One run of a test binary.
pub(super) struct Outcome {
    binary: String,
    /// Where its programs were attached: root, or below.
    pub(super) attach: String,
    seconds: f64,
    code: i32,
    tests: usize,
    /// The tests that this kernel could not run, and why.
    skipped: Vec<String>,
    left: BTreeSet<String>,
    taken: BTreeSet<String>,
}

impl Outcome {
    pub(super) fn passed(&self) -> bool {
        self.code == 0
    }

    fn of(ended: Ended, printed: &[String]) -> Self {
        let shown = |word| printed.iter().filter_map(move |line| Some(line.split_once(word)?.1.to_owned()));
        // The harness prints this at the end; nothing else in a test's output looks like that.
        let tests = shown("test result: ").filter_map(|line| {
            let (before, _) = line.split_once(" passed")?;
            before.rsplit(' ').next()?.parse::<usize>().ok()
        });
        Self {
            binary: ended.binary,
            attach: ended.attach,
            seconds: ended.milliseconds as f64 / 1000.0,
            code: ended.code,
            tests: tests.sum(),
            skipped: shown("SKIPPED ").collect(),
            left: shown("LEFT ").collect(),
            taken: shown("TAKEN ").collect(),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed() { "pass" } else { "FAIL" };
        write!(f, "{verdict}  {:<20} {:<5} {:>6.1} s", self.binary, self.attach, self.seconds)
    }
}

#[derive(Default)]
pub(super) struct Report {
    pub(super) outcomes: Vec<Outcome>,
    pub(super) booted: bool,
    pub(super) complete: bool,
    printed: Vec<String>,
}

/// The kind of a line.
pub(super) enum Word<'a> {
    /// Printed by a test, or the kernel.
    Console,
    Milestone,
    /// A test binary ended; what it had printed.
    Ended(&'a Outcome, Vec<String>),
}

impl Report {
    pub(super) fn hear(&mut self, line: &str) -> Result<Word<'_>> {
        let Some((_, text)) = line.split_once(MARK) else {
            self.printed.push(line.to_owned());
            return Ok(Word::Console);
        };
        match serde_json::from_str(text).with_context(|| format!("the guest says {line}"))? {
            Line::Word(Milestone::Booted) => self.booted = true,
            Line::Word(Milestone::Complete) => self.complete = true,
            Line::Ended(ended) => {
                let printed = std::mem::take(&mut self.printed);
                self.outcomes.push(Outcome::of(ended, &printed));
                let outcome = &self.outcomes[self.outcomes.len() - 1];
                return Ok(Word::Ended(outcome, printed));
            }
        }
        Ok(Word::Milestone)
    }

    /// The output since the last test binary ended.
    pub(super) fn unexplained(&self) -> &[String] {
        &self.printed
    }

    /// Tests that were left for a run below the root and did not run there, and tests that ran there but were never
    /// left for it.
    pub(super) fn forgotten(&self) -> BTreeSet<&str> {
        let all = |of: fn(&Outcome) -> &BTreeSet<String>| {
            let shown = self.outcomes.iter();
            shown
                .flat_map(move |outcome| of(outcome).iter().map(|test| (outcome.binary.as_str(), test.as_str())))
                .collect::<BTreeSet<_>>()
        };
        let (left, taken) = (all(|outcome| &outcome.left), all(|outcome| &outcome.taken));
        left.symmetric_difference(&taken).map(|(_, test)| *test).collect()
    }

    /// Each thing that could not be tested, once.
    pub(super) fn skipped(&self) -> BTreeSet<(&str, &str)> {
        let all = self.outcomes.iter();
        all.flat_map(|outcome| outcome.skipped.iter().map(|why| (outcome.binary.as_str(), why.as_str()))).collect()
    }

    /// How many tests ran attached to the root, and how many below it because they need an outside.
    pub(super) fn counts(&self) -> (usize, usize) {
        let at_root = self.outcomes.iter().filter(|outcome| outcome.attach == "root");
        let left = self.outcomes.iter().map(|outcome| outcome.left.len()).sum();
        (at_root.map(|outcome| outcome.tests).sum::<usize>().saturating_sub(left), left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(lines: &[&str]) -> Report {
        let mut report = Report::default();
        for line in lines {
            report.hear(line).unwrap();
        }
        report
    }

    #[test]
    fn a_test_left_at_the_root_must_pass_below_it() {
        let root = [
            "Booting from ROM..@vm \"booted\"",
            "test one ... ok",
            "LEFT two: needs an outside",
            "SKIPPED door: no key",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s",
            r#"@vm {"binary":"kernel/a","attach":"root","code":0,"milliseconds":1500}"#,
        ];
        let below =
            ["TAKEN two: needs an outside", r#"@vm {"binary":"kernel/a","attach":"below","code":0,"milliseconds":1}"#];
        let report = heard(&root);
        assert!(report.booted && !report.complete && report.outcomes[0].passed());
        assert_eq!(report.forgotten(), BTreeSet::from(["two: needs an outside"]));
        assert_eq!(report.skipped(), BTreeSet::from([("kernel/a", "door: no key")]));
        assert_eq!(report.counts(), (2, 1));
        let report = heard(&[&root[..], &below[..], &["@vm \"complete\""]].concat());
        assert!(report.complete && report.forgotten().is_empty());
        assert_eq!(report.counts(), (2, 1));
    }

    #[test]
    fn the_report_holds_the_output_of_binaries_and_nothing_else() {
        let mut report =
            heard(&["before", r#"@vm {"binary":"a","attach":"root","code":0,"milliseconds":1}"#, "panicked"]);
        let ended = r#"@vm {"binary":"b","attach":"root","code":101,"milliseconds":1}"#;
        let Word::Ended(outcome, printed) = report.hear(ended).unwrap() else { panic!("it ended") };
        assert!(!outcome.passed());
        assert_eq!(printed, ["panicked"]);
        assert!(report.hear("@vm nonsense").is_err());
    }
}
