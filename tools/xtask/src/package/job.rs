//! The part of the packages that is built once.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
};

use anyhow::{Context, Result, bail};
use portkeep_tool::{Tool, repository, target_folder};
use tempfile::TempDir;

use super::{kind::Kind, old_glibc};
use crate::install::{Build, Layout, read, write};

const CP: Tool = Tool { name: "cp", remedy: "apt-get install coreutils" };

/// All that the formats share.
#[derive(Clone)]
pub(super) struct Job {
    /// Everything that had to be built, stripped: a folder `usr` for each package.
    built: Rc<TempDir>,
    pub(super) out: PathBuf,
    /// Seconds since 1970: the time of everything in the packages.
    pub(super) epoch: String,
    /// The newest version of glibc that the programs require.
    pub(super) glibc: String,
    /// For checks: the packages are large, and are made quickly.
    pub(super) short: bool,
}

impl Job {
    pub(super) fn new(short: bool, out: PathBuf) -> Result<Self> {
        let build = if short {
            Build { profile: "dev".into(), rustflags: Vec::new(), linker: None }
        } else {
            Build { profile: "dist".into(), rustflags: without_paths()?, linker: Some(old_glibc::linker()?) }
        };
        let epoch = epoch()?;
        fs::create_dir_all(&out).with_context(|| format!("making {}", out.display()))?;
        let built = tempfile::tempdir().context("making a temporary folder")?;
        let folder = build.make()?;
        let mut glibc = String::new();
        for kind in Kind::ALL {
            let program = kind.place_built(&folder, &built.path().join(kind.name()))?;
            glibc = old_glibc::newer(&glibc, &old_glibc::required(&program)?);
        }
        println!("the programs require glibc {glibc}");
        if !short && old_glibc::newer(&glibc, old_glibc::OLDEST) != old_glibc::OLDEST {
            bail!("the programs require glibc {glibc} and must run with {}", old_glibc::OLDEST);
        }
        Ok(Self { built: Rc::new(built), out, epoch, glibc, short })
    }

    pub(super) fn in_folder(&self, out: &Path) -> Self {
        Self { out: out.into(), ..self.clone() }
    }

    /// Lay out the files of a package.
    pub(super) fn stage(&self, kind: Kind, root: &Path, prefix: &str) -> Result<()> {
        let layout = Layout { root: root.into(), prefix: prefix.into() };
        let documents = layout.below_prefix("share/doc").join(kind.name());
        match kind {
            Kind::Portkeep => layout.place_files()?,
            Kind::Web => layout.place_web_files()?,
            Kind::Fleet => layout.place_fleet_files()?,
            Kind::Winsock => {}
        }
        for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
            write(&documents.join(licence), &read(&repository().join(licence))?)?;
        }
        let built = self.built.path().join(kind.name()).join("usr");
        CP.run(CP.command().args(["--archive", "--no-target-directory"]).arg(built).arg(layout.below_prefix("")))?;
        if kind == Kind::Winsock {
            let file = layout.below_prefix("lib/pkgconfig/portkeep-winsock.pc");
            write(&file, &read(&file)?.replace("prefix=/usr\n", &format!("prefix={prefix}\n")))?;
        }
        Ok(())
    }
}

/// Paths of this machine stay out of the programs.
fn without_paths() -> Result<Vec<String>> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo"))).context("HOME is not set")?;
    // The last one that fits counts: the target folder is often in the repository.
    let names = [(repository(), "/portkeep"), (home, "/cargo"), (target_folder(), "/target")];
    Ok(names.map(|(folder, name)| format!("--remap-path-prefix={}={name}", folder.display())).into())
}

/// `SOURCE_DATE_EPOCH`, or the time of the commit.
fn epoch() -> Result<String> {
    if let Ok(epoch) = env::var("SOURCE_DATE_EPOCH") {
        return Ok(epoch);
    }
    let log = Command::new("git").current_dir(repository()).args(["log", "-1", "--format=%ct"]).output();
    match log {
        Ok(log) if log.status.success() => Ok(String::from_utf8_lossy(&log.stdout).trim().to_owned()),
        _ => bail!("there is no commit to date the packages by: set SOURCE_DATE_EPOCH"),
    }
}
