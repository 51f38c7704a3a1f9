//! The requests of `run` and `acquire`.

use std::{path::Path, time::Duration};

use portkeep::{
    Align,
    persistent::{Account, Audience, Correction, Others, protocol::Reason},
};
use portkeep_core::time;
use portkeep_observe::accounts;

use crate::{
    args::{patience, ports::PortArgs},
    commands::check::Known,
    exit::refused,
};

/// The variable that means --require-kernel.
const REQUIRE: &str = "PORTKEEP_REQUIRE";
/// The value of a `--wait` without a time.
const FOR_EVER: &str = "forever";
/// Bytes that a label can have.
pub(crate) const LABEL: usize = 24;

/// The block that is wanted.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Ask {
    #[command(flatten)]
    pub(crate) wanted: PortArgs,
    /// Name for listings, at most 24 bytes
    #[arg(short = 'l', long, value_parser = label)]
    pub(crate) label: Option<String>,
    /// Let others bind the ports, too: unit=NAME, user=NAME or group=NAME
    ///
    /// Repeat the option for more of them, at most four.
    #[arg(long, value_name = "WHO", value_parser = other)]
    also: Vec<Audience>,
    /// Fail without kernel enforcement
    ///
    /// PORTKEEP_REQUIRE=kernel in the environment does the same.
    #[arg(long)]
    pub(crate) require_kernel: bool,
    /// Wait for the ports, at most this long (30s, 5m)
    ///
    /// Without TIME there is no limit. Without the option ports that another process has are an error at once.
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = FOR_EVER)]
    #[arg(value_parser = wait)]
    pub(crate) wait: Option<Duration>,
    /// Seconds to wait for an agent that does not answer
    #[arg(long, value_name = "SECONDS", env = patience::VARIABLE, hide_env_values = true)]
    #[arg(default_value = patience::DEFAULT, value_parser = patience::seconds)]
    pub(crate) timeout: Duration,
}

impl Ask {
    /// Whether the request requires kernel enforcement.
    pub(crate) fn requires_kernel(&self) -> anyhow::Result<bool> {
        match std::env::var_os(REQUIRE) {
            Some(value) if value == "kernel" => Ok(true),
            Some(value) if !value.is_empty() => {
                anyhow::bail!("{REQUIRE} is {:?}; it can be `kernel`, or empty", value.display().to_string())
            }
            _ => Ok(self.require_kernel),
        }
    }

    /// The others that `--also` names. Each name is looked up, so that a name with a mistake is reported at once.
    pub(crate) fn also(&self) -> anyhow::Result<Others<u32>> {
        let others =
            Others::new(self.also.iter().cloned()).map_err(|error| refused(Reason::Malformed, error.to_string()));
        others?.try_map(accounts::uid, accounts::gid).map_err(|why| refused(Reason::Malformed, why))
    }

    /// A sentence about a unit that `--also` names and that does not exist.
    pub(crate) fn missing_also(&self) -> Option<String> {
        let known = Known::below(Path::new("/"));
        self.also.iter().find_map(|other| known.missing(other)).map(|missing| format!("--also: {missing} yet"))
    }

    /// Whether an option names or counts fixed ports.
    pub(crate) fn names_ports(&self) -> bool {
        let PortArgs { wanted, ports, align, .. } = &self.wanted;
        wanted.is_some() || ports.is_some() || *align != Align::ANY
    }

    /// The request for a private ephemeral range beside this one: TCP and UDP, unless one of them is asked for.
    pub(crate) fn for_range(&self, count: u16) -> Self {
        let mut transports = self.wanted.transports.clone();
        transports.both |= transports.named().is_none();
        Self { wanted: PortArgs { wanted: Some(count), transports, ports: None, align: Align::ANY }, ..self.clone() }
    }
}

fn wait(text: &str) -> Result<Duration, String> {
    if text == FOR_EVER { Ok(Duration::MAX) } else { time::duration(text) }
}

fn other(text: &str) -> Result<Audience, String> {
    let account = |name: &str| name.parse::<Account>();
    let read = match text.split_once('=') {
        Some(("unit", name)) => Audience::unit(name),
        Some(("user", name)) => account(name).map(Audience::User),
        Some(("group", name)) => account(name).map(Audience::Group),
        Some(("cgroup", _)) => {
            return Err(
                "a cgroup cannot be admitted: the kernel compares users, groups and names of units; write unit=NAME \
                        for the service or scope that it belongs to, or user=NAME"
                    .into(),
            );
        }
        _ => return Err("write unit=NAME, user=NAME or group=NAME".into()),
    };
    read.map_err(|error| match error.correction() {
        Some(Correction::Root) => {
            format!("{error}; systemd binds the ports of a socket unit, as root: write user=root")
        }
        Some(correction @ Correction::Write(_)) => format!("{error}; {correction}"),
        _ => error.to_string(),
    })
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

    fn ports(words: &[&str]) -> Result<String, String> {
        let parsed = Only::try_parse_from([&["x"], words].concat()).map_err(|error| error.to_string())?;
        let (list, transports) = parsed.ask.wanted.ports().map_err(|error| error.to_string())?;
        let list = list.map_or_else(|| "any".into(), |list| list.to_string());
        Ok(format!("{list}/{transports}"))
    }

    #[test]
    fn others_are_units_users_and_groups() {
        let also = |words: &[&str]| {
            let words: Vec<&str> = words.iter().flat_map(|word| ["--also", word]).collect();
            let parsed = Only::try_parse_from([&["x"], &words[..]].concat()).map_err(|error| error.to_string())?;
            parsed.ask.also().map(|others| others.to_string()).map_err(|error| error.to_string())
        };
        assert_eq!(also(&[]).unwrap(), "");
        assert_eq!(
            also(&["unit=docker.service", "user=root", "group=7"]).unwrap(),
            "user 0, group 7, unit docker.service"
        );
        for (wrong, why) in [
            (&["docker.service"][..], "write unit=NAME, user=NAME or group=NAME"),
            (&["cgroup=/web.slice"], "a cgroup cannot be admitted"),
            (&["unit=docker"], "write \"docker.service\""),
            (&["unit=system.slice"], "is a slice"),
            (&["user=nobody-is-called-this"], "nobody-is-called-this"),
            (
                &["user=1", "user=2", "user=3", "user=4", "user=5"],
                "at most 4 users, groups and units can be admitted, and these are 5",
            ),
            (&["user=1", "user=1"], "user 1 is named twice"),
        ] {
            let error = also(wrong).unwrap_err();
            assert!(error.contains(why), "{wrong:?}: {error}");
        }
    }

    #[test]
    fn ports_that_cannot_be_are_refused_before_anybody_is_asked() {
        assert_eq!(ports(&["-n4"]).unwrap(), "any/tcp");
        assert_eq!(ports(&["--ports", "5000-5019"]).unwrap(), "5000-5019/tcp");
        assert_eq!(ports(&["-p443,80", "--both"]).unwrap(), "80,443/tcp+udp");
        assert_eq!(ports(&["-p", "80,443/udp"]).unwrap(), "80,443/udp");
        for (wrong, why) in [
            (&["--ports", "65536"][..], "not a port"),
            (&["--ports", "80/udp", "--tcp"], "says udp, and tcp is said beside it"),
            (&["--ports", "80", "-n2"], "cannot be used with"),
            (&["--ports", "80", "--align", "2"], "cannot be used with"),
        ] {
            let error = ports(wrong).unwrap_err();
            assert!(error.contains(why), "{wrong:?}: {error}");
        }
    }
}
