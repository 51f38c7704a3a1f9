//! The files for systemd, checked by systemd.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail, ensure};

use portkeep_tool::{Tool, build, repository, target_folder};

use crate::install;

/// The highest scores that `systemd-analyze security` may give the services, in tenths; below 50 it calls it OK. The agent
/// requires the access that the score counts: BPF, other namespaces and processes, the network's sysctls. The port server
/// requires to become other users, the web server sockets only, the fleet's daemon to be root.
const EXPOSURE: [(&str, u32); 4] = [
    ("portkeep.service", 29),
    ("portkeep-portserver.service", 25),
    ("portkeep-web.service", 15),
    ("portkeep-fleet.service", 24),
];

const SOCKETS: [&str; 1] = ["portkeep-portserver.socket"];

const ANALYZE: Tool = Tool { name: "systemd-analyze", remedy: "apt-get install systemd" };
const SYSUSERS: Tool = Tool { name: "systemd-sysusers", remedy: ANALYZE.remedy };
const TMPFILES: Tool = Tool { name: "systemd-tmpfiles", remedy: ANALYZE.remedy };

/// Check whether systemd accepts the files in packaging/ and how far the services are confined
#[derive(clap::Args)]
pub(crate) struct Options {
    /// As ever: nothing is changed
    #[arg(long)]
    check: bool,
    /// Show what the exposure is made of
    #[arg(long)]
    explain: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let _ = options.check;
    ANALYZE.output(ANALYZE.command().arg("--version"))?;
    build(&["--bin=portkeep", "--bin=portkeep-web", "--bin=portkeep-fleet"])?;

    let stage = tempfile::tempdir().context("making a temporary folder")?;
    install::stage_files(stage.path())?;
    let names = EXPOSURE.iter().map(|(name, _)| *name).chain(SOCKETS);
    let units = names.clone().map(|name| with_program(stage.path(), name)).collect::<Result<Vec<_>>>()?;
    verify(&units)?;
    println!("{}: no complaints", names.collect::<Vec<_>>().join(", "));
    for (unit, (name, exposure)) in units.iter().zip(EXPOSURE) {
        check_exposure(unit, name, exposure, options.explain)?;
    }
    check_accounts_and_folders(stage.path())
}

/// The unit with a program that exists, because systemd checks that, too.
fn with_program(stage: &Path, name: &str) -> Result<PathBuf> {
    let packaged = repository().join("packaging/systemd").join(name);
    let text = fs::read_to_string(&packaged).with_context(|| format!("reading {}", packaged.display()))?;
    // The names of other programs begin with this one.
    let program = target_folder().join("debug/portkeep");
    let unit = stage.join(name);
    fs::write(&unit, text.replace(install::PROGRAM, &program.display().to_string()))
        .with_context(|| format!("writing {}", unit.display()))?;
    Ok(unit)
}

fn verify(units: &[PathBuf]) -> Result<()> {
    let mut verify = ANALYZE.command();
    verify.args(["verify", "--man=no"]).args(units).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = ANALYZE.spawn(&mut verify)?.wait_with_output().context("waiting for systemd-analyze")?;
    // It says things about other units of the machine as well, and it succeeds in spite of unknown directives.
    let said = String::from_utf8_lossy(&output.stderr);
    let complaints: Vec<&str> = said.lines().filter(|line| line.contains("portkeep")).collect();
    ensure!(complaints.is_empty(), "systemd complains:\n{}", complaints.join("\n"));
    ensure!(output.status.success(), "systemd-analyze verify failed: {said}");
    Ok(())
}

fn check_exposure(unit: &Path, name: &str, exposure: u32, explain: bool) -> Result<()> {
    let mut security = ANALYZE.command();
    security.env("SYSTEMD_COLORS", "0").args(["security", "--offline=true", "--no-pager"]);
    security.arg(format!("--threshold={exposure}")).arg(unit).stdout(Stdio::piped());
    let output = ANALYZE.spawn(&mut security)?.wait_with_output().context("waiting for systemd-analyze")?;
    let table = String::from_utf8_lossy(&output.stdout);
    if explain {
        print!("{table}");
    }
    let Some(verdict) = table.lines().rev().find_map(|line| line.split_once("exposure level for ")) else {
        bail!("systemd-analyze security gave no verdict:\n{table}");
    };
    println!("{} (at most {:.1})", verdict.1, f64::from(exposure) / 10.0);
    ensure!(output.status.success(), "{name} is exposed more than it may be:\n{table}");
    Ok(())
}

fn check_accounts_and_folders(stage: &Path) -> Result<()> {
    let root = format!("--root={}", stage.display());
    SYSUSERS.run(SYSUSERS.command().arg(&root))?;
    let groups = fs::read_to_string(stage.join("etc/group")).context("reading the groups that were made")?;
    ensure!(groups.lines().any(|line| line.starts_with("portkeep:")), "there is no group portkeep in:\n{groups}");
    // Owners are named, and names are looked up in there.
    TMPFILES.run(TMPFILES.command().args(["--create", &root]))?;
    for folder in ["etc/portkeep/ports.d", "run/portkeep/ports.d"] {
        ensure!(stage.join(folder).is_dir(), "systemd-tmpfiles has not made /{folder}");
    }
    println!("sysusers.d and tmpfiles.d: no complaints");
    Ok(())
}
