//! The declarations, as the agent reports them or, where none runs, as the files, the store and the BPF programs show them.

use std::{collections::HashMap, fs, path::Path};

use anyhow::Context;
use portkeep::persistent::{Connection, Entry, InTheWay, Origin, PersistentError, Standing, protocol};
use portkeep_persist::{Declared, Store, StoreError, Stored, dropin, merge};
use serde::Serialize;

use crate::{Io, entry, list, patience, pins::Pins, sources::Sources};

/// All that is declared.
#[derive(Debug)]
pub(crate) struct View {
    /// In the order of their ports.
    pub(crate) entries: Vec<Entry>,
    /// Whether the store could be read.
    pub(crate) with_store: bool,
}

/// Look. Gaps are reported.
pub(crate) fn look(pins: &Pins, sources: &Sources, io: &mut Io<'_>) -> anyhow::Result<View> {
    let mut view = match Connection::open_within(patience::of_environment()).and_then(|mut agent| agent.list()) {
        Ok(entries) => View { entries, with_store: true },
        Err(PersistentError::AgentAbsent { .. }) => without_agent(pins, sources, io)?,
        Err(error) => return Err(error.into()),
    };
    view.entries.sort_by_key(|entry| {
        let declaration = &entry.declaration;
        (declaration.ports, declaration.transports, declaration.name.clone())
    });
    Ok(view)
}

fn without_agent(pins: &Pins, sources: &Sources, io: &mut Io<'_>) -> anyhow::Result<View> {
    io.note("no agent runs; declarations are read from the files and the store, and their state from the BPF programs");
    let loaded = dropin::load(sources.root());
    for wrong in &loaded.diagnostics {
        io.warning(wrong);
    }
    sources.config()?;
    let (commands, with_store) = match commands(sources) {
        Ok(commands) => (commands, true),
        Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
            io.warning("the store can only be read by root; what commands created is not shown");
            (Vec::new(), false)
        }
        Err(error) => return Err(error).context("reading the store"),
    };
    let in_force = match list::entries(pins) {
        Ok(entries) => entries,
        Err(error) => {
            io.warning(format_args!("{error:#}"));
            Vec::new()
        }
    };
    let own = portkeep_kernel::netns::current_cookie().context("finding out which network namespace this is")?;
    let in_force: Vec<_> = in_force.into_iter().filter(|entry| entry.persistent && entry.is_here(own)).collect();
    Ok(View { entries: stand(commands, loaded.declared, &in_force), with_store })
}

/// The reservations that commands created, from their two stores.
fn commands(sources: &Sources) -> Result<Vec<Declared>, StoreError> {
    let config = sources.load().unwrap_or_default();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let runtime = protocol::socket_path();
    let runtime = runtime.parent().unwrap_or(Path::new(protocol::DEFAULT_RUNTIME_DIR));
    let persistent = Store::list_readonly(&sources.state_dir(&config))?.into_iter().map(Stored::persistent);
    let active = Store::list_runtime_readonly(runtime, boot.trim())?.into_iter().map(Stored::active);
    Ok(persistent.chain(active).collect())
}

/// How things stand with each: what is in force is so because the BPF programs have it, whatever was declared since.
fn stand(commands: Vec<Declared>, files: Vec<Declared>, in_force: &[entry::Entry]) -> Vec<Entry> {
    let merged = merge(commands, files);
    let in_force: HashMap<_, _> = in_force.iter().map(|entry| ((entry.ports, entry.transports), entry)).collect();
    let standing = merged.in_force.into_iter().map(|Declared { declaration, origin }| {
        let found = in_force.get(&(declaration.ports, declaration.transports));
        let (standing, token) = match found {
            Some(entry) => (Standing::Active, entry.token.clone()),
            None => (Standing::Waiting("no agent runs".into()), None),
        };
        Entry { declaration, origin, standing, token, waits_for: Vec::new() }
    });
    let conflicts = merged.conflicts.into_iter().map(|conflict| {
        let text = conflict.to_string();
        let Declared { declaration, origin } = conflict.loser;
        Entry { declaration, origin, standing: Standing::Conflict(text), token: None, waits_for: Vec::new() }
    });
    standing.chain(conflicts).collect()
}

/// How things stand, in a word or two.
pub(super) fn word(standing: &Standing) -> &'static str {
    match standing {
        Standing::Active => "in force",
        Standing::Waiting(_) => "waits",
        Standing::Conflict(_) => "conflict",
    }
}

/// Why it is not in force.
pub(super) fn reason(standing: &Standing) -> Option<&str> {
    match standing {
        Standing::Active => None,
        Standing::Waiting(reason) | Standing::Conflict(reason) => Some(reason),
    }
}

/// An entry as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Flat<'a> {
    #[serde(flatten)]
    declaration: &'a portkeep::persistent::Declaration,
    start: u16,
    count: u16,
    /// `active`, `waiting` or `conflict`.
    state: &'static str,
    reason: Option<&'a str>,
    /// The sockets in its way.
    waits_for: &'a [InTheWay],
    origin: &'a Origin,
    token: Option<&'a str>,
}

impl<'a> From<&'a Entry> for Flat<'a> {
    fn from(entry: &'a Entry) -> Self {
        Self {
            declaration: &entry.declaration,
            start: entry.declaration.ports.start(),
            count: entry.declaration.ports.count(),
            state: match entry.standing {
                Standing::Active => "active",
                Standing::Waiting(_) => "waiting",
                Standing::Conflict(_) => "conflict",
            },
            reason: reason(&entry.standing),
            waits_for: &entry.waits_for,
            origin: &entry.origin,
            token: entry.token.as_deref(),
        }
    }
}
