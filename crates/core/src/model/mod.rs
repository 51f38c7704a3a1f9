//! The reference model: the whole facility as plain data and pure functions.
