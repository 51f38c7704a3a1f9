//! Numbers about the machine, which the agent reports for monitoring.

use std::time::Duration;

use portkeep_core::Time;
use serde::{Deserialize, Serialize};

/// Numbers about the whole machine, for monitoring.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// When this agent started.
    pub since: Time,
    /// Reservations, in all network namespaces.
    pub reservations: u32,
    /// Ports in them.
    pub ports: u64,
    /// Binds of outsiders that were refused since kernel enforcement was brought up.
    pub refused: u64,
    /// Requests for particular ports that wait for the agent now.
    pub pending: u32,
    /// How long such requests waited until they were granted or refused, since this agent started.
    pub latency: Latency,
    /// The accounts that hold ports or have requests waiting.
    pub quotas: Vec<QuotaUse>,
}

/// A distribution of durations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many.
    pub count: u64,
    /// All of them together, in seconds.
    pub sum: f64,
    /// Each element is a bound in seconds, and how many lasted at most so long and longer than the bound before.
    /// Durations above the last bound are in no element.
    pub buckets: Vec<(f64, u64)>,
}

impl Latency {
    /// An empty one with these bounds, in seconds, lowest first.
    pub fn with_bounds(bounds: &[f64]) -> Self {
        Self { buckets: bounds.iter().map(|bound| (*bound, 0)).collect(), ..Self::default() }
    }

    /// Add a duration.
    pub fn add(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        self.count += 1;
        self.sum += seconds;
        if let Some((_, count)) = self.buckets.iter_mut().find(|(bound, _)| seconds <= *bound) {
            *count += 1;
        }
    }
}

/// The ports of an account, and how many it may hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaUse {
    /// Its name.
    pub account: String,
    /// The user; `None`: root of another network namespace.
    pub uid: Option<u32>,
    /// Ports that it holds; of a reservation for both transports, TCP and UDP count separately.
    pub used: u32,
    /// Ports that it may hold; `None`: no limit.
    pub limit: Option<u32>,
    /// Its requests that wait for the agent.
    pub pending: u32,
}
