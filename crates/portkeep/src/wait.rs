//! Waiting for the agent, with an end to it.

use std::{
    task::Poll,
    time::{Duration, Instant},
};

use crate::{AcquireError, Pending, Reservation, sys};

impl Pending {
    /// Wait until it is decided, but no longer than `limit` ([`AcquireError::AgentSilent`]), not past a signal that this
    /// thread handles, and not after `stop` has said so ([`AcquireError::Interrupted`]). However the wait ends, nothing is
    /// left behind.
    ///
    /// A signal may come while this thread does not sleep, or to another thread: a program that must notice each of them
    /// notes it in its handler and returns true from `stop`.
    pub fn wait_for(mut self, limit: Duration, mut stop: impl FnMut() -> bool) -> Result<Reservation, AcquireError> {
        const LONGEST: Duration = Duration::from_millis(2);
        let begun = Instant::now();
        let mut pause = Duration::from_micros(50);
        loop {
            if let Poll::Ready(outcome) = self.poll() {
                return outcome;
            }
            if stop() {
                return Err(AcquireError::Interrupted);
            }
            if begun.elapsed() >= limit {
                return Err(AcquireError::AgentSilent { limit });
            }
            if !sys::sleep(pause) {
                return Err(AcquireError::Interrupted);
            }
            pause = (pause * 2).min(LONGEST);
        }
    }
}
