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

/// The meaning where options say the transports, too. Without either it is TCP.
pub(crate) fn resolve(text: &str, option: Option<Transports>) -> Result<(PortList, Transports), String> {
    Ports::resolve(text, option, &services()).map_err(|error| error.on_one_line())
}

/// The transports that the options --tcp, --udp and --both say.
pub(crate) const fn transports(tcp: bool, udp: bool, both: bool) -> Option<Transports> {
    match (tcp, udp, both) {
        (.., true) => Some(Transports::Both),
        (_, true, _) => Some(Transports::Udp),
        (true, ..) => Some(Transports::Tcp),
        (false, false, false) => None,
    }
}

pub(crate) fn tcp(text: &str) -> Result<PortList, String> {
    resolve(text, Some(Transports::Tcp)).map(|(ports, _)| ports)
}

pub(crate) fn udp(text: &str) -> Result<PortList, String> {
    resolve(text, Some(Transports::Udp)).map(|(ports, _)| ports)
}

pub(crate) fn both(text: &str) -> Result<PortList, String> {
    resolve(text, Some(Transports::Both)).map(|(ports, _)| ports)
}
