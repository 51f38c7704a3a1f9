//! The outcome of a command.

use std::{io, process::Output};

/// The output of a command and how it ended.
#[derive(Debug)]
pub struct Outcome {
    /// The exit status, `None` after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Outcome {
    /// It succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// Its standard output is JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// It failed with this status. The message contains these words and is more than an error number.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.reports(words)
    }

    /// Standard error contains each of these, and no bare error number.
    #[track_caller]
    pub fn reports(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in {self:?}");
        }
        assert!(!self.err.contains("panicked") && !self.err.lines().any(is_bare), "{self:?}");
        self
    }
}

/// Whether a message does not help: an error number without a remedy.
fn is_bare(line: &str) -> bool {
    let line = line.strip_prefix("error: ").unwrap_or(line);
    io::Error::from_raw_os_error(number_in(line)).to_string() == line
}

/// The number in "... (os error 13)", or a number that no error has.
fn number_in(line: &str) -> i32 {
    line.rsplit_once("(os error ").and_then(|(_, end)| end.trim_end_matches(')').parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_messages_are_recognised() {
        assert!(is_bare("error: Permission denied (os error 13)"));
        assert!(is_bare("Too many open files (os error 24)"));
        assert!(!is_bare("error: reading /etc/x: Permission denied (os error 13)"));
        assert!(!is_bare("note: was not up"));
    }
}
