//! The object of the BPF programs: built the same on every machine, so that
//! anybody can prove that the checked-in object comes from the source beside it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use portkeep_tool::{Tool, repository};

const CLANG: Tool = Tool {
    name: "clang-19",
    remedy: "apt-get install clang-19 (other versions compile the source too, but to other bytes)",
};
const STRIP: Tool = Tool { name: "llvm-strip-19", remedy: "apt-get install llvm-19" };

/// Rebuild the checked-in object of the BPF programs
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Build aside and compare with the checked-in object instead of replacing it
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let checked_in = source_folder()?.join("portkeep.bpf.o");
    let aside = tempfile::tempdir().context("making a temporary folder")?;
    let built = aside.path().join("portkeep.bpf.o");
    build(&built)?;
    let new = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    if options.check {
        let old = fs::read(&checked_in).with_context(|| format!("reading {}", checked_in.display()))?;
        ensure!(
            old == new,
            "{} is not what its source compiles to: run `cargo xtask bpf` and commit the object with the source",
            checked_in.display()
        );
        println!("the checked-in object matches its source");
    } else {
        fs::write(&checked_in, new).with_context(|| format!("writing {}", checked_in.display()))?;
        println!("{}", checked_in.display());
    }
    Ok(())
}

fn source_folder() -> Result<PathBuf> {
    let folder = repository().join("crates/kernel/bpf");
    folder.canonicalize().with_context(|| format!("looking for {}", folder.display()))
}

fn build(object: &Path) -> Result<()> {
    let folder = source_folder()?;
    let mut clang = CLANG.command();
    clang
        .current_dir(&folder)
        // clang takes its folder from PWD, and the prefix map must remove exactly this folder.
        .env("PWD", &folder)
        .args(["-nostdinc", "-I.", "-g", "-O2", "-target", "bpfel", "-mcpu=v3"])
        .arg(format!("-ffile-prefix-map={}=.", folder.display()))
        .args(["-Wall", "-Werror", "-Wno-unused-const-variable", "-c", "portkeep.bpf.c", "-o"])
        .arg(object);
    CLANG.run(&mut clang)?;
    STRIP.run(STRIP.command().arg("-g").arg(object))
}
