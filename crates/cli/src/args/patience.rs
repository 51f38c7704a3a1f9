//! How long a command waits for an agent that does not answer.

use std::time::Duration;

use portkeep_core::defaults::TIMEOUT;

/// The variable that sets it, in seconds.
pub(crate) const VARIABLE: &str = "PORTKEEP_TIMEOUT";
/// [`TIMEOUT`], as an option's default is written.
pub(crate) const DEFAULT: &str = "30";
/// For requests that only complete an answer: half a minute for a name would be too long.
pub(crate) const BRIEF: Duration = Duration::from_secs(2);

/// Seconds, as options and the variable have them.
///
/// # Errors
///
/// If it is not a number above 0.
pub fn seconds(text: &str) -> Result<Duration, &'static str> {
    let seconds = text.parse::<f32>().ok().filter(|seconds| *seconds > 0.0);
    seconds.and_then(|seconds| Duration::try_from_secs_f32(seconds).ok()).ok_or("must be a number of seconds above 0")
}

/// The value in the environment.
pub(crate) fn of_environment() -> Duration {
    let text = std::env::var(VARIABLE).unwrap_or_default();
    seconds(&text).unwrap_or(TIMEOUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_of_the_option_is_the_default() {
        assert_eq!(seconds(DEFAULT), Ok(TIMEOUT));
    }
}
