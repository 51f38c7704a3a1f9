//! Tests of another project, run without kernel enforcement and with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    thread,
};

use anyhow::Result;

use portkeep_testkit::places::Places;

/// Tests by name, and what came of each.
pub(super) type Outcomes = BTreeMap<String, String>;

/// Tests that are run together.
pub(super) trait Unit: Sync {
    /// The project that the tests belong to.
    fn suite(&self) -> &str;
    /// Which of them.
    fn name(&self) -> String;
    /// Run them in a cgroup.
    fn run(&self, cgroup: &Path) -> Result<Outcomes>;
}

/// The results of a unit on both sides.
pub(super) struct Verdict {
    pub(super) suite: String,
    pub(super) passed: usize,
    pub(super) skipped: usize,
    /// On both sides.
    pub(super) failed: Vec<String>,
    /// Tests that vary from run to run, without kernel enforcement or on both sides.
    pub(super) unsteady: Vec<String>,
    /// Tests that differ with kernel enforcement, every time.
    pub(super) different: Vec<String>,
}

impl Verdict {
    /// Tests that did not simply pass on both sides, one line each.
    pub(super) fn remarkable(&self) -> impl Iterator<Item = &String> {
        self.different.iter().chain(&self.unsteady).chain(&self.failed)
    }
}

/// A difference counts if it is there each time.
const TRIES: usize = 3;

type Seen = BTreeMap<String, BTreeSet<String>>;

pub(super) fn compare(unit: &dyn Unit, places: &Places) -> Result<Verdict> {
    let (mut without, mut with) = (Seen::new(), Seen::new());
    let mut reference = Outcomes::new();
    for attempt in 0..TRIES {
        let (outcomes, others) = both(unit, places)?;
        note(&mut without, &outcomes);
        note(&mut with, &others);
        if attempt == 0 {
            reference = outcomes;
        }
        if without == with {
            break;
        }
    }
    let tests = || reference.iter().filter(|(test, _)| !test.ends_with(AS_A_WHOLE));
    let count = |what: &str| tests().filter(|(_, outcome)| *outcome == what).count();
    let mut verdict = Verdict {
        suite: unit.suite().to_owned(),
        passed: count(PASSED),
        skipped: count(SKIPPED),
        failed: Vec::new(),
        unsteady: Vec::new(),
        different: Vec::new(),
    };
    let nothing = BTreeSet::new();
    for test in without.keys().chain(with.keys()).collect::<BTreeSet<_>>() {
        let (a, b) = (without.get(test).unwrap_or(&nothing), with.get(test).unwrap_or(&nothing));
        let line = || format!("{}: {test}: without {}, with {}", unit.name(), list(a), list(b));
        if a.is_disjoint(b) {
            verdict.different.push(line());
        } else if a.len() > 1 || b.len() > 1 {
            verdict.unsteady.push(line());
        } else if !a.contains(PASSED) && !a.contains(SKIPPED) && !test.ends_with(AS_A_WHOLE) {
            verdict.failed.push(format!("{}: {test}: {} on both sides", unit.name(), list(a)));
        }
    }
    Ok(verdict)
}

/// Side by side, in two namespaces, because most tests spend their time waiting. The reservations are in the one of
/// this thread.
fn both(unit: &dyn Unit, places: &Places) -> Result<(Outcomes, Outcomes)> {
    let (without, with) = (places.cgroup(false).path(), places.cgroup(true).path());
    thread::scope(|scope| {
        let beside = scope.spawn(|| {
            Places::fresh_network();
            unit.run(without)
        });
        let with = unit.run(with);
        Ok((beside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?, with?))
    })
}

/// The end of a name that is not a test: its outcome says whether a unit came to its end, and how.
pub(super) const AS_A_WHOLE: &str = " as a whole";
pub(super) const PASSED: &str = "passed";
pub(super) const SKIPPED: &str = "skipped";

fn note(seen: &mut Seen, outcomes: &Outcomes) {
    for (test, outcome) in outcomes {
        seen.entry(test.clone()).or_default().insert(outcome.clone());
    }
}

fn list(outcomes: &BTreeSet<String>) -> String {
    if outcomes.is_empty() {
        return "not there".into();
    }
    outcomes.iter().map(String::as_str).collect::<Vec<_>>().join(" or ")
}
