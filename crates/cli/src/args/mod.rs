//! Arguments that several commands have, and what they mean.

pub(crate) mod ask;
pub(crate) mod asked;
pub(crate) mod filter;
pub(crate) mod help;
pub(crate) mod patience;
pub(crate) mod pins;
pub(crate) mod ports;
pub(crate) mod sources;
