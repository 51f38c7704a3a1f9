//! The test binaries and the programs they start, linked statically so that the guest needs no libraries for them.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use portkeep_tool::cargo;

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
    manifest_path: Option<PathBuf>,
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

pub(super) fn build(packages: &[String], wanted: &[String]) -> Result<Binaries> {
    let all = ["*".to_owned()];
    let wanted = if wanted.is_empty() { &all[..] } else { wanted };
    let tests = wanted.iter().flat_map(|name| ["--test", name]);
    let mut binaries = Binaries { tests: Vec::new(), programs: Vec::new() };
    for message in cargo_says(&["test", "--no-run"], packages, tests)? {
        let (Some(path), Some(target)) = (message.executable, message.target) else { continue };
        let is = |kind: &str| target.kind.iter().any(|k| k == kind);
        if is("bin") {
            binaries.programs.push(path);
        } else if is("test") && !NOT_IN_GUESTS.contains(&target.name.as_str()) {
            let package = message.manifest_path.as_deref().and_then(Path::parent).and_then(Path::file_name);
            let package = package.unwrap_or_default().to_string_lossy();
            binaries.tests.push(Binary { name: format!("{package}/{}", target.name), path });
        }
    }
    // Asked for together with tests, they would be built as tests.
    let examples = cargo_says(&["build"], packages, ["--examples"])?;
    binaries.programs.extend(examples.into_iter().filter_map(|message| message.executable));
    ensure!(!binaries.tests.is_empty(), "there is no such test in {}", packages.join(", "));
    // Sorted, so that a reader can follow the progress of a run.
    binaries.tests.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(binaries)
}

fn cargo_says<'a>(
    what: &[&str],
    packages: &[String],
    targets: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<Message>> {
    let mut command = cargo();
    command
        .args(what)
        // With --target the flags do not reach build scripts and procedural macros, and the artifacts get a folder of their own.
        .args(["--message-format=json-render-diagnostics", "--target=x86_64-unknown-linux-gnu"])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        // The guest runs the tests many times slower than this machine would, and from memory.
        .args(["--config", "profile.dev.opt-level=1", "--config", "profile.dev.strip='debuginfo'"])
        .args(packages.iter().flat_map(|package| ["-p", package]))
        .args(targets)
        .stderr(Stdio::inherit());
    let output = command.output().context("starting cargo")?;
    ensure!(output.status.success(), "building the tests failed");
    let messages = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Message>();
    messages.map(|message| message.context("reading cargo's messages")).collect()
}
