//! A bare Debian in a folder, for tests that install Portkeep.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{Missing, Tool, build, target_folder};

/// A machine with servers: the packages besides those of every Debian.
pub const SERVERS: &str = "systemd,systemd-sysv,kmod,netbase,nginx-light,redis-server,postgresql,openssh-server,chrony";

/// A machine for people who write Python.
pub const PYTHON: &str = "systemd,netbase,python3-venv,python3-pytest,python3-pytest-xdist";

const MMDEBSTRAP: Tool = Tool { name: "mmdebstrap", remedy: "apt-get install mmdebstrap" };

/// Whether [`base`] can work, found out before long preparations.
pub fn check() -> Result<()> {
    MMDEBSTRAP.output(MMDEBSTRAP.command().arg("--version")).map(drop)
}

/// The archive of the Debian of this machine with these packages, from the cache, or else from Debian.
pub fn base(packages: &str) -> Result<PathBuf> {
    let suite = suite()?;
    // Below the target folder, where `cargo clean` finds it.
    let folder = target_folder().join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let archive = folder.join(format!("debian-{suite}-{}.tar", packages.replace(',', "-")));
    if !archive.exists() {
        println!("fetching Debian {suite}");
        let aside = archive.with_extension("part.tar");
        let mut fetch = MMDEBSTRAP.command();
        fetch.args(["--quiet", "--variant=minbase", "--format=tar", &format!("--include={packages}")]);
        for left_out in ["doc", "man", "locale", "info"] {
            fetch.arg(format!("--dpkgopt=path-exclude=/usr/share/{left_out}/*"));
        }
        let fetched = MMDEBSTRAP.run(fetch.arg(&suite).arg(&aside));
        if let Err(error) = fetched {
            let remedy = format!("Debian's archive has to be within reach ({error:#})");
            return Err(Missing { what: format!("Debian {suite}"), remedy }.into());
        }
        fs::rename(&aside, &archive).with_context(|| format!("keeping {}", archive.display()))?;
    }
    Ok(archive)
}

/// Programs that are built here run on the same Debian.
fn suite() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim_matches('"'));
    match (value("ID="), value("VERSION_CODENAME=")) {
        (Some("debian"), Some(suite)) => Ok(suite.to_owned()),
        _ => Err(Missing { what: "Debian".into(), remedy: "the guest is the same system as this one".into() }.into()),
    }
}

/// Put the program that tries to bind other programs' ports into it.
pub fn place_hostile(root: &Path) -> Result<()> {
    build(&["--example=hostile"])?;
    let to = root.join("usr/lib/boot-test/hostile");
    fs::create_dir_all(to.parent().unwrap_or(root)).with_context(|| format!("making {}", to.display()))?;
    fs::copy(target_folder().join("debug/examples/hostile"), &to)
        .with_context(|| format!("making {}", to.display()))?;
    fs::set_permissions(&to, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("setting the mode of {}", to.display()))
}
