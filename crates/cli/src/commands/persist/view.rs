//! The declarations, as the agent reports them or, where none runs, as the files, the store and the BPF programs show them.

use std::{collections::HashMap, path::Path};

use anyhow::Context;
use portkeep::{
    Info, State,
    persistent::{Connection, PersistentError, protocol},
};
use portkeep_persist::{Declared, Store, StoreError, Stored, dropin, merge, store::boot_id};

use crate::{
    Io,
    args::{
        patience,
        pins::{Pins, only_by_root},
        sources::{Places, Sources},
    },
    reservations,
    waiting::{self, Heard},
};

/// All that is declared.
#[derive(Debug)]
pub(crate) struct View {
    /// In the order of their ports.
    pub(crate) declared: Vec<Info>,
    /// Whether the store could be read.
    pub(crate) with_store: bool,
}

/// Read all declarations. A message says what cannot be read.
pub(crate) fn look(Places { pins, sources }: &Places, io: &mut Io<'_>) -> anyhow::Result<View> {
    let ask = || Connection::open_within(patience::of_environment()).and_then(|mut agent| agent.list());
    let mut view = match sources.is_this_system()?.then(ask) {
        Some(Ok(declared)) => View { declared, with_store: true },
        Some(Err(PersistentError::AgentAbsent { .. })) => {
            io.note(
                "no agent runs; declarations are read from the files and the store, and their state from the BPF programs",
            );
            let in_force = in_force(pins, io)?;
            without_agent(sources, &in_force, io)?
        }
        Some(Err(error)) => return Err(error.into()),
        None => without_agent(sources, &[], io)?,
    };
    view.declared.sort_by_key(|info| (info.ports.clone(), info.transports, info.name.clone()));
    Ok(view)
}

fn without_agent(sources: &Sources, in_force: &[Info], io: &mut Io<'_>) -> anyhow::Result<View> {
    let loaded = dropin::load(sources.root());
    for wrong in &loaded.diagnostics {
        io.warning(wrong);
    }
    sources.config()?;
    let (commands, with_store) = match commands(sources) {
        Ok(commands) => (commands, true),
        Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
            let store = only_by_root(Path::new("the store"));
            io.warning(format_args!("{store}; what commands created is not shown"));
            (Vec::new(), false)
        }
        Err(error) => return Err(error).context("reading the store"),
    };
    Ok(View { declared: stand(commands, loaded.declared, in_force), with_store })
}

/// The persistent reservations that the BPF programs have, of this network namespace.
fn in_force(pins: &Pins, io: &mut Io<'_>) -> anyhow::Result<Vec<Info>> {
    let found = match reservations::in_force(pins, None) {
        Ok(found) => found,
        Err(error) => {
            io.warning(format_args!("{error:#}"));
            Vec::new()
        }
    };
    let own = portkeep_kernel::netns::current_cookie().context("finding out which network namespace this is")?;
    Ok(found.into_iter().filter(|info| info.persistent && reservations::is_here(info, own)).collect())
}

/// All that is declared, without messages about what cannot be read. The agent reports it. If none runs, it is read
/// from the files, the stores and the reservations in force.
pub(crate) fn all(sources: &Sources, in_force: &[Info]) -> Vec<Info> {
    match waiting::ask() {
        Heard::Absent => as_read(sources, in_force),
        heard => heard.declared().to_vec(),
    }
}

/// All that is declared, from the files, the stores and the reservations in force.
pub(crate) fn as_read(sources: &Sources, in_force: &[Info]) -> Vec<Info> {
    let files = dropin::load(sources.root()).declared;
    let in_force: Vec<Info> = in_force.iter().filter(|info| info.persistent).cloned().collect();
    stand(commands(sources).unwrap_or_default(), files, &in_force)
}

/// The reservations that commands created, from their two stores.
fn commands(sources: &Sources) -> Result<Vec<Declared>, StoreError> {
    let config = sources.load().unwrap_or_default();
    let runtime = protocol::socket_path();
    let runtime = runtime.parent().unwrap_or(Path::new(protocol::DEFAULT_RUNTIME_DIR));
    let persistent = Store::list_readonly(&sources.state_dir(&config))?.into_iter().map(Stored::persistent);
    // Another system does not run, so it has no reservations until reboot.
    let active = match sources.is_this_system() {
        Ok(true) => Store::list_runtime_readonly(runtime, &boot_id())?,
        _ => Vec::new(),
    };
    Ok(persistent.chain(active.into_iter().map(Stored::active)).collect())
}

/// The state of each. A reservation is in force if the BPF programs have it, whatever was declared since.
fn stand(commands: Vec<Declared>, files: Vec<Declared>, in_force: &[Info]) -> Vec<Info> {
    let merged = merge(commands, files);
    let in_force: HashMap<_, _> = in_force.iter().map(|info| ((&info.ports, info.transports), &info.blocks)).collect();
    let standing = merged.in_force.into_iter().map(|Declared { declaration, origin }| {
        let found = in_force.get(&(&declaration.ports, declaration.transports));
        let mut info =
            Info::declared(&declaration, &origin, if found.is_some() { State::Active } else { State::Waiting });
        match found {
            Some(blocks) => info.set_tokens(blocks.iter().map(|block| block.token)),
            None => info.reason = Some("no agent runs for it".into()),
        }
        info
    });
    let conflicts = merged.conflicts.into_iter().map(|conflict| {
        let mut info = Info::declared(&conflict.loser.declaration, &conflict.loser.origin, State::Conflict);
        info.reason = Some(conflict.to_string());
        info
    });
    standing.chain(conflicts).collect()
}

/// The state, in a word or two.
pub(super) fn word(state: State) -> String {
    match state {
        State::Active => "in force".into(),
        State::Waiting => "waits".into(),
        other => other.to_string(),
    }
}
