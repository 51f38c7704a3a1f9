//! Why requests got no answer, in the log.

use std::{
    collections::BTreeMap,
    fmt::Display,
    time::{Duration, Instant},
};

use crate::Io;

/// Each reason is printed once in this time.
const INTERVAL: Duration = Duration::from_secs(1);

/// The first refusal is printed at once. Those of the second after it are counted by reason and printed at its end.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    last: Option<Instant>,
    /// The newest message and the number of refusals, by the message without its numbers.
    unsaid: BTreeMap<String, (String, u64)>,
}

impl Complaints {
    pub(super) fn make(&mut self, reason: &dyn Display, io: &mut Io<'_>) {
        let message = format!("{reason:#}");
        let kind = message.chars().filter(|character| !character.is_ascii_digit()).collect();
        let entry = self.unsaid.entry(kind).or_default();
        *entry = (message, entry.1 + 1);
        self.print_due(io);
    }

    pub(super) fn print_due(&mut self, io: &mut Io<'_>) {
        if self.wait().is_some_and(|wait| wait.is_zero()) {
            self.print(io);
        }
    }

    /// How long until something is to be printed.
    pub(super) fn wait(&self) -> Option<Duration> {
        let passed = self.last.map_or(INTERVAL, |last| last.elapsed());
        (!self.unsaid.is_empty()).then(|| INTERVAL.saturating_sub(passed))
    }

    /// Print what is left, at the end.
    pub(super) fn print(&mut self, io: &mut Io<'_>) {
        for (message, number) in std::mem::take(&mut self.unsaid).into_values() {
            match number {
                1 => io.note(format_args!("{message}")),
                number => io.note(format_args!("{message} ({number} requests were refused for this reason)")),
            }
        }
        self.last = Some(Instant::now());
    }
}
