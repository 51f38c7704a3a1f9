//! The shared libraries that a program of this machine requires.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use object::{
    Endianness, elf,
    read::elf::{Dyn as _, ElfFile64, FileHeader as _, ProgramHeader as _},
};

/// The folders that the loader searches by default.
const FOLDERS: [&str; 4] = ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64"];

/// The loader and all the libraries that one of these programs, or one of those libraries, asks for.
pub(super) fn of(programs: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut left = programs.to_vec();
    while let Some(file) = left.pop() {
        for wanted in asked_for(&file)? {
            let path = locate(&wanted).with_context(|| format!("{} needs {wanted}", file.display()))?;
            if found.insert(path.clone()) {
                left.push(path);
            }
        }
    }
    Ok(found)
}

/// The loader's path and libraries' names, as written in the file.
fn asked_for(file: &Path) -> Result<Vec<String>> {
    let what = || format!("reading {}", file.display());
    let data = fs::read(file).with_context(what)?;
    let program = ElfFile64::<Endianness>::parse(&*data).with_context(what)?;
    let (endian, header) = (program.endian(), program.elf_header());
    let mut names = Vec::new();
    for segment in header.program_headers(endian, &*data)? {
        if let Some(loader) = segment.interpreter(endian, &*data)? {
            names.push(String::from_utf8_lossy(loader).into_owned());
        }
    }
    let sections = header.sections(endian, &*data)?;
    if let Some((entries, strings)) = sections.dynamic(endian, &*data)? {
        let strings = sections.strings(endian, &*data, strings)?;
        for entry in entries.iter().filter(|entry| entry.tag(endian) == elf::DT_NEEDED) {
            names.push(String::from_utf8_lossy(entry.string(endian, strings)?).into_owned());
        }
    }
    Ok(names)
}

fn locate(name: &str) -> Option<PathBuf> {
    let absolute = Path::new(name);
    if absolute.is_absolute() {
        return Some(absolute.to_owned());
    }
    FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists())
}
