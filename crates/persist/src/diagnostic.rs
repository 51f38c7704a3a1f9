//! Errors in a file, reported so that they can be corrected.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::Serialize;

/// One complaint about a file. It is printed like the message of a compiler:
///
/// ```text
/// /etc/portkeep/ports.d/web.toml:5:1: unknown key `strickt`
/// help: did you mean `strict`?
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Diagnostic {
    /// The file.
    #[serde(serialize_with = "path_text")]
    pub file: PathBuf,
    /// The line, from 1; `None` if the complaint is about the file as a whole.
    pub line: Option<usize>,
    /// The column in characters, from 1; `None` if the complaint is about the file as a whole.
    pub column: Option<usize>,
    /// The error, one sentence without a full stop.
    pub message: String,
    /// The correction, where that is known.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A complaint about a file as a whole.
    pub fn whole(file: &Path, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line: None, column: None, message: message.into(), help: None }
    }

    /// The same with advice.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The complaint and its help on one line.
    pub fn on_one_line(&self) -> String {
        self.to_string().lines().map(str::trim).collect::<Vec<_>>().join("; ")
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", self.message)?;
        match &self.help {
            Some(help) => write!(f, "\nhelp: {help}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Diagnostic {}

/// For serde: a path as text. Bytes that are not UTF-8 are shown as replacement characters.
// serde requires a reference to the field's type.
#[allow(clippy::ptr_arg)]
pub(crate) fn path_text<S: serde::Serializer>(path: &PathBuf, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// The largest number of complaints about one file.
const MOST: usize = 100;

/// A text with its file name, and the complaints about it so far.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    file: &'a Path,
    text: &'a str,
    /// Where each line begins.
    lines: Vec<usize>,
    found: Vec<Diagnostic>,
}

impl<'a> Report<'a> {
    pub(crate) fn new(file: &'a Path, text: &'a str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { file, text, lines, found: Vec::new() }
    }

    /// Line and column of a byte of the text, both from 1.
    pub(crate) fn place(&self, at: usize) -> (usize, usize) {
        let mut at = at.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        let line = self.lines.partition_point(|begin| *begin <= at);
        let begin = self.lines[line - 1];
        (line, self.text[begin..at].chars().count() + 1)
    }

    pub(crate) fn say(&mut self, at: Range<usize>, message: impl Into<String>) {
        self.add(at, message.into(), None);
    }

    pub(crate) fn advise(&mut self, at: Range<usize>, message: impl Into<String>, help: impl Into<String>) {
        self.add(at, message.into(), Some(help.into()));
    }

    pub(crate) fn add(&mut self, at: Range<usize>, message: String, help: Option<String>) {
        // Without this limit, a file of garbage would give a complaint for every byte.
        if self.found.len() >= MOST {
            return;
        }
        let (line, column) = self.place(at.start);
        let (line, column) = (Some(line), Some(column));
        self.found.push(Diagnostic { file: self.file.to_owned(), line, column, message, help });
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.found.is_empty()
    }

    /// How many complaints there are so far.
    pub(crate) fn count(&self) -> usize {
        self.found.len()
    }

    /// The complaints, from top to bottom.
    pub(crate) fn into_diagnostics(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|found| (found.line, found.column));
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_like_a_compilers() {
        let mut report = Report::new(Path::new("/x.toml"), "a = 1\nä = 2 # x\n");
        report.advise(10..11, "wrong", "right");
        report.say(99..99, "the end");
        let all: Vec<String> = report.into_diagnostics().iter().map(ToString::to_string).collect();
        assert_eq!(all, ["/x.toml:2:4: wrong\nhelp: right", "/x.toml:3:1: the end"]);
        assert_eq!(Diagnostic::whole(Path::new("/y"), "gone").to_string(), "/y: gone");
    }
}
