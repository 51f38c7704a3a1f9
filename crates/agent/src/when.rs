//! Points in time of the kernel's clock, as people read them.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// How long ago a point of `CLOCK_MONOTONIC` (nanoseconds) was.
pub fn age(since: u64) -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let now = Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0));
    now.saturating_sub(Duration::from_nanos(since))
}

/// "just now", "12s ago", "3m ago", "2h 5m ago": the two largest units, and seconds only below a minute.
pub fn ago(since: u64) -> String {
    phrase(age(since))
}

fn phrase(age: Duration) -> String {
    let seconds = age.as_secs();
    let unit = match seconds {
        0 => return "just now".into(),
        1..60 => 1,
        60..86_400 => 60,
        _ => 3600,
    };
    format!("{} ago", humantime::format_duration(Duration::from_secs(seconds / unit * unit)))
}

/// The same point on the wall clock, RFC 3339 in UTC.
pub fn rfc3339(since: u64) -> String {
    // Rounded first: otherwise two looks at one reservation can differ by a second.
    let then = SystemTime::now() - age(since) + Duration::from_millis(500);
    humantime::format_rfc3339_seconds(then).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_rounded() {
        for (seconds, text) in
            [(0, "just now"), (59, "59s ago"), (185, "3m ago"), (7_500, "2h 5m ago"), (90_061, "1day 1h ago")]
        {
            assert_eq!(phrase(Duration::from_secs(seconds)), text);
        }
    }
}
