//! The crates that are published: complete, and usable without the repository.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result, ensure};
use portkeep_tool::{Tool, cargo, repository, target_folder};
use serde_json::Value;

const TAR: Tool = Tool { name: "tar", remedy: "apt-get install tar" };

/// Pack the published crates, build them outside of the repository, and install the command from them
#[derive(clap::Args)]
pub(crate) struct Options {}

pub(crate) fn run(_: &Options) -> Result<()> {
    let crates = published()?;
    let packages = crates.iter().flat_map(|(name, _)| ["--package", name.as_str()]);
    let mut pack = cargo();
    // The crates below are built outside, in one go.
    pack.args(["package", "--quiet", "--no-verify", "--allow-dirty"]).args(packages);
    ensure!(pack.status().context("starting cargo")?.success(), "cargo package failed");

    let folder = tempfile::tempdir().context("making a temporary folder")?;
    let outside = folder.path();
    let mut manifest = String::from("[workspace]\nresolver = \"3\"\nmembers = [\"*-*.*.*\"]\n\n[patch.crates-io]\n");
    for (name, version) in &crates {
        let file = target_folder().join("package").join(format!("{name}-{version}.crate"));
        // The files get the time of now. The files of every packed crate are from 2006, and cargo would take an earlier
        // build for this one.
        TAR.run(TAR.command().arg("-C").arg(outside).args(["--touch", "-xzf"]).arg(&file))?;
        let unpacked = outside.join(format!("{name}-{version}"));
        for part in ["README.md", "LICENSE-APACHE", "LICENSE-MIT"] {
            let text = fs::read_to_string(unpacked.join(part)).with_context(|| format!("{part} of {name}"))?;
            ensure!(!text.is_empty(), "{part} of {name} is empty");
        }
        writeln!(manifest, "{name} = {{ path = \"{name}-{version}\" }}")?;
    }
    // The same versions and profiles of other crates, so that most of them are built already.
    let ours = fs::read_to_string(repository().join("Cargo.toml")).context("reading Cargo.toml")?;
    let profiles = ours.find("\n[profile.").context("Cargo.toml has no profiles")?;
    manifest.push_str(&ours[profiles..]);
    fs::write(outside.join("Cargo.toml"), manifest).context("writing a workspace")?;
    fs::copy(repository().join("Cargo.lock"), outside.join("Cargo.lock")).context("copying Cargo.lock")?;
    let cargo_outside = |arguments: &[&str]| -> Result<()> {
        let mut run = cargo();
        run.current_dir(outside).env("CARGO_TARGET_DIR", target_folder()).args(arguments);
        ensure!(run.status().context("starting cargo")?.success(), "cargo {} failed outside", arguments.join(" "));
        Ok(())
    };
    // Only checked: the Winsock layer's libraries have one name in the target folder, and would be put in the place of the
    // repository's.
    cargo_outside(&[
        "check",
        "--quiet",
        "--package=portkeep-winsock",
        "--package=portkeep-web",
        "--package=portkeep-fleet",
    ])?;
    // The command requires all others.
    let (cli, version) = crates.iter().find(|(name, _)| name == "portkeep-cli").context("portkeep-cli is published")?;
    let (path, root) = (format!("{cli}-{version}"), outside.join("installed").display().to_string());
    cargo_outside(&["install", "--quiet", "--locked", "--debug", "--no-track", "--path", &path, "--root", &root])?;
    let program = Path::new(&root).join("bin/portkeep");
    ensure!(program.is_file(), "cargo install {cli} gives no portkeep");
    println!("{} crates are packed, build outside of the repository, and install portkeep", crates.len());
    Ok(())
}

/// Names and versions, with all that crates.io and docs.rs show.
fn published() -> Result<Vec<(String, String)>> {
    let output = cargo().args(["metadata", "--no-deps", "--format-version=1"]).output().context("starting cargo")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).context("reading what cargo metadata printed")?;
    let mut crates = Vec::new();
    for about in metadata["packages"].as_array().context("no packages")? {
        // Null means every registry, an empty list none.
        if !about["publish"].is_null() {
            continue;
        }
        let text = |key: &str| about[key].as_str().unwrap_or_default().to_owned();
        for key in ["description", "license", "repository", "documentation", "readme", "rust_version"] {
            ensure!(!text(key).is_empty(), "{} has no {key}", text("name"));
        }
        for key in ["keywords", "categories"] {
            ensure!(about[key].as_array().is_some_and(|list| !list.is_empty()), "{} has no {key}", text("name"));
        }
        crates.push((text("name"), text("version")));
    }
    Ok(crates)
}
