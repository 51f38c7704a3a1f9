//! libFuzzer on every parser that reads what others wrote.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use portkeep_tool::{Missing, cargo, repository, target_folder};

/// Search for inputs that break a parser
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Targets, as the folders of tools/parsers/seeds are named [default: all]
    targets: Vec<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Build with optimization: longer to build, and more inputs a second
    #[arg(long)]
    release: bool,
    /// Only build the fuzzer
    #[arg(long)]
    no_run: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let parsers = repository().join("tools/parsers");
    let all = names(&parsers.join("seeds"))?;
    for target in &options.targets {
        ensure!(all.contains(target), "no target has the name {target}: there are {}", all.join(", "));
    }
    if Command::new("c++").arg("--version").output().is_err() {
        return Err(Missing { what: "c++".into(), remedy: "apt-get install g++".into() }.into());
    }
    let mut build = cargo();
    build.env("RUSTC_WORKSPACE_WRAPPER", parsers.join("instrument"));
    build.args(["build", "--quiet", "--workspace", "--features=portkeep-parsers/fuzzer", "--bin=fuzz"]);
    build.args(options.release.then_some("--release"));
    ensure!(build.status().context("starting cargo")?.success(), "building the fuzzer failed");
    if options.no_run {
        return Ok(());
    }
    let fuzzer = target_folder().join(if options.release { "release/fuzz" } else { "debug/fuzz" });
    let targets = if options.targets.is_empty() { &all } else { &options.targets };
    for target in targets {
        let folder = target_folder().join("fuzz").join(target);
        let corpus = folder.join("corpus");
        fs::create_dir_all(&corpus).with_context(|| format!("making {}", corpus.display()))?;
        let mut run = Command::new(&fuzzer);
        run.env("PORTKEEP_PARSER", target).arg(&corpus).arg(parsers.join("seeds").join(target));
        run.arg(format!("-max_total_time={}", options.seconds));
        run.arg(format!("-artifact_prefix={}/", folder.display()));
        run.arg("-print_final_stats=1");
        let output = run.output().with_context(|| format!("starting {}", fuzzer.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{target} fails with an input:\n{said}");
        let tried = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
        println!("{target}: {} inputs", tried.context("libFuzzer printed no number of inputs")?.trim());
    }
    Ok(())
}

/// The names of the entries, sorted.
fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut names =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}
