//! The requests of `run` and `acquire`.

use std::time::Duration;

use portkeep::{Align, PortRange, Transports, persistent::protocol::Reason};
use portkeep_core::time;

use crate::{exit::refused, patience};

/// The variable that stands for --require-kernel.
const REQUIRE: &str = "PORTKEEP_REQUIRE";
/// The time of a --wait without one.
const FOR_EVER: &str = "forever";
/// Bytes that a label can have.
pub(crate) const LABEL: usize = 24;

/// The block that is wanted.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Ask {
    /// Number of ports, in a row [default: 1]
    #[arg(short = 'n', long = "count", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    wanted: Option<u16>,
    /// TCP ports [default]
    #[arg(long, group = "transport")]
    tcp: bool,
    /// UDP ports
    #[arg(long, group = "transport")]
    udp: bool,
    /// The same numbers for TCP and UDP
    #[arg(long, group = "transport")]
    both: bool,
    /// First port [default: chosen from the pool]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) at: Option<u16>,
    /// The first port is a multiple of N, a power of two (2 for RTP pairs)
    #[arg(long, value_name = "N", default_value_t, hide_default_value = true)]
    pub(crate) align: Align,
    /// Name for listings, at most 24 bytes
    #[arg(short = 'l', long, value_parser = label)]
    pub(crate) label: Option<String>,
    /// Fail without kernel enforcement
    ///
    /// PORTKEEP_REQUIRE=kernel in the environment does the same.
    #[arg(long)]
    pub(crate) require_kernel: bool,
    /// Wait for the ports, at most so long (30s, 5m)
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = FOR_EVER)]
    #[arg(value_parser = wait)]
    pub(crate) wait: Option<Duration>,
    /// Seconds to wait for an agent that does not answer
    #[arg(long, value_name = "SECONDS", env = patience::VARIABLE, hide_env_values = true)]
    #[arg(default_value = patience::DEFAULT, value_parser = patience::seconds)]
    pub(crate) timeout: Duration,
}

impl Ask {
    /// Whether ports that are only held are not enough.
    pub(crate) fn requires_kernel(&self) -> anyhow::Result<bool> {
        match std::env::var_os(REQUIRE) {
            Some(value) if value == "kernel" => Ok(true),
            Some(value) if !value.is_empty() => {
                anyhow::bail!("{REQUIRE} is {:?}; it can be `kernel`, or empty", value.display().to_string())
            }
            _ => Ok(self.require_kernel),
        }
    }

    pub(crate) fn count(&self) -> u16 {
        self.wanted.unwrap_or(1)
    }

    /// Whether fixed ports are asked for in so many words.
    pub(crate) fn names_ports(&self) -> bool {
        self.wanted.is_some() || self.at.is_some() || self.align != Align::ANY
    }

    /// The request for a private ephemeral range beside this one: TCP and UDP, unless one of them is asked for.
    pub(crate) fn for_range(&self, count: u16) -> Self {
        let both = self.both || !(self.tcp || self.udp);
        Self { wanted: Some(count), at: None, align: Align::ANY, both, ..self.clone() }
    }

    pub(crate) const fn transports(&self) -> Transports {
        match (self.udp, self.both) {
            (_, true) => Transports::Both,
            (true, _) => Transports::Udp,
            _ => Transports::Tcp,
        }
    }

    /// The block, if its first port is given. Errors in it are reported before any request.
    pub(crate) fn block(&self) -> anyhow::Result<Option<PortRange>> {
        let Some(at) = self.at else { return Ok(None) };
        self.align.check(at).map_err(malformed)?;
        Ok(Some(PortRange::new(at, self.count()).map_err(malformed)?))
    }
}

fn malformed(error: impl std::fmt::Display) -> anyhow::Error {
    refused(Reason::Malformed, error.to_string())
}

fn wait(text: &str) -> Result<Duration, String> {
    if text == FOR_EVER { Ok(Duration::MAX) } else { time::duration(text) }
}

fn label(text: &str) -> Result<String, &'static str> {
    match text {
        "" => Err("a label cannot be empty"),
        _ if text.len() > LABEL => Err("a label has at most 24 bytes"),
        _ if text.chars().any(char::is_control) => Err("a label is one line of text"),
        _ => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        ask: Ask,
    }

    fn block(words: &[&str]) -> Result<Option<String>, String> {
        let ask = Only::parse_from([&["x"], words].concat()).ask;
        ask.block().map(|block| block.map(|block| block.to_string())).map_err(|error| error.to_string())
    }

    #[test]
    fn blocks_that_cannot_be_are_refused_before_anybody_is_asked() {
        assert_eq!(block(&["-n4"]), Ok(None));
        assert_eq!(block(&["--at", "5000", "-n20"]), Ok(Some("5000-5019".into())));
        assert!(block(&["--at", "65535", "-n2"]).unwrap_err().contains("past 65535"));
        assert!(block(&["--at", "5001", "--align", "2"]).unwrap_err().contains("not a multiple of 2"));
    }
}
