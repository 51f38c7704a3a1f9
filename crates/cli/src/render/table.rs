//! Aligned columns.

use std::{
    env,
    io::{self, IsTerminal, Write},
};

use rustix::termios::tcgetwinsize;

/// Write rows of cells, with the header as one of them. The last cell of a row is not padded.
///
/// # Errors
///
/// Those of `out`.
pub fn write(rows: &[impl AsRef<[String]>], out: &mut dyn Write) -> anyhow::Result<()> {
    write_with(rows, out, |_| Look::Plain)
}

/// How a text looks on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    Plain,
    Header,
    /// Something about it is out of the ordinary.
    Special,
    Error,
    Warning,
    Note,
}

impl Look {
    pub(crate) fn of(self, text: &str) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            Self::Header => "1",
            Self::Special => "33",
            Self::Error => "1;31",
            Self::Warning => "1;33",
            Self::Note => "1;36",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Plain without colour.
    pub(crate) fn if_colour(self, colour: bool) -> Self {
        if colour { self } else { Self::Plain }
    }
}

/// The same with a look for each row, by its place.
pub(crate) fn write_with(
    rows: &[impl AsRef<[String]>],
    out: &mut dyn Write,
    look: impl Fn(usize) -> Look,
) -> anyhow::Result<()> {
    let widths = widths(rows);
    for (index, row) in rows.iter().enumerate() {
        writeln!(out, "{}", look(index).of(&line(row, &widths)))?;
    }
    Ok(())
}

/// How wide each column has to be.
pub(crate) fn widths(rows: &[impl AsRef<[String]>]) -> Vec<usize> {
    let columns = rows.first().map_or(0, |row| row.as_ref().len());
    let width = |column: usize| rows.iter().map(|row| row.as_ref()[column].chars().count()).max().unwrap_or(0);
    (0..columns).map(width).collect()
}

/// One row, without blanks at its end.
pub(crate) fn line(row: &impl AsRef<[String]>, widths: &[usize]) -> String {
    let cells: Vec<String> = row.as_ref().iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
    cells.join("  ").trim_end().to_owned()
}

/// How wide rows of these widths are.
pub(crate) fn total(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1)
}

/// The beginning of a text that fits.
pub(crate) fn cut(text: &str, width: usize) -> String {
    match text.chars().count() > width {
        true => text.chars().take(width.saturating_sub(3)).chain("...".chars()).take(width).collect(),
        false => text.to_owned(),
    }
}

/// Whether a stream is a terminal that shows colours.
pub(crate) fn has_colour(stream: &impl IsTerminal) -> bool {
    let set = |name: &str| env::var_os(name).unwrap_or_default();
    // https://no-color.org: any value but an empty one.
    stream.is_terminal() && set("NO_COLOR").is_empty() && !set("TERM").is_empty() && set("TERM") != "dumb"
}

/// The terminal that standard output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terminal {
    pub(crate) width: usize,
    pub(crate) colour: bool,
}

impl Terminal {
    /// `None`: it is a file or a pipe, or its width is not known.
    pub(crate) fn of_output() -> Option<Self> {
        let out = io::stdout();
        let size = out.is_terminal().then(|| tcgetwinsize(&out).ok()).flatten()?;
        Some(Self { width: usize::from(size.ws_col), colour: has_colour(&out) }).filter(|terminal| terminal.width > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["A", "LONG"], ["wide", "x"]].map(|row| row.map(String::from));
        let mut out = Vec::new();
        write(&rows, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "A     LONG\nwide  x\n");
        let mut out = Vec::new();
        write_with(&rows, &mut out, |index| if index == 0 { Look::Header } else { Look::Special }).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "\x1b[1mA     LONG\x1b[0m\n\x1b[33mwide  x\x1b[0m\n");
        assert_eq!(total(&widths(&rows)), 10);
        assert_eq!(
            (cut("abcdef", 6), cut("abcdefg", 6), cut("abc", 2)),
            ("abcdef".into(), "abc...".into(), "..".into())
        );
    }
}
