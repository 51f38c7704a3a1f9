//! The table of a benchmark's results.

use std::{fmt, io};

use crate::report;

/// A result.
#[derive(Debug)]
pub struct Row {
    what: &'static str,
    value: f64,
    limit: Option<f64>,
    /// Why the limit is missed, if it is.
    reason: Option<&'static str>,
}

impl Row {
    /// A result with a limit: it must not be above it.
    pub fn at_most(what: &'static str, value: f64, limit: f64) -> Self {
        Self { what, value, limit: Some(limit), reason: None }
    }

    /// A result without a limit.
    pub fn info(what: &'static str, value: f64) -> Self {
        Self { what, value, limit: None, reason: None }
    }

    /// The reason that is published if the limit is missed.
    pub fn missed_because(self, reason: &'static str) -> Self {
        Self { reason: Some(reason), ..self }
    }

    fn is_missed(&self) -> bool {
        self.limit.is_some_and(|limit| self.value > limit)
    }
}

/// The results of a run.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
    notes: Vec<String>,
}

/// Small ratios read better as fractions.
fn number(value: f64) -> String {
    if value == 0.0 || value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 0.1 {
        format!("{value:.2}")
    } else {
        format!("1/{:.0}", 1.0 / value)
    }
}

impl Table {
    /// Add a result, and print it.
    pub fn push(&mut self, row: Row) {
        eprintln!("{}: {}", row.what, number(row.value));
        self.rows.push(row);
    }

    /// Add a sentence below the table.
    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Put it into docs/internals/benchmarks.md as the section with this name; `head` is the text before it.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or written.
    pub fn write(&self, name: &str, head: &str) -> io::Result<()> {
        report::put_into_benchmarks(name, &format!("{head}\n\n{self}"))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}.\n", report::machine())?;
        writeln!(f, "| what | measured | at most | |\n|---|---:|---:|---|")?;
        for row in &self.rows {
            let bound = row.limit.map(number).unwrap_or_default();
            let verdict = match row.limit {
                Some(_) if row.is_missed() => "MISSED",
                Some(_) => "kept",
                None => "",
            };
            writeln!(f, "| {} | {} | {bound} | {verdict} |", row.what, number(row.value))?;
        }
        writeln!(f)?;
        for row in self.rows.iter().filter(|row| row.is_missed()) {
            writeln!(f, "- MISSED: {}: {}.", row.what, row.reason.unwrap_or("the reason is not known"))?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "- {note}"))
    }
}
