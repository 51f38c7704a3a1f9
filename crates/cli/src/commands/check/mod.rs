//! `check`: what is wrong with files, before the agent reads them.

mod ephemeral;
mod kind;
mod known;

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use portkeep::persistent::protocol::Reason;
use portkeep_persist::{
    Account, Audience, Config, Declared, Diagnostic, Origin, Services, Store, StoreError, Stored, dropin, merge,
    store::PERSISTENT,
};
use serde::Serialize;

use crate::{DONE, FAILED, Io, args::sources::Sources, exit::refused};

use kind::Kind;
pub(crate) use known::{Known, binds_as_root};

const AFTER_HELP: &str = "\
Without FILE: the drop-ins of /etc/portkeep/ports.d, /run/portkeep/ports.d and /usr/lib/portkeep/ports.d with their \
masks, those of portreserve in /etc/portreserve, and /etc/portkeep/portkeep.toml. As root they are also \
compared with reservations that commands created.

The type of a FILE is inferred. A file in a folder named `portreserve` is a portreserve file. A file named portkeep.toml, \
or with keys of the configuration and no [[reservation]], is the configuration. Any other file is a drop-in. \
For a folder, `check` reads the files that would be read there. Reservations in several FILEs must not conflict.

With --root services, users, groups and units are those of that system, too. One that does not exist is a warning: \
it may be installed later.

Examples:
  portkeep check
  portkeep check debian/portkeep/web.toml
  portkeep check --root /mnt/image

Exit status: 0 if all is right, warnings or not; 1 if something is wrong; 3 if the FILEs are folders with nothing to check";

/// Check drop-ins and the configuration for mistakes
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Files and folders [default: those of this machine]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sources: Sources,
}

/// The findings.
#[derive(Debug, Default, Serialize)]
struct Findings {
    /// Files that were read, in order.
    files: Vec<PathBuf>,
    /// Reservations that would be in force.
    reservations: usize,
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
    notes: Vec<Diagnostic>,
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    args.sources.is_this_system()?;
    let known = Known::below(args.sources.root());
    let mut findings = Findings::default();
    if args.files.is_empty() {
        findings.machine(&args.sources, &known)?;
    } else {
        findings.named(&args.files, args.sources.root(), &known);
    }
    if findings.files.is_empty() && findings.errors.is_empty() && !args.files.is_empty() {
        return Err(refused(Reason::NotFound, "there are no such files in the folders that were named"));
    }
    let wrong = !findings.errors.is_empty();
    if args.json {
        io.json(&findings)?;
    } else {
        findings.write(&mut io.out)?;
    }
    Ok(if wrong { FAILED } else { DONE })
}

/// Errors, warnings and notes about all that the agent would read.
pub(crate) fn of_machine(sources: &Sources) -> anyhow::Result<[Vec<Diagnostic>; 3]> {
    let mut findings = Findings::default();
    findings.machine(sources, &Known::below(sources.root()))?;
    Ok([findings.errors, findings.warnings, findings.notes])
}

impl Findings {
    /// All that the agent would read.
    fn machine(&mut self, sources: &Sources, known: &Known) -> anyhow::Result<()> {
        let file = sources.config()?;
        let config = match file.exists() || file.is_symlink() {
            true => self.configuration(&file, known),
            false => {
                self.compare_ranges(&file, &Config::default(), known);
                None
            }
        };
        let state_dir = sources.state_dir(&config.unwrap_or_default());
        let loaded = dropin::load(sources.root());
        self.files.extend(
            loaded
                .files
                .iter()
                .filter(|file| file.state != dropin::FileState::Mask && is_read(file))
                .map(|file| file.path.clone()),
        );
        self.errors.extend(loaded.diagnostics);
        let commands = self.commands(&state_dir);
        let merged = merge(commands, loaded.declared);
        self.errors.extend(merged.conflicts.iter().filter_map(portkeep_persist::Conflict::diagnostic));
        if known.is_this_system() {
            self.errors.extend(ephemeral::exhausting(&merged.in_force));
        }
        let in_force: Vec<_> =
            merged.in_force.into_iter().filter(|declared| matches!(declared.origin, Origin::File { .. })).collect();
        self.take(&in_force, known);
        Ok(())
    }

    /// Reservations of commands, which files must not conflict with.
    fn commands(&mut self, state_dir: &Path) -> Vec<Declared> {
        match Store::list_readonly(state_dir) {
            Ok(stored) => return stored.into_iter().map(Stored::persistent).collect(),
            // A user who may not read the store sees conflicts with it in `portkeep persist list`.
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => {
                let file = state_dir.join(PERSISTENT);
                let text = error.to_string();
                let text = text.strip_prefix(&file.display().to_string()).unwrap_or(&text);
                self.errors.push(Diagnostic::whole(&file, text.trim_start_matches([':', ' '])));
            }
        }
        Vec::new()
    }

