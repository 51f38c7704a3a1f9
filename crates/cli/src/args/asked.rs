//! Ports that a command is asked about: by number, range or service, or by the name of a reservation.

use std::{fmt, str::FromStr};

use portkeep::{Info, PortRange, Ports, Transports};

use crate::args::ports::ports;

/// An argument as `80,443`, `8000-8100/tcp`, `http` or `web`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    text: String,
    /// `None` if the text does not name ports: then it is the name of a reservation.
    ports: Option<Ports>,
}

impl Asked {
    /// Whether it can only mean ports, and not the name of a reservation.
    pub(crate) fn is_by_number(&self) -> bool {
        self.ports.is_some() && !is_name(&self.text)
    }

    /// The blocks that it means. If it is only a name, and no `known` reservation has this name, there are none. If a
    /// word is both a service and the name of a reservation, it means the reservation.
    pub(crate) fn blocks(&self, known: &[&Info]) -> Vec<(PortRange, Transports)> {
        let named = known.iter().filter(|info| !self.is_by_number() && info.name.as_deref() == Some(&self.text));
        let mut found: Vec<_> = named.flat_map(|info| blocks_of(info).map(|block| (block, info.transports))).collect();
        if let Some(Ports { list, transports }) = self.ports.as_ref().filter(|_| found.is_empty()) {
            let transports = transports.unwrap_or(Transports::Both);
            // Ports that were named one by one are not a range, even if they are consecutive (L1).
            match self.text.split(',').count() == usize::from(list.count()) {
                true => found.extend(list.iter().filter_map(|port| Some((PortRange::single(port).ok()?, transports)))),
                false => found.extend(list.blocks().iter().map(|block| (*block, transports))),
            }
        }
        found
    }
}

/// The blocks of a reservation.
pub(crate) fn blocks_of(info: &Info) -> impl Iterator<Item = PortRange> {
    info.ports.blocks().iter().copied()
}

/// Whether it can be the name of a reservation.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic()) && !text.contains([',', '/'])
}

impl FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ports = ports(text);
        match ports {
            Err(error) if !is_name(text) => Err(error),
            ports => Ok(Self { text: text.to_owned(), ports: ports.ok() }),
        }
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use portkeep::State;

    use super::*;

    #[test]
    fn an_argument_is_ports_or_a_name() {
        let ports = PortRange::inclusive(61000, 61003).unwrap();
        let mut info = Info::of_ports(ports, Transports::Tcp, State::Active);
        info.name = Some("web".into());
        let blocks = |text: &str| {
            let blocks = text.parse::<Asked>().unwrap().blocks(&[&info]);
            blocks.iter().map(|(ports, transports)| format!("{ports}/{transports}")).collect::<Vec<_>>()
        };
        assert_eq!(blocks("web"), ["61000-61003/tcp"]);
        assert_eq!(blocks("443,80"), ["80/tcp+udp", "443/tcp+udp"]);
        assert_eq!(blocks("80,81"), ["80/tcp+udp", "81/tcp+udp"]);
        assert_eq!(blocks("8000-8100/udp"), ["8000-8100/udp"]);
        assert_eq!(blocks("no-such-name"), [""; 0]);
        for (text, by_number) in
            [("80", true), ("8000-8100/udp", true), ("443,http", true), ("http", false), ("web", false)]
        {
            assert_eq!(text.parse::<Asked>().unwrap().is_by_number(), by_number, "{text}");
        }
        for wrong in ["0", "65536", "80/sctp", "no-such-name/tcp", "80,no-such-name", ""] {
            assert!(wrong.parse::<Asked>().is_err(), "{wrong}");
        }
    }
}
