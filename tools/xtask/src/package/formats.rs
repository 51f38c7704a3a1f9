//! The packages in every format, and the lists beside them.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use portkeep_tool::Tool;

use super::{
    archive, deb,
    job::Job,
    kind::{Edition, Kind},
    rpm,
};
use crate::install::write;

const SHA256SUM: Tool = Tool { name: "sha256sum", remedy: "apt-get install coreutils" };

/// Every format of every package.
pub(super) fn packages(job: &Job, edition: &Edition) -> Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    for kind in Kind::ALL {
        made.push(deb::make(job, kind, edition)?);
        made.push(rpm::make(job, kind, edition)?);
        made.push(archive::make(job, kind, edition)?);
    }
    Ok(made)
}

/// `SHA256SUMS` and `CONTENTS` beside the packages.
pub(super) fn list(job: &Job, made: &[PathBuf]) -> Result<()> {
    let mut contents = String::new();
    let mut sum = SHA256SUM.command();
    sum.current_dir(&job.out);
    for path in made {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        sum.arg(&name);
        let listing = match path.extension().and_then(|extension| extension.to_str()) {
            Some("deb") => deb::DPKG_DEB.output(deb::DPKG_DEB.command().arg("--contents").arg(path))?,
            Some("rpm") => rpm::RPM.output(rpm::RPM.command().args(["-qplv"]).arg(path))?,
            _ => archive::TAR.output(archive::TAR.command().args(["-tvf"]).arg(path))?,
        };
        contents.push_str(&format!("{name}\n\n{listing}\n"));
        let size = fs::metadata(path).with_context(|| format!("reading {}", path.display()))?.len();
        println!("{} ({:.1} MB)", path.display(), size as f64 / 1e6);
    }
    write(&job.out.join("CONTENTS"), &contents)?;
    let sums = SHA256SUM.output(&mut sum)?;
    write(&job.out.join("SHA256SUMS"), &sums)
}
