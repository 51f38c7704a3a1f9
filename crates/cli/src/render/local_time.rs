//! Points in time in the time zone of this machine or of TZ, for people. JSON has them in UTC.

use jiff::{Timestamp, tz::TimeZone};
use portkeep::Time;

/// "2026-11-25 10:30:00 +01:00".
pub(crate) fn local(time: Time) -> String {
    in_zone(time, TimeZone::system())
}

fn in_zone(time: Time, zone: TimeZone) -> String {
    let seconds = i64::try_from(time.unix()).unwrap_or(i64::MAX);
    match Timestamp::from_second(seconds) {
        Ok(timestamp) => timestamp.to_zoned_datetime(zone).strftime("%Y-%m-%d %H:%M:%S %:z").to_string(),
        Err(_) => time.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_that_of_the_zone() {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let text = |seconds| in_zone(Time::from_unix(seconds), zone.clone());
        assert_eq!(text(1_764_063_000), "2025-11-25 10:30:00 +01:00");
        assert_eq!(text(1_753_432_200), "2025-07-25 10:30:00 +02:00");
        assert_eq!(in_zone(Time::from_unix(0), TimeZone::UTC), "1970-01-01 00:00:00 +00:00");
    }
}
