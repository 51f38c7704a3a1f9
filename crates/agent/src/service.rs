//! Messages to a service manager (sd_notify): ready, reloading, alive. Without a service manager, none.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// The service manager, if it started the agent and expects messages.
#[derive(Debug)]
pub(super) struct Service {
    watchdog: Option<Duration>,
    last: Instant,
}

fn notify(state: &[NotifyState<'_>]) {
    // A failed message is no reason to stop.
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "notifying the service manager");
    }
}

impl Service {
    pub(super) fn new() -> Self {
        Self { watchdog: sd_notify::watchdog_enabled(), last: Instant::now() }
    }

    pub(super) fn ready(&self) {
        notify(&[NotifyState::Ready]);
    }

    pub(super) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(_) => notify(&[NotifyState::Reloading]),
        }
    }

    pub(super) fn stopping(&self) {
        notify(&[NotifyState::Stopping]);
    }

    /// The loop is running. A message in each third of the watchdog's period is enough.
    pub(super) fn alive(&mut self) {
        if let Some(period) = self.watchdog
            && self.last.elapsed() >= period / 3
        {
            self.last = Instant::now();
            notify(&[NotifyState::Watchdog]);
        }
    }
}
