//! The files for systemd, looked at by systemd.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail, ensure};

use portkeep_tool::{Tool, cargo, repository, target_folder};

use crate::install;

/// The highest score that `systemd-analyze security` may give the service, in tenths; below 50 it calls it OK. The agent
/// requires the access that the score counts: BPF, other namespaces and processes, the network's sysctls.
const EXPOSURE: u32 = 29;

/// The same for the web server, which requires sockets only.
const EXPOSURE_OF_WEB: u32 = 15;

const ANALYZE: Tool = Tool { name: "systemd-analyze", remedy: "apt-get install systemd" };
const SYSUSERS: Tool = Tool { name: "systemd-sysusers", remedy: ANALYZE.remedy };
const TMPFILES: Tool = Tool { name: "systemd-tmpfiles", remedy: ANALYZE.remedy };

/// Check whether systemd accepts the files in packaging/ and how far the service is confined
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
    let packages = ["build", "--package=portkeep-cli", "--package=portkeep-web"];
    let status = cargo().args(packages).status().context("starting cargo build")?;
    ensure!(status.success(), "building failed");

    let stage = tempfile::tempdir().context("making a temporary folder")?;
    install::stage_files(stage.path())?;
    let installed = stage.path().join("usr/lib/systemd/system/portkeep.service");
    let unit = with_program(&installed, stage.path(), "portkeep")?;
    verify(&unit)?;
    println!("portkeep.service: no complaints");
    check_exposure(&unit, EXPOSURE, options.explain)?;
    let web = with_program(&repository().join("packaging/systemd/portkeep-web.service"), stage.path(), "portkeep-web")?;
    verify(&web)?;
    println!("portkeep-web.service: no complaints");
    check_exposure(&web, EXPOSURE_OF_WEB, options.explain)?;
    check_accounts_and_folders(stage.path())
}

/// The unit with a program that is there, since that is looked at, too.
fn with_program(unit: &Path, stage: &Path, name: &str) -> Result<PathBuf> {
    let text = fs::read_to_string(unit).with_context(|| format!("reading {}", unit.display()))?;
    let program = target_folder().join("debug").join(name);
    let unit = stage.join(format!("{name}.service"));
    let installed = Path::new(install::PROGRAM).with_file_name(name).display().to_string();
    fs::write(&unit, text.replace(&installed, &program.display().to_string()))
        .with_context(|| format!("writing {}", unit.display()))?;
    Ok(unit)
}

fn verify(unit: &Path) -> Result<()> {
    let mut verify = ANALYZE.command();
    verify.args(["verify", "--man=no"]).arg(unit).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = ANALYZE.spawn(&mut verify)?.wait_with_output().context("waiting for systemd-analyze")?;
    // It says things about other units of the machine as well, and it succeeds in spite of unknown directives.
    let said = String::from_utf8_lossy(&output.stderr);
    let complaints: Vec<&str> = said.lines().filter(|line| line.contains("portkeep")).collect();
    ensure!(complaints.is_empty(), "systemd complains:\n{}", complaints.join("\n"));
    ensure!(output.status.success(), "systemd-analyze verify failed: {said}");
    Ok(())
}

fn check_exposure(unit: &Path, most: u32, explain: bool) -> Result<()> {
    let mut security = ANALYZE.command();
    security.env("SYSTEMD_COLORS", "0").args(["security", "--offline=true", "--no-pager"]);
    security.arg(format!("--threshold={most}")).arg(unit).stdout(Stdio::piped());
    let output = ANALYZE.spawn(&mut security)?.wait_with_output().context("waiting for systemd-analyze")?;
    let table = String::from_utf8_lossy(&output.stdout);
    if explain {
        print!("{table}");
    }
    let Some(verdict) = table.lines().rev().find_map(|line| line.split_once("exposure level for ")) else {
        bail!("systemd-analyze security gave no verdict:\n{table}");
    };
    println!("{} (at most {:.1})", verdict.1, f64::from(most) / 10.0);
    ensure!(output.status.success(), "the service is exposed more than it may be:\n{table}");
    Ok(())
}

fn check_accounts_and_folders(stage: &Path) -> Result<()> {
    let root = format!("--root={}", stage.display());
    SYSUSERS.run(SYSUSERS.command().arg(&root))?;
    let groups = fs::read_to_string(stage.join("etc/group")).context("reading the groups that were made")?;
    for group in ["portkeep", "portkeep-watch"] {
        let there = groups.lines().any(|line| line.starts_with(&format!("{group}:")));
        ensure!(there, "there is no group {group} in:\n{groups}");
    }
    // Owners are named, and names are looked up in there.
    TMPFILES.run(TMPFILES.command().args(["--create", &root]))?;
    for folder in ["etc/portkeep/ports.d", "run/portkeep/ports.d"] {
        ensure!(stage.join(folder).is_dir(), "systemd-tmpfiles has not made /{folder}");
    }
    println!("sysusers.d and tmpfiles.d: no complaints");
    Ok(())
}
