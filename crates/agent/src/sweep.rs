//! Visits all network namespaces, a slice at a time: users can make as many as they like.

use std::{collections::BTreeSet, fmt, io};

use super::namespaces::{self, Namespace};

type Namespaces = Box<dyn Iterator<Item = io::Result<Namespace>>>;

/// The progress of the sweep.
pub(super) struct Sweep {
    pub(super) rest: Option<Namespaces>,
    /// Whether pool ports in use are looked for, too.
    pub(super) looks_for_use: bool,
    pub(super) seen: BTreeSet<u64>,
}

impl Sweep {
    pub(super) fn begin(looks_for_use: bool) -> Self {
        Self { rest: Some(Box::new(namespaces::visible())), looks_for_use, seen: BTreeSet::new() }
    }

    pub(super) fn is_over(&self) -> bool {
        self.rest.is_none()
    }
}

impl fmt::Debug for Sweep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sweep").field("over", &self.is_over()).finish_non_exhaustive()
    }
}
