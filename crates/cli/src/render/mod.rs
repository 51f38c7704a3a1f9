//! How results and messages are printed.

pub(crate) mod conflict;
pub(crate) mod local_time;
pub(crate) mod streams;
pub(crate) mod table;
