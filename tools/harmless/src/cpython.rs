//! The tests of Python's standard library, as the Python at hand has them.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::suite::{Outcomes, Unit};
use portkeep_testkit::places::inside;

const PYTHON: &str = "python3";

/// They use no internet sockets and no network namespace. If the host of a virtual machine does not support them, they
/// wait for ever.
const ELSEWHERE: &str = "*VSOCK*";

pub(super) struct Module(&'static str);

pub(super) fn units(short: bool) -> Vec<Box<dyn Unit>> {
    let modules: &[_] = if short { &["test_socket"] } else { &["test_socket", "test_socketserver", "test_asyncio"] };
    let mut units: Vec<Box<dyn Unit>> = Vec::new();
    for module in modules {
        let mut probe = Command::new(PYTHON);
        probe.args(["-c", &format!("import test.{module}")]).stderr(Stdio::null());
        if probe.status().is_ok_and(|status| status.success()) {
            units.push(Box::new(Module(module)));
        } else {
            println!("SKIPPED {module}: this Python comes without its tests; apt-get install libpython3-testsuite");
        }
    }
    units
}

impl Unit for Module {
    fn suite(&self) -> &str {
        self.0
    }

    fn name(&self) -> String {
        self.0.into()
    }

    fn run(&self, cgroup: &Path) -> Result<Outcomes> {
        let folder = tempfile::tempdir().context("a temporary folder")?;
        let results = folder.path().join("results.xml");
        let mut tests = inside(cgroup, "timeout");
        tests.args(["900", PYTHON, "-m", "test", "-u", "network", "--ignore", ELSEWHERE, "--junit-xml"]);
        tests.arg(&results).arg(self.0);
        let output = tests.current_dir(folder.path()).output().context("starting the tests")?;
        // Whether the tests passed is decided by the comparison. Here it matters only that there are results.
        let text = || String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(results.exists(), "{} did not come to an end ({}): {}", self.0, output.status, text());
        let script = folder.path().join("outcomes.py");
        fs::write(&script, include_str!("outcomes.py"))?;
        let read = Command::new(PYTHON).arg(script).arg(&results).output().context("reading the results")?;
        ensure!(read.status.success(), "reading the results: {}", String::from_utf8_lossy(&read.stderr));
        let lines = String::from_utf8(read.stdout)?;
        let outcomes = lines.lines().filter_map(|line| line.split_once('\t'));
        let outcomes: Outcomes = outcomes.map(|(test, outcome)| (test.to_owned(), outcome.to_owned())).collect();
        ensure!(!outcomes.is_empty(), "{} ran no test: {}", self.0, text());
        Ok(outcomes)
    }
}
