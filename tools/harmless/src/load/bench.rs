//! One side of a comparison under load.

use std::path::Path;

use anyhow::Result;

/// Requests a second, where more are better, or milliseconds, where fewer are better.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Rate,
    Milliseconds,
}

/// The measurements of one turn.
pub(super) struct Figure {
    pub(super) what: String,
    pub(super) unit: Unit,
    pub(super) value: f64,
}

/// A server, and what puts it under load.
pub(super) trait Bench {
    fn turn(&self, cgroup: &Path, seconds: u32) -> Result<Vec<Figure>>;
}
