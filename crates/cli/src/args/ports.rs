//! Ports on the command line.

use portkeep::{Align, PortList, Ports, Transports, persistent::protocol::Reason};
use portkeep_persist::services;

use crate::exit::refused;

/// `80,443`, `5000-5019/udp`, `domain`.
///
/// # Errors
///
/// The mistake in the text, and its correction.
pub fn ports(text: &str) -> Result<Ports, String> {
    Ports::parse(text, &services()).map_err(|error| error.on_one_line())
}

/// A text that names ports. Which ones can depend on options.
pub(crate) fn text(text: &str) -> Result<String, String> {
    ports(text).map(|_| text.to_owned())
}

/// The ports and transports of a text. An option can name the transports, too. If neither does, it is TCP.
pub(crate) fn resolve(text: &str, option: Option<Transports>) -> Result<(PortList, Transports), String> {
    Ports::resolve(text, option, &services()).map_err(|error| error.on_one_line())
}

/// The transports of a request.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "transport", multiple = false)]
pub(crate) struct OfTransport {
    /// TCP ports [default]
    #[arg(long, hide_short_help = true)]
    tcp: bool,
    /// UDP ports
    #[arg(long)]
    udp: bool,
    /// The same numbers for TCP and UDP
    #[arg(long)]
    pub(crate) both: bool,
}

impl OfTransport {
    /// Those that an option names.
    pub(crate) const fn named(&self) -> Option<Transports> {
        match (self.tcp, self.udp, self.both) {
            (.., true) => Some(Transports::Both),
            (_, true, _) => Some(Transports::Udp),
            (true, ..) => Some(Transports::Tcp),
            (false, false, false) => None,
        }
    }
}

/// The ports that a request asks for.
#[derive(Clone, Debug, clap::Args)]
pub struct PortArgs {
    /// Number of ports, in a row [default: 1]
    #[arg(short = 'n', long = "count", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) wanted: Option<u16>,
    #[command(flatten)]
    pub(crate) transports: OfTransport,
    /// These ports, as 80,443 or 5000-5019/udp
    #[arg(short, long, value_name = "LIST", value_parser = text, conflicts_with_all = ["wanted", "align"])]
    pub(crate) ports: Option<String>,
    /// The first port is a multiple of N, a power of two (2 for RTP pairs)
    #[arg(long, value_name = "N", default_value_t, hide_default_value = true)]
    pub align: Align,
}

impl PortArgs {
    /// Number of ports, if they are not named.
    pub fn count(&self) -> u16 {
        self.wanted.unwrap_or(1)
    }

    /// The ports, if they are named, and the transports. Errors in them are reported before any request.
    ///
    /// # Errors
    ///
    /// A refusal, if the text and an option name different transports, or a service is not one port.
    pub fn ports(&self) -> anyhow::Result<(Option<PortList>, Transports)> {
        let option = self.transports.named();
        let Some(text) = &self.ports else { return Ok((None, option.unwrap_or(Transports::Tcp))) };
        let (list, transports) = resolve(text, option).map_err(|why| refused(Reason::Malformed, why))?;
        Ok((Some(list), transports))
    }
}

/// The ports of one persistent reservation.
#[derive(Debug, clap::Args)]
#[group(id = "exact-ports", multiple = false)]
pub(crate) struct ExactPorts {
    /// Exactly these TCP ports
    #[arg(long, value_name = "PORTS", value_parser = |text: &str| of(text, Transports::Tcp), help_heading = "Ports")]
    tcp: Option<PortList>,
    /// Exactly these UDP ports
    #[arg(long, value_name = "PORTS", value_parser = |text: &str| of(text, Transports::Udp), help_heading = "Ports")]
    udp: Option<PortList>,
    /// Exactly these ports for TCP and UDP
    #[arg(long, value_name = "PORTS", value_parser = |text: &str| of(text, Transports::Both), help_heading = "Ports")]
    both: Option<PortList>,
}

impl ExactPorts {
    /// Those that an option names.
    pub(crate) fn named(&self) -> Option<(PortList, Transports)> {
        let all = [(&self.tcp, Transports::Tcp), (&self.udp, Transports::Udp), (&self.both, Transports::Both)];
        all.into_iter().find_map(|(ports, transports)| Some((ports.clone()?, transports)))
    }
}

fn of(text: &str, transports: Transports) -> Result<PortList, String> {
    resolve(text, Some(transports)).map(|(ports, _)| ports)
}
