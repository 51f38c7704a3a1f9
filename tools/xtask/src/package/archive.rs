//! The tar archive: the files below `/usr/local`, and their names for those that want to remove them again.

use std::path::PathBuf;

use anyhow::{Context, Result};
use portkeep_tool::Tool;

use super::{
    files,
    job::Job,
    kind::{Edition, Kind},
};
use crate::install::write;

pub(super) const TAR: Tool = Tool { name: "tar", remedy: "apt-get install tar" };

pub(super) fn make(job: &Job, kind: Kind, edition: &Edition) -> Result<PathBuf> {
    let stage = tempfile::tempdir().context("making a temporary folder")?;
    let name = format!("{}-{}-x86_64-linux", kind.name(), edition.version);
    let root = stage.path().join(&name);
    job.stage(kind, &root, "/usr/local")?;
    files::usual_modes(&root)?;
    let listed = files::below(&root)?;
    let lines = listed.iter().map(|path| path.strip_prefix(&root).map(|path| format!("/{}\n", path.display())));
    let manifest = lines.collect::<Result<String, _>>().context("a file outside of the stage")?;
    write(&root.join("MANIFEST"), &manifest)?;
    let archive = job.out.join(format!("{name}.tar.gz"));
    TAR.run(
        TAR.command()
            .args(["--sort=name", "--owner=root:0", "--group=root:0", "--format=gnu"])
            .arg(format!("--mtime=@{}", job.epoch))
            .arg(format!("--use-compress-program=gzip {} --no-name", if job.short { "-1" } else { "-9" }))
            .arg("-C")
            .arg(stage.path())
            .arg("-cf")
            .arg(&archive)
            .arg(&name),
    )?;
    Ok(archive)
}
