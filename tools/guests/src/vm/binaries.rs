//! The test binaries and the programs they start.

use std::{path::PathBuf, process::Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use portkeep_tool::{cargo, target_folder};

/// Tests of the command that require more programs than a guest has, and have little to do with the kernel.
const NOT_IN_GUESTS: &[&str] = &["small", "containers", "clusters", "adopt", "doctor"];

/// The binaries that the guest runs, and those that the tests start, at the path they were built at.
pub(super) struct Binaries {
    pub(super) tests: Vec<Binary>,
    pub(super) programs: Vec<PathBuf>,
}

pub(super) struct Binary {
    /// Two packages may have tests of one name.
    pub(super) name: String,
    pub(super) path: PathBuf,
}

/// The part of cargo's messages that matters here.
#[derive(Deserialize)]
struct Message {
    package_id: Option<String>,
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

impl Message {
    /// The name of its package. An id ends with `/FOLDER#NAME@VERSION`, or with `/NAME#VERSION`.
    fn package(&self) -> Option<&str> {
        let (folder, rest) = self.package_id.as_deref()?.rsplit_once('#')?;
        rest.split_once('@').map(|(name, _)| name).or_else(|| folder.rsplit('/').next())
    }
}

pub(super) fn build(packages: &[String], wanted: &[String], short: bool) -> Result<Binaries> {
    let all = ["*".to_owned()];
    let wanted = if wanted.is_empty() { &all[..] } else { wanted };
    let tests = wanted.iter().flat_map(|name| ["--test", name]);
    let mut binaries = Binaries { tests: Vec::new(), programs: Vec::new() };
    for message in cargo_says(&["test", "--no-run"], packages, tests, short)? {
        let (Some(package), Some(path), Some(target)) = (message.package(), &message.executable, &message.target)
        else {
            continue;
        };
        let is = |kind: &str| target.kind.iter().any(|k| k == kind);
        if is("bin") {
            binaries.programs.push(path.clone());
        } else if is("test") && !NOT_IN_GUESTS.contains(&target.name.as_str()) {
            let folder = package.trim_start_matches("portkeep-");
            binaries.tests.push(Binary { name: format!("{folder}/{}", target.name), path: path.clone() });
        }
    }
    // Asked for together with tests, they would be built as tests.
    let examples = cargo_says(&["build"], packages, ["--examples"], short)?;
    binaries.programs.extend(examples.into_iter().filter_map(|message| message.executable));
    ensure!(!binaries.tests.is_empty(), "there is no such test in {}", packages.join(", "));
    // Sorted, so that a reader can follow the progress of a run.
    binaries.tests.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(binaries)
}

/// The messages of cargo about these packages.
fn cargo_says<'a>(
    what: &[&str],
    packages: &[String],
    targets: impl IntoIterator<Item = &'a str>,
    short: bool,
) -> Result<Vec<Message>> {
    let mut command = cargo();
    command.args(what).arg("--message-format=json-render-diagnostics").args(targets).stderr(Stdio::inherit());
    if short {
        // `cargo test --workspace` has built these already.
        command.arg("--workspace");
    } else {
        // The guest runs the tests many times slower than this machine would, and from memory.
        command
            .args(["--config", "profile.dev.opt-level=1", "--config", "profile.dev.strip='debuginfo'"])
            .arg("--target-dir")
            .arg(target_folder().join("vm/build"))
            .args(packages.iter().flat_map(|package| ["-p", package]));
    }
    let output = command.output().context("starting cargo")?;
    ensure!(output.status.success(), "building the tests failed");
    let messages = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Message>();
    let messages = messages.map(|message| message.context("reading cargo's messages"));
    let is_asked_for = |message: &Message| packages.iter().any(|package| message.package() == Some(package));
    messages.filter(|message| message.as_ref().map_or(true, is_asked_for)).collect()
}
