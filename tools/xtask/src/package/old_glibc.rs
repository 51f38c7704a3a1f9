//! Linking against an old glibc, so that one program runs on every distribution whose kernel is new enough. A static one
//! (musl) would not ask NSS: declarations could not name users of a directory service.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use portkeep_tool::{Missing, Tool, target_folder};

use crate::install::write;

/// That of Debian 11, from which the stubs are.
pub(super) const OLDEST: &str = "2.31";

const SUITE: &str = "bullseye";
const MIRROR: &str = "http://deb.debian.org/debian";
const MMDEBSTRAP: Tool = Tool { name: "mmdebstrap", remedy: "apt-get install mmdebstrap" };
const OBJDUMP: Tool = Tool { name: "objdump", remedy: "apt-get install binutils" };

/// A linker that finds the old glibc. It is a program of its own, because an option would be part of the names in the
/// program, and the option contains the folder.
pub(super) fn linker() -> Result<PathBuf> {
    let folder = target_folder().join("glibc").join(OLDEST);
    let linker = folder.join("cc");
    if !linker.exists() {
        println!("fetching glibc {OLDEST} of Debian {SUITE}");
        let aside = folder.join("new");
        let _ = fs::remove_dir_all(&aside);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let mut fetch = MMDEBSTRAP.command();
        fetch.args(["--quiet", "--variant=extract", "--include=libc6-dev,libgcc-s1", SUITE]).arg(&aside).arg(MIRROR);
        if let Err(error) = MMDEBSTRAP.run(&mut fetch) {
            let remedy = format!("Debian's archive has to be within reach ({error:#})");
            return Err(Missing { what: format!("glibc {OLDEST}"), remedy }.into());
        }
        let root = folder.join("root");
        let _ = fs::remove_dir_all(&root);
        fs::rename(&aside, &root).with_context(|| format!("keeping {}", root.display()))?;
        for folder in ["lib64", "usr/lib/x86_64-linux-gnu"] {
            keep_links_inside(&root, &root.join(folder))?;
        }
        // The compiler's own folders come after those: they lead to this machine's glibc.
        let script = format!(
            "#!/bin/sh\nroot='{}'\nexec cc --sysroot=\"$root\" -B\"$root/usr/lib/x86_64-linux-gnu\" \\\n\
             \t-L\"$root/usr/lib/x86_64-linux-gnu\" -L\"$root/lib/x86_64-linux-gnu\" \"$@\"\n",
            root.display()
        );
        write(&linker, &script)?;
        fs::set_permissions(&linker, fs::Permissions::from_mode(0o755)).context("making the linker executable")?;
    }
    Ok(linker)
}

/// Absolute links would lead to this machine's glibc.
fn keep_links_inside(root: &Path, folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let link = entry?.path();
        let Ok(target) = fs::read_link(&link) else { continue };
        if let Ok(inside) = target.strip_prefix("/") {
            fs::remove_file(&link).with_context(|| format!("removing {}", link.display()))?;
            symlink(root.join(inside), &link).with_context(|| format!("making {}", link.display()))?;
        }
    }
    Ok(())
}

/// The newest version of glibc whose symbols the program asks for.
pub(super) fn required(program: &Path) -> Result<String> {
    let symbols = OBJDUMP.output(OBJDUMP.command().arg("-T").arg(program))?;
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|rest| rest.split([')', ' ', '\n']).next());
    Ok(versions
        .filter(|version| number(version).is_some())
        .fold(String::new(), |newest, version| newer(&newest, version)))
}

pub(super) fn newer(a: &str, b: &str) -> String {
    if number(a) > number(b) { a } else { b }.to_owned()
}

fn number(version: &str) -> Option<Vec<u32>> {
    version.split('.').map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(newer("2.4", "2.31"), "2.31");
        assert_eq!(newer("2.31", "2.2.5"), "2.31");
        assert_eq!(newer("", "2.2.5"), "2.2.5");
    }
}