    /// The files that were named.
    fn named(&mut self, files: &[PathBuf], root: &Path, known: &Known) {
        let services = match fs::read(root.join("etc/services")) {
            Ok(text) => Services::parse(&String::from_utf8_lossy(&text)),
            Err(_) => Services::default(),
        };
        let mut declared = Vec::new();
        for file in files.iter().flat_map(|file| expand(file)) {
            match kind::of(&file) {
                Kind::Configuration => drop(self.configuration(&file, known)),
                Kind::DropIn => {
                    let loaded = dropin::check(&file, &services);
                    self.files.push(file);
                    self.errors.extend(loaded.diagnostics);
                    declared.extend(loaded.declared);
                }
            }
        }
        let merged = merge([], declared);
        // Conflicts within one file are reported already.
        let of = |declared: &Declared| match &declared.origin {
            Origin::File { path, .. } => Some(path.clone()),
            _ => None,
        };
        let across = merged.conflicts.iter().filter(|conflict| of(&conflict.loser) != of(&conflict.winner));
        self.errors.extend(across.filter_map(portkeep_persist::Conflict::diagnostic));
        if known.is_this_system() {
            self.errors.extend(ephemeral::exhausting(&merged.in_force));
        }
        self.take(&merged.in_force, known);
    }

    fn configuration(&mut self, file: &Path, known: &Known) -> Option<Config> {
        self.files.push(file.to_owned());
        if !file.exists() {
            self.errors.push(Diagnostic::whole(file, "does not exist"));
            return None;
        }
        match Config::load(file) {
            Ok(config) => {
                let missing = known.missing_of_config(&config).into_iter();
                self.warnings.extend(missing.map(|what| Diagnostic::whole(file, what)));
                self.compare_ranges(file, &config, known);
                Some(config)
            }
            Err(wrong) => {
                self.errors.extend(wrong);
                None
            }
        }
    }

    /// Compare the pool with the ephemeral ports of this system. Those of another system are not known.
    fn compare_ranges(&mut self, file: &Path, config: &Config, known: &Known) {
        if !known.is_this_system() {
            return;
        }
        match ephemeral::of_pool(file, config.pool) {
            Some(Ok(warning)) => self.warnings.push(warning),
            Some(Err(wrong)) => self.errors.push(wrong),
            None => {}
        }
    }

    fn take(&mut self, in_force: &[Declared], known: &Known) {
        self.reservations = in_force.len();
        for Declared { declaration, origin } in in_force {
            let Origin::File { path, line } = origin else { continue };
            let name = &declaration.name;
            let about = |message: String| {
                let diagnostic = Diagnostic::whole(path, format!("{message} (`{name}`)"));
                Diagnostic { line: Some(*line), column: Some(1), ..diagnostic }
            };
            let audience = &declaration.audience;
            if let Some((one, missing)) = audience.each().iter().find_map(|one| Some((one, known.missing(one)?))) {
                let help = match one {
                    Audience::User(Account::Name(_)) | Audience::Group(Account::Name(_)) => {
                        Some("the reservation waits until there is one")
                    }
                    Audience::Unit(_) => {
                        Some("install it, or correct the name (`systemctl list-unit-files` shows all)")
                    }
                    _ => None,
                };
                let warning = about(missing);
                self.warnings.push(match help {
                    Some(help) => warning.with_help(help),
                    None => warning,
                });
            }
            if let Some(note) = binds_as_root(audience) {
                self.notes.push(about(note).with_help("for such a server write `unit` in place of `user`"));
            }
            if *audience == Audience::Administrators && !declaration.strict {
                let note = about("processes of root may bind these ports by number".to_owned());
                self.notes.push(note.with_help("with `strict = true` they may not"));
            }
        }
    }

    fn write(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        // The format of compilers, so that editors find the place.
        for (severity, all) in [("error", &self.errors), ("warning", &self.warnings), ("note", &self.notes)] {
            for each in all {
                let message = format!("{severity}: {}", each.message);
                writeln!(out, "{}", Diagnostic { message, ..each.clone() })?;
            }
        }
        let s = |n: usize| if n == 1 { "" } else { "s" };
        let (files, reservations) = (self.files.len(), self.reservations);
        let found = match (self.errors.len(), self.warnings.len()) {
            (0, 0) => "nothing wrong".into(),
            (0, warnings) => format!("{warnings} warning{}", s(warnings)),
            (errors, 0) => format!("{errors} mistake{}", s(errors)),
            (errors, warnings) => {
                format!("{errors} mistake{}, {warnings} warning{}", s(errors), s(warnings))
            }
        };
        let (s1, s2) = (s(files), s(reservations));
        writeln!(out, "{files} file{s1} with {reservations} reservation{s2}: {found}")?;
        Ok(())
    }
}

fn is_read(file: &dropin::DropIn) -> bool {
    !matches!(file.state, dropin::FileState::Hidden { .. })
}

/// For a folder, the files that would be read there, in order.
fn expand(file: &Path) -> Vec<PathBuf> {
    if !file.is_dir() {
        return vec![file.to_owned()];
    }
    let of_portreserve = file.file_name().is_some_and(|name| name == "portreserve");
    let is_read = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if of_portreserve { !name.contains(['.', '~']) } else { name.ends_with(".toml") && !name.starts_with('.') }
    };
    let entries = fs::read_dir(file).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_read).collect();
    files.sort();
    files
}
