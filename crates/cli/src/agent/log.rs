//! One line for each thing that happens.

use std::time::{Duration, Instant};

use portkeep_core::wire;
use portkeep_kernel::{Event, EventKind, Maps};

/// Refusals that are told in one second. A program that tries in a loop must not fill the disk.
const REFUSALS: u32 = 20;

#[derive(Debug)]
pub(super) struct Log {
    second: Instant,
    told: u32,
    untold: u32,
}

impl Log {
    pub(super) fn new() -> Self {
        Self { second: Instant::now(), told: 0, untold: 0 }
    }

    pub(super) fn event(&mut self, event: &Event, maps: &Maps) {
        let Event { netns, pid, uid, ports, transports, owner, .. } = event;
        let command = event.comm.as_str();
        match event.kind {
            EventKind::Granted if event.owner != event.pid => {
                // Confirmed: the process of the event is the agent, the one that matters is in the books.
                let Ok(Some(holder)) = maps.reservation(event.id) else { return };
                let (uid, command) = (holder.uid, wire::text(&holder.comm));
                tracing::info!(process = owner, command, uid, %transports, %ports, netns, "granted");
            }
            EventKind::Granted => {
                tracing::info!(process = pid, command, uid, %transports, %ports, netns, "granted");
            }
            EventKind::Ended => {
                tracing::info!(owner, by = pid, command, uid, %transports, %ports, netns, "ended");
            }
            EventKind::Refused if self.may_tell() => {
                tracing::warn!(process = pid, command, uid, %transports, port = %ports, owner, netns, "refused");
            }
            _ => {}
        }
    }

    fn may_tell(&mut self) -> bool {
        if self.second.elapsed() >= Duration::from_secs(1) {
            self.summarize();
            self.second = Instant::now();
            self.told = 0;
        }
        if self.told == REFUSALS {
            self.untold += 1;
            return false;
        }
        self.told += 1;
        true
    }

    /// Say how many refusals were not told one by one, if that is over.
    pub(super) fn summarize(&mut self) {
        if self.untold > 0 && self.second.elapsed() >= Duration::from_secs(1) {
            tracing::warn!(count = self.untold, "refused, more of the kind");
            self.untold = 0;
        }
    }
}
