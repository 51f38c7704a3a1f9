//! The tests that crates on crates.io are published with.
//!
//! The sources are where cargo unpacks what one depends on. They are copied
//! into a workspace of their own, so that tokio's tests and the helper crates
//! they use mean the same tokio.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use portkeep_testkit::places::inside;
use serde::Deserialize;

use super::suite::{AS_A_WHOLE, Outcomes, PASSED, SKIPPED, Unit};

/// Name, version, and the features its own CI tests it with.
const CRATES: [(&str, &str, &str); 3] = [("tokio", "1", "full,test-util"), ("polling", "3", ""), ("quinn", "0.11", "")];

/// One test binary.
pub(super) struct Binary {
    package: &'static str,
    target: String,
    path: PathBuf,
    folder: PathBuf,
}

pub(super) fn units(work: &Path) -> Result<Vec<Box<dyn Unit>>> {
    let workspace = work.join("crates");
    if let Err(error) = unpack(&workspace, &work.join("fetch")) {
        println!("SKIPPED the tests of tokio, polling and quinn: {error:#}");
        return Ok(Vec::new());
    }
    let mut units: Vec<Box<dyn Unit>> = Vec::new();
    for (package, _, features) in CRATES {
        eprintln!("building the tests of {package}");
        let binaries = build(&workspace, package, features)?;
        ensure!(!binaries.is_empty(), "no test of {package} could be built");
        units.extend(binaries.into_iter().map(|binary| Box::new(binary) as Box<dyn Unit>));
    }
    Ok(units)
}

/// Have cargo fetch the crates, and put copies into a workspace.
fn unpack(workspace: &Path, fetch: &Path) -> Result<()> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
        manifest_path: PathBuf,
    }
    fs::create_dir_all(fetch.join("src"))?;
    fs::write(fetch.join("src/lib.rs"), "")?;
    let wanted = CRATES.map(|(name, version, _)| format!("{name} = \"{version}\"\n")).concat();
    let head = "[package]\nname = \"fetch\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n";
    fs::write(fetch.join("Cargo.toml"), format!("{head}{wanted}"))?;
    let output = cargo(fetch).args(["metadata", "--format-version=1"]).output().context("starting cargo metadata")?;
    ensure!(output.status.success(), "cargo cannot fetch them: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("reading cargo metadata")?;

    fs::create_dir_all(workspace)?;
    for (name, ..) in CRATES {
        let package = metadata.packages.iter().find(|package| package.name == name).context("a crate is missing")?;
        eprintln!("{name} {}", package.version);
        let source = package.manifest_path.parent().context("a crate's folder")?;
        let copied = Command::new("cp").arg("-r").arg(source).arg(workspace.join(name)).status()?;
        ensure!(copied.success(), "copying {}", source.display());
    }
    let members = CRATES.map(|(name, ..)| format!("{name:?}")).join(", ");
    let root = format!(
        "[workspace]\nresolver = \"2\"\nmembers = [{members}]\n\n[patch.crates-io]\ntokio = {{ path = \"tokio\" }}\n"
    );
    fs::write(workspace.join("Cargo.toml"), root)?;
    Ok(())
}

fn cargo(folder: &Path) -> Command {
    let mut command = portkeep_tool::cargo();
    command.current_dir(folder);
    command.env("CARGO_TARGET_DIR", folder.join("target"));
    // They are run once or twice: neither symbols nor incremental compilation are worth their space.
    command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_INCREMENTAL", "0");
    command.stderr(Stdio::piped());
    command
}

/// Their test binaries: all that can be built here.
fn build(workspace: &Path, package: &'static str, features: &str) -> Result<Vec<Binary>> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        target: Option<Target>,
        profile: Option<Profile>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    #[derive(Deserialize)]
    struct Profile {
        test: bool,
    }
    let mut command = cargo(workspace);
    command.args(["build", "--tests", "--keep-going", "--message-format=json", "-p", package]);
    if !features.is_empty() {
        command.args(["--features", features]);
    }
    let output = command.output().context("starting cargo build")?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        for line in errors.lines().filter(|line| line.starts_with("error: could not compile")) {
            println!("SKIPPED {package}: {line}");
        }
    }
    let mut binaries = Vec::new();
    for message in serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Message>() {
        let Message { executable, target, profile } = message.context("reading cargo's messages")?;
        if let (Some(path), Some(target), Some(Profile { test: true })) = (executable, target, profile) {
            binaries.push(Binary { package, target: target.name, path, folder: workspace.join(package) });
        }
    }
    Ok(binaries)
}

impl Unit for Binary {
    fn suite(&self) -> &str {
        self.package
    }

    fn name(&self) -> String {
        format!("{} {}", self.package, self.target)
    }

    fn run(&self, cgroup: &Path) -> Result<Outcomes> {
        let mut tests = inside(cgroup, "timeout");
        tests.arg("300").arg(&self.path).current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        let output = tests.stdin(Stdio::null()).output().with_context(|| format!("starting {}", self.name()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut outcomes: Outcomes = text.lines().filter_map(outcome).collect();
        outcomes.insert(
            format!("{}{AS_A_WHOLE}", self.target),
            match output.status.success() {
                true => PASSED.into(),
                false => output.status.to_string(),
            },
        );
        Ok(outcomes)
    }
}

/// A line of Rust's test harness: `test NAME ... ok`.
fn outcome(line: &str) -> Option<(String, String)> {
    let (test, outcome) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let outcome = match outcome.split(',').next()? {
        "ok" => PASSED,
        "ignored" => SKIPPED,
        other => other,
    };
    Some((test.to_owned(), outcome.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_harness() {
        let said = |line| outcome(line).map(|(test, outcome)| format!("{test}: {outcome}"));
        assert_eq!(said("test a::b ... ok").as_deref(), Some("a::b: passed"));
        assert_eq!(said("test b - should panic ... FAILED").as_deref(), Some("b - should panic: FAILED"));
        assert_eq!(said("test c ... ignored, needs a network").as_deref(), Some("c: skipped"));
        assert_eq!(said("test result: ok. 3 passed; 0 failed"), None);
    }
}
