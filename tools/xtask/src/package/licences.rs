//! The licences of everything that is linked into a program.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use portkeep_tool::cargo;
use serde_json::Value;

/// The crates with their licences, and each text once.
pub(super) fn text(package: &str) -> Result<String> {
    let linked = linked(package)?;
    let mut text = String::from("Portkeep is built with these crates. Their licences follow.\n\n");
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for about in &linked {
        let name = format!("{} {}", string(about, "name"), string(about, "version"));
        writeln!(text, "{name}: {} ({})", string(about, "license"), string(about, "repository"))?;
        let folder = Path::new(string(about, "manifest_path")).parent().context("a manifest without a folder")?;
        for licence in files(folder)? {
            texts.entry(licence).or_default().insert(name.clone());
        }
    }
    text.push_str("The Rust standard library: MIT OR Apache-2.0 (https://github.com/rust-lang/rust)\n");
    let mut texts: Vec<_> = texts.into_iter().collect();
    texts.sort_by(|a, b| (&a.1, &a.0).cmp(&(&b.1, &b.0)));
    for (licence, crates) in texts {
        let crates: Vec<String> = crates.into_iter().collect();
        writeln!(text, "\n{}\n{}\n\n{}", "-".repeat(80), crates.join(", "), licence.trim_end())?;
    }
    Ok(text)
}

fn string<'a>(about: &'a Value, key: &str) -> &'a str {
    about[key].as_str().unwrap_or_default()
}

/// The crates of others whose code is in the program: neither tests' nor build scripts' nor macros.
fn linked(package: &str) -> Result<Vec<Value>> {
    let mut metadata = cargo();
    metadata.args(["metadata", "--format-version=1", "--locked", "--filter-platform=x86_64-unknown-linux-gnu"]);
    let output = metadata.output().context("starting cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).context("reading what cargo metadata printed")?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let packages: BTreeMap<String, Value> =
        list(&metadata["packages"]).into_iter().map(|about| (string(&about, "id").to_owned(), about)).collect();
    let nodes: BTreeMap<String, Value> =
        list(&metadata["resolve"]["nodes"]).into_iter().map(|node| (string(&node, "id").to_owned(), node)).collect();
    let first = packages.iter().find(|(_, about)| string(about, "name") == package).context("an unknown package")?;
    let mut seen = BTreeSet::new();
    let mut next = vec![first.0.clone()];
    while let Some(id) = next.pop() {
        let about = &packages[&id];
        let is_macro = list(&about["targets"]).iter().any(|target| target["kind"] == serde_json::json!(["proc-macro"]));
        if is_macro || !seen.insert(id.clone()) {
            continue;
        }
        for dependency in list(&nodes[&id]["deps"]) {
            if list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()) {
                next.push(string(&dependency, "pkg").to_owned());
            }
        }
    }
    let mut linked: Vec<Value> =
        seen.iter().map(|id| packages[id].clone()).filter(|about| !about["source"].is_null()).collect();
    linked.sort_by_key(|about| (string(about, "name").to_owned(), string(about, "version").to_owned()));
    Ok(linked)
}

fn files(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        let is_licence =
            ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"].iter().any(|word| name.starts_with(word));
        if is_licence && path.is_file() {
            let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            found.push(String::from_utf8_lossy(&text).into_owned());
        }
    }
    Ok(found)
}
