//! The `.deb`, with Debian's own `dpkg-deb`: the list of files exists already, and cargo-deb would require it once
//! more.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use portkeep_tool::{Tool, repository};

use super::{
    files,
    job::Job,
    kind::{Edition, Kind, script},
};
use crate::install::{read, write};

pub(super) const DPKG_DEB: Tool = Tool { name: "dpkg-deb", remedy: "apt-get install dpkg" };
const DATE: Tool = Tool { name: "date", remedy: "apt-get install coreutils" };

const MAINTAINER: &str = "The Portkeep authors <portkeep@users.noreply.github.com>";
const HOMEPAGE: &str = env!("CARGO_PKG_REPOSITORY");

pub(super) fn make(job: &Job, kind: Kind, edition: &Edition) -> Result<PathBuf> {
    let stage = tempfile::tempdir().context("making a temporary folder")?;
    let root = stage.path();
    job.stage(kind, root, "/usr")?;
    files::compress_manual(&root.join("usr"))?;
    let documents = root.join("usr/share/doc").join(kind.name());
    // Its place in a Debian package is the file `copyright`.
    for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
        fs::remove_file(documents.join(licence)).with_context(|| format!("removing {licence}"))?;
    }
    write(&documents.join("copyright"), &copyright()?)?;
    let changelog = documents.join("changelog");
    write(&changelog, &changes(job, kind, edition)?)?;
    files::compress(&changelog)?;
    files::usual_modes(root)?;
    let control = root.join("DEBIAN");
    write(&control.join("control"), &fields(job, kind, edition, root)?)?;
    let (names, folder) = kind.scripts();
    for name in names {
        let path = control.join(name);
        write(&path, &script(&format!("{folder}/{name}"), kind, edition)?)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("making {name} executable"))?;
    }
    match kind {
        Kind::Portkeep => write(&control.join("conffiles"), "/etc/portkeep/portkeep.toml\n")?,
        Kind::Web => {}
        Kind::Fleet => write(&control.join("conffiles"), "/etc/portkeep/fleet.toml\n")?,
        Kind::Winsock => {
            write(&control.join("shlibs"), "libportkeep_winsock 0 portkeep-winsock\n")?;
            write(&control.join("triggers"), "activate-noawait ldconfig\n")?;
        }
    }
    write(&control.join("md5sums"), &sums(root)?)?;
    files::date(root, &job.epoch)?;
    let package = job.out.join(format!("{}_{}_amd64.deb", kind.name(), edition.version));
    let compression = if job.short { ["-Zgzip", "-z1"] } else { ["-Zxz", "-z6"] };
    DPKG_DEB.run(
        DPKG_DEB
            .command()
            .env("SOURCE_DATE_EPOCH", &job.epoch)
            .args(compression)
            .args(["--threads-max=1", "--root-owner-group", "--build"])
            .arg(root)
            .arg(&package)
            .stdout(std::process::Stdio::null()),
    )?;
    Ok(package)
}

fn fields(job: &Job, kind: Kind, edition: &Edition, root: &Path) -> Result<String> {
    let mut size = 0;
    for path in files::below(root)? {
        size +=
            fs::symlink_metadata(&path).with_context(|| format!("reading {}", path.display()))?.len().div_ceil(1024);
    }
    let helpers = ", init-system-helpers (>= 1.54)";
    let (section, more) = match kind {
        Kind::Portkeep => {
            ("net", format!("{helpers}, systemd | systemd-standalone-sysusers, systemd | systemd-standalone-tmpfiles"))
        }
        // The package portkeep has the group that portkeep-web needs and the agent that portkeep-fleet needs.
        Kind::Web | Kind::Fleet => ("net", format!("{helpers}, portkeep (>= {})", edition.version)),
        Kind::Winsock => ("libdevel", String::new()),
    };
    Ok(format!(
        "Package: {}\nVersion: {}\nArchitecture: amd64\nMaintainer: {MAINTAINER}\nInstalled-Size: {size}\n\
         Depends: libc6 (>= {}), libgcc-s1 (>= 4.2){more}\nSection: {section}\nPriority: optional\nHomepage: {HOMEPAGE}\n\
         Description: {}\n {}\n",
        kind.name(),
        edition.version,
        job.glibc,
        first_small(kind.summary()),
        kind.description().join("\n "),
    ))
}

/// A Debian description is no sentence.
fn first_small(text: &str) -> String {
    match text.split_at_checked(1) {
        Some((first, rest)) if !text.starts_with("Windows") => first.to_lowercase() + rest,
        _ => text.to_owned(),
    }
}

fn changes(job: &Job, kind: Kind, edition: &Edition) -> Result<String> {
    let date =
        DATE.output(DATE.command().env("LC_ALL", "C").args(["-u", "-R", "-d"]).arg(format!("@{}", job.epoch)))?;
    Ok(format!(
        "{} ({}) unstable; urgency=medium\n\n  * See {HOMEPAGE}/blob/main/CHANGELOG.md.\n\n -- {MAINTAINER}  {}\n",
        kind.name(),
        edition.version,
        date.trim_end()
    ))
}

fn copyright() -> Result<String> {
    let mit = read(&repository().join("LICENSE-MIT"))?;
    let owner =
        mit.lines().find_map(|line| line.strip_prefix("Copyright (c) ")).context("LICENSE-MIT names no owner")?;
    let terms = mit.split_once("\n\nPermission").context("LICENSE-MIT is not the usual text")?.1;
    let terms = format!("Permission{terms}");
    let terms: String = terms
        .trim_end()
        .lines()
        .map(|line| if line.is_empty() { " .\n".into() } else { format!(" {line}\n") })
        .collect();
    Ok(format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: Portkeep\n\
         Source: {HOMEPAGE}\nComment: The licences of the crates that are linked in are in THIRD-PARTY.txt, in this folder.\n\n\
         Files: *\nCopyright: {owner}\nLicense: Expat or Apache-2.0\n\nLicense: Expat\n{terms}\nLicense: Apache-2.0\n \
         The text of the licence is in /usr/share/common-licenses/Apache-2.0.\n"
    ))
}

fn sums(root: &Path) -> Result<String> {
    let md5sum = Tool { name: "md5sum", remedy: "apt-get install coreutils" };
    let mut command = md5sum.command();
    command.current_dir(root);
    for path in files::below(root)? {
        let path = path.strip_prefix(root).context("a file outside of the stage")?.to_owned();
        // Neither the control files, nor what the administrator changes, nor links.
        if !path.starts_with("DEBIAN") && !path.starts_with("etc") && !root.join(&path).is_symlink() {
            command.arg(path);
        }
    }
    md5sum.output(&mut command)
}
