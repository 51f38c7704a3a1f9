//! Files that packages and administrators drop into `ports.d`.
//!
//! The rules are those of sysctl.d and tmpfiles.d. If several folders have a file of the same name, the one in the
//! first of these [`FOLDERS`] counts and hides the others. A file that is empty or a link to /dev/null is a mask: it
//! hides the others and declares nothing. All remaining files are read in the order of their names, whatever folder
//! they are in.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use serde::Serialize;

pub use crate::stanza::KEYS;

use crate::{
    Declared, Diagnostic, Origin, Services,
    files::{self, Content, Root},
    merge::merge,
    portreserve,
    services::services_of,
    stanza,
};

/// The folders, the one that counts most first.
pub const FOLDERS: [&str; 3] = ["/etc/portkeep/ports.d", "/run/portkeep/ports.d", "/usr/lib/portkeep/ports.d"];

/// The content of the files.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Loaded {
    /// Their declarations, in the order that [`merge`](crate::merge()) requires.
    pub declared: Vec<Declared>,
    /// Their errors. A stanza that is named here is left out; the others of its file count.
    pub diagnostics: Vec<Diagnostic>,
    /// The files, masked and hidden ones included, in order.
    pub files: Vec<DropIn>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DropIn {
    /// Where it is.
    #[serde(serialize_with = "crate::diagnostic::path_text")]
    pub path: PathBuf,
    /// Whether it was read, and if not, why.
    pub state: FileState,
}

/// The outcome for a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileState {
    /// It was read.
    Read,
    /// It could not be read, or is not TOML: see the diagnostics.
    Failed,
    /// It is empty or a link to /dev/null, and declares nothing.
    Mask,
    /// A file of the same name in an earlier folder hides it.
    Hidden {
        /// That file.
        #[serde(serialize_with = "crate::diagnostic::path_text")]
        by: PathBuf,
    },
}

/// Read all drop-ins and portreserve's files below `root` (`/` for the machine's own). Service names are looked up
/// in the `/etc/services` of that root. Folders that do not exist count as empty.
pub fn load(root: &Path) -> Loaded {
    let root = Root(root);
    let services = services_of(root);
    let mut loaded = Loaded::default();

    let mut winners: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    let mut hidden = Vec::new();
    for folder in FOLDERS {
        for name in names(root, folder, &mut loaded.diagnostics) {
            if !name.as_bytes().ends_with(b".toml") || name.as_bytes().starts_with(b".") {
                continue;
            }
            let path = root.path(folder).join(&name);
            match winners.get(&name) {
                None => drop(winners.insert(name, path)),
                Some(by) => hidden.push(DropIn { path, state: FileState::Hidden { by: by.clone() } }),
            }
        }
    }
    for path in winners.into_values() {
        let name = path.file_name().map(ToOwned::to_owned);
        loaded.take(path.clone(), root.read(&path), |file, text| stanza::read(file, text, &services));
        let (these, others) = hidden.into_iter().partition(|other| other.path.file_name() == name.as_deref());
        loaded.files.extend::<Vec<_>>(these);
        hidden = others;
    }
    for name in names(root, portreserve::FOLDER, &mut loaded.diagnostics) {
        if name.as_bytes().iter().any(|byte| b".~".contains(byte)) {
            continue;
        }
        let path = root.path(portreserve::FOLDER).join(&name);
        loaded.take(path.clone(), root.read(&path), |file, text| portreserve::read(file, text, &services));
    }
    loaded
}

/// Read one file as [`load`] would, for `portkeep check FILE`. The file may be in any folder. If the folder is named
/// `portreserve`, the file is read as one of portreserve's. Three more mistakes are reported: stanzas with the same
/// name or port, a file that does not exist, and a file name that [`load`] would ignore.
pub fn check(path: &Path, services: &Services) -> Loaded {
    let mut loaded = Loaded::default();
    let of_portreserve = path.parent().and_then(Path::file_name).is_some_and(|name| name == "portreserve");
    let content = match files::read(path) {
        Ok(Content::Absent) => Err(Diagnostic::whole(path, "does not exist")),
        other => other,
    };
    loaded.take(path.to_owned(), content, |file, text| {
        if of_portreserve { portreserve::read(file, text, services) } else { stanza::read(file, text, services) }
    });
    let conflicts = merge([], loaded.declared.iter().cloned()).conflicts;
    loaded.diagnostics.extend(conflicts.iter().filter_map(crate::Conflict::diagnostic));
    let in_folder = path.parent().and_then(Path::file_name).is_some_and(|name| name == "ports.d");
    if in_folder && path.extension().is_none_or(|extension| extension != "toml") {
        loaded.diagnostics.push(Diagnostic::whole(path, "will not be read: only files that end in .toml are"));
    }
    loaded
}

impl Loaded {
    fn take(
        &mut self,
        path: PathBuf,
        content: Result<Content, Diagnostic>,
        read: impl FnOnce(&Path, &str) -> (Vec<stanza::Read>, Vec<Diagnostic>),
    ) {
        let state = match content {
            Ok(Content::Text(text)) if !text.is_empty() => {
                let (found, wrong) = read(&path, &text);
                let failed = found.is_empty() && !wrong.is_empty();
                self.diagnostics.extend(wrong);
                self.declared.extend(found.into_iter().map(|(declaration, line)| Declared {
                    declaration,
                    origin: Origin::File { path: path.clone(), line },
                }));
                if failed { FileState::Failed } else { FileState::Read }
            }
            Ok(Content::Text(_) | Content::Null) => FileState::Mask,
            // The file was removed after its folder was listed.
            Ok(Content::Absent) => return,
            Err(wrong) => {
                self.diagnostics.push(wrong);
                FileState::Failed
            }
        };
        self.files.push(DropIn { path, state });
    }
}

/// The names in a folder, in lexical order of their bytes.
fn names(root: Root<'_>, folder: &str, diagnostics: &mut Vec<Diagnostic>) -> Vec<OsString> {
    let path = root.path(folder);
    let mut names = Vec::new();
    let wrong = |error: std::io::Error| Diagnostic::whole(&path, format!("cannot be listed: {error}"));
    match std::fs::read_dir(&path) {
        Ok(entries) => {
            for entry in entries {
                match entry {
                    Ok(entry) => names.push(entry.file_name()),
                    Err(error) => diagnostics.push(wrong(error)),
                }
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => diagnostics.push(wrong(error)),
    }
    names.sort();
    names
}
