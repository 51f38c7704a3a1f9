//! Folders of a stage.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use portkeep_tool::Tool;

const FIND: Tool = Tool { name: "find", remedy: "apt-get install findutils" };
const GZIP: Tool = Tool { name: "gzip", remedy: "apt-get install gzip" };

/// Everything below a folder except folders, sorted.
pub(super) fn below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    walk(folder, &mut |path, is_folder| {
        if !is_folder {
            found.push(path.to_owned());
        }
        Ok(())
    })?;
    found.sort();
    Ok(found)
}

fn walk(folder: &Path, visit: &mut dyn FnMut(&Path, bool) -> Result<()>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let entry = entry?;
        let is_folder = entry.file_type()?.is_dir();
        visit(&entry.path(), is_folder)?;
        if is_folder {
            walk(&entry.path(), visit)?;
        }
    }
    Ok(())
}

/// As if they were made with the usual umask. Programs and scripts stay executable.
pub(super) fn usual_modes(root: &Path) -> Result<()> {
    let set = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .with_context(|| format!("setting the mode of {}", path.display()))
    };
    set(root, 0o755)?;
    walk(root, &mut |path, is_folder| {
        let about = fs::symlink_metadata(path).with_context(|| format!("reading {}", path.display()))?;
        if about.is_symlink() {
            return Ok(());
        }
        let executable = is_folder || (about.permissions().mode() & 0o100 != 0 && !is_library(path));
        set(path, if executable { 0o755 } else { 0o644 })
    })
}

/// Every time is the same one. dpkg-deb and rpmbuild change only the times that are later, and the clock of a machine may
/// be behind that of the last commit.
pub(super) fn date(root: &Path, epoch: &str) -> Result<()> {
    let touch = ["-exec", "touch", "--no-dereference"];
    FIND.run(FIND.command().arg(root).args(touch).arg(format!("--date=@{epoch}")).args(["{}", "+"]))
}

fn is_library(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so"))
}

/// `FILE` becomes `FILE.gz`, without the time.
pub(super) fn compress(path: &Path) -> Result<()> {
    GZIP.run(GZIP.command().args(["-9", "--no-name"]).arg(path))
}

/// Manual pages, as packages have them.
pub(super) fn compress_manual(prefix: &Path) -> Result<()> {
    let manual = prefix.join("share/man");
    if !manual.is_dir() {
        return Ok(());
    }
    below(&manual)?.iter().try_for_each(|page| compress(page))
}
