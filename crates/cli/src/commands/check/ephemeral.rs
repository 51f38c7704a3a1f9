//! Whether outgoing connections have enough ports left (N5), and whether the pool is outside their ports (N3).

use std::path::Path;

use portkeep_core::defaults::POOL;
use portkeep_core::{PortRange, PortSet};
use portkeep_persist::{Declared, Diagnostic, Origin};

use crate::agent::{Overlap, ephemeral_ports};

/// The problem of a pool that overlaps the ephemeral ports of this network namespace: an error, or a warning.
pub(super) fn of_pool(file: &Path, pool: Option<PortRange>) -> Option<Result<Diagnostic, Diagnostic>> {
    let overlap = Overlap::of(pool).ok().flatten()?;
    let nothing = PortSet::default();
    let exhausted = pool.filter(|pool| *pool != POOL).and_then(|pool| {
        let ephemeral = ephemeral_ports(&pool.into()).ok().flatten()?;
        ephemeral.check_more(&nothing, &pool.into()).err()
    });
    Some(match exhausted {
        Some(why) => Err(Diagnostic::whole(file, format!("pool: {why}")).with_help(Overlap::HELP)),
        None => Ok(Diagnostic::whole(file, overlap.to_string()).with_help(Overlap::HELP)),
    })
}

/// The declarations of files that, together with those before them, would leave too few ephemeral ports. The ports of a
/// declaration in force are in `ip_local_reserved_ports` already, and do not count twice.
pub(super) fn exhausting(declared: &[Declared]) -> Vec<Diagnostic> {
    let all: PortSet =
        declared.iter().flat_map(|declared| declared.declaration.ports.blocks().iter().copied()).collect();
    let Ok(Some(ephemeral)) = ephemeral_ports(&all) else { return Vec::new() };
    let mut used = PortSet::default();
    let mut wrong = Vec::new();
    for Declared { declaration, origin } in declared {
        let block = PortSet::from(&declaration.ports);
        match (ephemeral.check_more(&used, &block), origin) {
            (Err(why), Origin::File { path, line }) if !declaration.force => {
                let mut diagnostic = Diagnostic::whole(path, format!("`{}`: {why}", declaration.name));
                (diagnostic.line, diagnostic.column) = (Some(*line), Some(1));
                wrong.push(diagnostic.with_help("reserve fewer of these ports, or write `force = true`"));
            }
            _ => used = used.union(&block),
        }
    }
    wrong
}
