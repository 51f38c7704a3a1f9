//! Messages and answers.

use std::{
    fmt,
    io::{self, Write},
};

/// One line on standard error.
pub(crate) fn complain(severity: &str, message: impl fmt::Display) {
    eprintln!("{severity}: {message}");
}

/// One JSON value on a line.
pub(crate) fn print_json(value: &impl serde::Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    out.write_all(b"\n")?;
    out.flush()
}
