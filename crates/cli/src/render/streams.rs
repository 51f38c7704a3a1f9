//! The streams of a command, and its messages.

use std::{
    fmt,
    io::{self, Write},
};

use portkeep::persistent::protocol::{Reason, Refused};

use crate::{
    exit::Exit,
    render::table::{self, Look},
};

/// Where a command writes. A command started by `run` inherits the real streams.
pub struct Io<'a> {
    /// The output that was asked for.
    pub(crate) out: Box<dyn Write + 'a>,
    /// Everything else.
    pub(crate) err: Box<dyn Write + 'a>,
    /// A JSON value was printed.
    pub(crate) answered: bool,
    /// The errors that were printed.
    pub(crate) errors: Vec<String>,
    /// Standard error is a terminal with colours.
    pub(crate) colour: bool,
}

impl fmt::Debug for Io<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Io").finish_non_exhaustive()
    }
}

impl Io<'static> {
    /// The streams of this process.
    pub fn standard() -> Self {
        Self { colour: table::has_colour(&io::stderr()), ..Self::new(Output(io::stdout()), io::stderr()) }
    }
}

/// Standard output. Its errors say that standard output could not be written.
struct Output(io::Stdout);

impl Output {
    fn named(error: io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("writing to standard output: {error}"))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(Self::named)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(Self::named)
    }
}

impl<'a> Io<'a> {
    /// Standard output and standard error of a command.
    pub fn new(out: impl Write + 'a, err: impl Write + 'a) -> Self {
        Self { out: Box::new(out), err: Box::new(err), answered: false, errors: Vec::new(), colour: false }
    }
}

impl Io<'_> {
    /// The command fails, or a part of it.
    pub(crate) fn error(&mut self, text: impl fmt::Display) {
        let text = text.to_string();
        self.message("error:", Look::Error, &text);
        self.errors.push(text);
    }

    /// The command goes on, and the result is less than the user may expect.
    pub(crate) fn warning(&mut self, text: impl fmt::Display) {
        self.message("warning:", Look::Warning, text);
    }

    /// Something the user should know.
    pub(crate) fn note(&mut self, text: impl fmt::Display) {
        self.message("note:", Look::Note, text);
    }

    /// The one place that prints messages. Each message is one write, because other processes may write to the same
    /// stream. If a message cannot be printed, the error is ignored: the command still does its work.
    fn message(&mut self, severity: &str, look: Look, text: impl fmt::Display) {
        let severity = look.if_colour(self.colour).of(severity);
        let _ = self.err.write_all(format!("{severity} {text}\n").as_bytes());
    }

    /// An error that only shows when the arguments are taken together.
    pub(crate) fn usage(&mut self, text: impl fmt::Display) -> u8 {
        self.error(text);
        Exit::Usage.code()
    }

    /// If a command with `--json` failed and has printed no value: print the errors as a refusal.
    pub(crate) fn refuse(&mut self, reason: Reason) {
        let message = std::mem::take(&mut self.errors).join("; ");
        if !self.answered {
            // If this fails, standard error still has the text.
            let _ = self.json(&Refused { reason, message });
        }
    }

    /// One JSON value on a line of its own.
    pub(crate) fn json(&mut self, value: &impl serde::Serialize) -> anyhow::Result<()> {
        self.answered = true;
        // One write: other processes may write to the same stream.
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.out.write_all(&line)?;
        Ok(self.out.flush()?)
    }
}
