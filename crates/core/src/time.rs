//! Points in time and ages, as people and programs read them. This module has no clock: callers pass the time.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// A point in time, to the second. Written and read as RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Time(u64);

/// The last second that RFC 3339 can write: the end of the year 9999.
const LAST: u64 = 253_402_300_799;

impl Time {
    /// So many seconds after 1970 began; at most the end of the year 9999.
    pub const fn from_unix(seconds: u64) -> Self {
        Self(if seconds > LAST { LAST } else { seconds })
    }

    /// Seconds since 1970 began.
    pub const fn unix(self) -> u64 {
        self.0
    }

    /// How long ago it was at `now`; zero if it is still to come.
    pub fn age_at(self, now: SystemTime) -> Duration {
        now.duration_since(self.into()).unwrap_or_default()
    }
}

impl From<SystemTime> for Time {
    /// Rounded, because two readings of the time of one event differ by microseconds.
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::from_unix((since + Duration::from_millis(500)).as_secs())
    }
}

impl From<Time> for SystemTime {
    fn from(time: Time) -> Self {
        UNIX_EPOCH + Duration::from_secs(time.0)
    }
}

impl fmt::Display for Time {
    /// "2026-11-25T09:30:00Z".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_seconds((*self).into()).fmt(f)
    }
}

impl FromStr for Time {
    type Err = humantime::TimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_rfc3339(text).map(Self::from)
    }
}

impl TryFrom<String> for Time {
    type Error = humantime::TimestampError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Time> for String {
    fn from(time: Time) -> Self {
        time.to_string()
    }
}

/// "just now", "12s ago", "3m ago", "2h 5m ago": the two largest units, and seconds only below a minute.
pub fn ago(age: Duration) -> String {
    let seconds = age.as_secs();
    let unit = match seconds {
        0 => return "just now".into(),
        1..60 => 1,
        60..86_400 => 60,
        _ => 3600,
    };
    format!("{} ago", humantime::format_duration(Duration::from_secs(seconds / unit * unit)))
}

/// "90s", "10m", "1h 30m" or "2days", as options write it; a number alone means seconds.
///
/// # Errors
///
/// A sentence for people.
pub fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text).map_err(|_| format!("{text:?} is not a time; write it as 90s, 10m or 1h30m"))
}

/// "1h 30m": what [`duration`] reads.
pub fn in_words(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_rounded() {
        for (seconds, text) in
            [(0, "just now"), (59, "59s ago"), (185, "3m ago"), (7_500, "2h 5m ago"), (90_061, "1day 1h ago")]
        {
            assert_eq!(ago(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn times_are_read_as_they_are_written() {
        for (text, seconds) in [("0", 0), ("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("2days", 172_800)] {
            let time = duration(text).unwrap();
            assert_eq!(time, Duration::from_secs(seconds), "{text}");
            assert_eq!(duration(&in_words(time)), Ok(time));
        }
        for wrong in ["", "m", "-1", "10 parsecs", "99999999999999999999999"] {
            assert!(duration(wrong).unwrap_err().contains("90s, 10m or 1h30m"), "{wrong}");
        }
    }

    #[test]
    fn json_is_rfc_3339() {
        let time = Time::from_unix(1_764_063_000);
        assert_eq!(serde_json::to_string(&time).unwrap(), "\"2025-11-25T09:30:00Z\"");
        assert_eq!(serde_json::from_str::<Time>("\"2025-11-25T09:30:00Z\"").unwrap(), time);
        assert_eq!(Time::from_unix(u64::MAX).to_string(), "9999-12-31T23:59:59Z");
        assert!(serde_json::from_str::<Time>("\"yesterday\"").is_err());
    }
}
