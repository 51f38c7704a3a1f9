//! The packages are tried: with lintian, and a Debian in a folder into which they are installed, upgraded under load,
//! removed and purged. `check.sh` has the steps.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use portkeep_tool::{Missing, Tool, debian};

use super::{
    archive, deb, formats,
    job::Job,
    kind::{Edition, Kind},
    rpm,
};
use crate::install::{make, write};

const LINTIAN: Tool = Tool { name: "lintian", remedy: "apt-get install lintian" };
const UNSHARE: Tool = Tool { name: "unshare", remedy: "apt-get install util-linux" };

pub(super) fn run(job: &Job, edition: &Edition, made: &[PathBuf]) -> Result<()> {
    // Errors only: `package` makes no Debian source package, and some warnings are about that.
    LINTIAN.run(
        LINTIAN
            .command()
            .args(["--allow-root", "--fail-on=error", "--tag-display-limit=0"])
            .args(made.iter().filter(|path| path.extension().is_some_and(|extension| extension == "deb"))),
    )?;
    println!("lintian: no errors");
    repeatable(job, edition)?;
    in_a_debian(job, edition, made)
}

/// Packing the same files twice gives the same bytes.
fn repeatable(job: &Job, edition: &Edition) -> Result<()> {
    let second = tempfile::tempdir().context("making a temporary folder")?;
    let again = job.in_folder(second.path());
    for package in formats::packages(&again, edition)? {
        let first = job.out.join(package.file_name().unwrap_or_default());
        let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
        ensure!(read(&first)? == read(&package)?, "{} differs when it is packed twice", first.display());
    }
    println!("packed twice: the same bytes");
    Ok(())
}

fn in_a_debian(job: &Job, edition: &Edition, made: &[PathBuf]) -> Result<()> {
    let place = Place::new(&debian::base(debian::SERVERS)?, made)?;
    debian::place_hostile(&place.root)?;
    for (name, edition) in [
        ("old", Edition { version: "0.0.1".into(), ..edition.clone() }),
        ("other", Edition { version: "9.0.0".into(), abi: "999".into() }),
    ] {
        let job = job.in_folder(&place.root.join("packages").join(name));
        make(&job.out)?;
        deb::make(&job, Kind::Portkeep, &edition)?;
        rpm::make(&job, Kind::Portkeep, &edition)?;
    }
    place.run(include_str!("check.sh"))
}

/// A Debian in a folder, with the packages in `packages/new`.
pub(super) struct Place {
    folder: tempfile::TempDir,
    pub(super) root: PathBuf,
}

impl Place {
    pub(super) fn new(base: &Path, made: &[PathBuf]) -> Result<Self> {
        let id = Command::new("id").arg("-u").output().context("starting id")?;
        if id.stdout != b"0\n" {
            return Err(Missing { what: "root".into(), remedy: "packages are installed into a folder".into() }.into());
        }
        UNSHARE.output(UNSHARE.command().arg("--version"))?;
        let folder = tempfile::tempdir().context("making a temporary folder")?;
        let root = folder.path().join("root");
        let packages = root.join("packages/new");
        make(&packages)?;
        archive::TAR.run(archive::TAR.command().arg("-C").arg(&root).args(["--numeric-owner", "-xpf"]).arg(base))?;
        for package in made {
            let to = packages.join(package.file_name().unwrap_or_default());
            fs::copy(package, &to).with_context(|| format!("copying {}", package.display()))?;
        }
        Ok(Self { folder, root })
    }

    /// A script that goes on where `around.sh` ends.
    pub(super) fn run(&self, script: &str) -> Result<()> {
        let path = self.folder.path().join("check.sh");
        write(&path, &format!("{}\n{script}", include_str!("around.sh")))?;
        let status =
            Command::new("bash").arg(&path).arg("outside").arg(&self.root).status().context("starting bash")?;
        ensure!(status.success(), "the packages failed a check");
        Ok(())
    }
}
