//! Ports on the command line.

use portkeep::{PortList, Ports, Transports};
use portkeep_persist::services;

/// `80,443`, `5000-5019/udp`, `domain`.
pub(crate) fn ports(text: &str) -> Result<Ports, String> {
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
pub struct OfTransport {
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
    pub const fn named(&self) -> Option<Transports> {
        match (self.tcp, self.udp, self.both) {
            (.., true) => Some(Transports::Both),
            (_, true, _) => Some(Transports::Udp),
            (true, ..) => Some(Transports::Tcp),
            (false, false, false) => None,
        }
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
