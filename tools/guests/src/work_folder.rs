//! Where kernels and disks are kept.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

/// Kernels and disks stay below the target folder, where `cargo clean` finds them.
pub(crate) fn work_folder() -> Result<PathBuf> {
    let folder = portkeep_tool::target_folder().join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}
