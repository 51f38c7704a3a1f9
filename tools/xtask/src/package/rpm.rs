//! The `.rpm`, with rpmbuild: it finds out what the programs require and checks the scripts, which the crates that write the
//! format by themselves do not, and the list of files exists already.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use portkeep_tool::Tool;

use super::{
    files,
    job::Job,
    kind::{Edition, Kind, script},
};
use crate::install::write;

pub(super) const RPM: Tool = Tool { name: "rpm", remedy: "apt-get install rpm" };
const RPMBUILD: Tool = Tool { name: "rpmbuild", remedy: RPM.remedy };

pub(super) fn make(job: &Job, kind: Kind, edition: &Edition) -> Result<PathBuf> {
    let stage = tempfile::tempdir().context("making a temporary folder")?;
    let root = stage.path().join("files");
    job.stage(kind, &root, "/usr")?;
    if kind == Kind::Winsock {
        // 64-bit libraries have a folder of their own there.
        fs::rename(root.join("usr/lib"), root.join("usr/lib64")).context("moving the libraries")?;
        let file = root.join("usr/lib64/pkgconfig/portkeep-winsock.pc");
        let text = crate::install::read(&file)?;
        ensure!(text.contains("libdir=${prefix}/lib\n"), "portkeep-winsock.pc names no libdir");
        write(&file, &text.replace("libdir=${prefix}/lib\n", "libdir=${prefix}/lib64\n"))?;
    }
    files::compress_manual(&root.join("usr"))?;
    files::usual_modes(&root)?;
    files::date(&root, &job.epoch)?;
    let spec = stage.path().join("portkeep.spec");
    write(&spec, &specification(kind, edition, &root)?)?;
    let out = stage.path().join("out");
    let mut build = RPMBUILD.command();
    build.env("SOURCE_DATE_EPOCH", &job.epoch).args(["-bb", "--quiet", "--target=x86_64"]);
    for (name, value) in [
        ("_topdir", stage.path().join("top").display().to_string()),
        ("_rpmdir", out.display().to_string()),
        ("_buildhost", "portkeep".into()),
        ("_build_name_fmt", "%%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm".into()),
        ("use_source_date_epoch_as_buildtime", "1".into()),
        ("clamp_mtime_to_source_date_epoch", "1".into()),
        ("_build_id_links", "none".into()),
        ("_binary_payload", if job.short { "w1.gzdio" } else { "w6.xzdio" }.into()),
        // The programs are stripped, the pages compressed.
        ("__os_install_post", "%{nil}".into()),
        ("debug_package", "%{nil}".into()),
    ] {
        build.arg("--define").arg(format!("{name} {value}"));
    }
    // It prints what it builds for.
    RPMBUILD.output(build.arg(&spec))?;
    let name = format!("{}-{}-1.x86_64.rpm", kind.name(), edition.version);
    let package = job.out.join(&name);
    fs::copy(out.join(&name), &package).with_context(|| format!("copying {name}"))?;
    Ok(package)
}

fn specification(kind: Kind, edition: &Edition, root: &Path) -> Result<String> {
    let scripts = match kind {
        Kind::Portkeep => script("rpm/scripts", kind, edition)?,
        Kind::Web | Kind::Fleet => script("rpm/service", kind, edition)?,
        Kind::Winsock => "%post -p /sbin/ldconfig\n\n%postun -p /sbin/ldconfig\n".into(),
    };
    let requires = match kind {
        // The package portkeep has the group that portkeep-web needs and the agent that portkeep-fleet needs.
        Kind::Web | Kind::Fleet => format!("Requires: portkeep >= {}\n", edition.version),
        Kind::Portkeep | Kind::Winsock => String::new(),
    };
    Ok(format!(
        "Name: {}\nVersion: {}\nRelease: 1\nSummary: {}\nLicense: MIT OR Apache-2.0\nURL: {}\n{requires}\n\
         %description\n{}\n\n%install\nrm -rf %{{buildroot}}\ncp -a '{}' %{{buildroot}}\n\n{scripts}\n%files\n\
         %defattr(-,root,root)\n{}",
        kind.name(),
        edition.version,
        kind.summary(),
        env!("CARGO_PKG_REPOSITORY"),
        kind.description().join("\n"),
        root.display(),
        listed(root)?,
    ))
}

/// The files, and the folders that no other package has.
fn listed(root: &Path) -> Result<String> {
    let mut lines = vec![];
    let own = [
        "/usr/share/doc/",
        "/usr/include/portkeep",
        "/usr/share/portkeep",
        "/usr/lib/portkeep",
        "/etc/portkeep",
        // Of shells that need not be installed.
        "/usr/share/fish",
        "/usr/share/zsh/site-functions",
    ];
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let at = root.join(&folder);
        for entry in fs::read_dir(&at).with_context(|| format!("listing {}", at.display()))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            let name = format!("/{}", path.display());
            if entry.file_type()?.is_dir() {
                if own.iter().any(|own| name.starts_with(own)) {
                    lines.push(format!("%dir \"{name}\"\n"));
                }
                folders.push(path);
            } else if name.starts_with("/etc") {
                lines.push(format!("%config(noreplace) \"{name}\"\n"));
            } else {
                lines.push(format!("\"{name}\"\n"));
            }
        }
    }
    lines.sort();
    Ok(lines.concat())
}
