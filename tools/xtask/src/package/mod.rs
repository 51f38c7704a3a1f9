//! Packages: `.deb`, `.rpm` and a tar archive, for the program, for portkeep-web, portkeep-fleet and the Winsock layer.
//! Their content is that of `cargo xtask install`. Two builds of one commit have the same bytes: the times are the
//! commit's, and no path of the building machine is in a program.

mod archive;
mod check;
mod deb;
mod files;
mod formats;
mod job;
mod kind;
mod licences;
mod old_glibc;
mod readme;
mod rpm;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use portkeep_tool::{cargo, repository, target_folder};

use crate::install::read;
use job::Job;
use kind::{Edition, Kind};

/// Build the packages: .deb, .rpm and tar.gz
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Folder for the packages [default: `dist` in cargo's target folder]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Check the packages: lintian, installing, upgrading, removing, purging (as root)
    #[arg(long)]
    check: bool,
    /// Run the README's examples on a fresh Debian, with the .deb and the wheel (as root)
    #[arg(long)]
    readme: bool,
    /// Build twice, in two folders, and compare
    #[arg(long)]
    twice: bool,
    /// Build with the profile of the tests and this machine's glibc: quick, and for checks only
    #[arg(long)]
    short: bool,
    /// Make only the .deb, and that of portkeep-web if it is this very version; claim to be this version, and another layout in the kernel: for tests of upgrades
    #[arg(long, value_name = "VERSION[:ABI]")]
    only_deb: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let out = options.out.clone().unwrap_or_else(|| target_folder().join("dist"));
    let out = std::path::absolute(&out).with_context(|| format!("looking for {}", out.display()))?;
    let job = Job::new(options.short, out)?;
    let edition = Edition::new()?;
    if !options.only_deb.is_empty() {
        return options.only_deb.iter().try_for_each(|name| {
            let (version, abi) = name.split_once(':').unwrap_or((name, &edition.abi));
            let edition = Edition { version: version.into(), abi: abi.into() };
            deb::make(&job, Kind::Portkeep, &edition)?;
            if edition.version == env!("CARGO_PKG_VERSION") {
                deb::make(&job, Kind::Web, &edition)?;
            }
            Ok(())
        });
    }
    let made = formats::packages(&job, &edition)?;
    formats::list(&job, &made)?;
    if options.twice {
        let other = tempfile::tempdir().context("making a temporary folder")?;
        again(&job, other.path())?;
    }
    if options.check {
        check::run(&job, &edition, &made)?;
    }
    if options.readme {
        readme::run(&made)?;
    }
    Ok(())
}

/// The same, built from a copy of the sources in another folder, has the same bytes.
fn again(job: &Job, folder: &Path) -> Result<()> {
    let copy = folder.join("sources/of/the/second/build");
    fs::create_dir_all(&copy).with_context(|| format!("making {}", copy.display()))?;
    let archive = folder.join("sources.tar");
    let listed = folder.join("list");
    let tracked = Command::new("git")
        .current_dir(repository())
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("starting git")?;
    ensure!(tracked.status.success(), "git ls-files failed");
    fs::write(&listed, tracked.stdout).with_context(|| format!("writing {}", listed.display()))?;
    let tar = archive::TAR;
    tar.run(tar.command().current_dir(repository()).args(["--null", "-T"]).arg(&listed).arg("-cf").arg(&archive))?;
    tar.run(tar.command().arg("-C").arg(&copy).arg("-xf").arg(&archive))?;
    let out = folder.join("dist");
    let mut run = cargo();
    run.current_dir(&copy)
        .env("SOURCE_DATE_EPOCH", &job.epoch)
        .env("CARGO_TARGET_DIR", folder.join("target"))
        .args(["run", "--quiet", "--package=xtask", "--", "package", "--out"])
        .arg(&out)
        .args(job.short.then_some("--short"));
    ensure!(run.status().context("starting cargo")?.success(), "the second build failed");
    let sums = ["SHA256SUMS", "CONTENTS"];
    for name in sums {
        let (first, second) = (read(&job.out.join(name))?, read(&out.join(name))?);
        ensure!(first == second, "two builds differ in {name}:\n{first}\nand\n{second}");
    }
    println!("a second build has the same checksums");
    Ok(())
}
