//! A port on the command line: `8080`, `8080/tcp`, `http`, `domain/udp`.

use std::{fs, str::FromStr};

use portkeep::Transport;

/// A port of one transport or of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortArg {
    pub(crate) port: u16,
    pub(crate) transport: Option<Transport>,
}

impl PortArg {
    pub(crate) fn transports(self) -> impl Iterator<Item = Transport> {
        Transport::ALL.into_iter().filter(move |each| self.transport.is_none_or(|one| one == *each))
    }
}

impl std::fmt::Display for PortArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.transport {
            Some(transport) => write!(f, "{}/{transport}", self.port),
            None => write!(f, "{}", self.port),
        }
    }
}

impl FromStr for PortArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (port, transport) = match text.split_once('/') {
            Some((port, transport)) => (port, Some(transport.parse::<Transport>()?)),
            None => (text, None),
        };
        let number = match port.parse::<u16>() {
            Ok(number) => Some(number),
            Err(_) => service(&fs::read_to_string("/etc/services").unwrap_or_default(), port, transport),
        };
        match number {
            Some(0) => Err("port 0 means \"any\" and belongs to nobody".into()),
            Some(port) => Ok(Self { port, transport }),
            None => Err(format!("{port:?} is neither a port (1 to 65535) nor a name in /etc/services")),
        }
    }
}

/// The port that /etc/services gives a name or an alias.
fn service(services: &str, name: &str, transport: Option<Transport>) -> Option<u16> {
    services.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let (official, port) = (words.next()?, words.next()?);
        if official != name && !words.any(|alias| alias == name) {
            return None;
        }
        let (port, of) = port.split_once('/')?;
        let wanted = transport.is_none_or(|transport| of == transport.to_string());
        wanted.then(|| port.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_transports_are_read() {
        assert_eq!("80".parse(), Ok(PortArg { port: 80, transport: None }));
        assert_eq!("80/udp".parse(), Ok(PortArg { port: 80, transport: Some(Transport::Udp) }));
        for wrong in ["0", "65536", "80/sctp", "no-such-service-here", ""] {
            assert!(wrong.parse::<PortArg>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn services_have_names_and_aliases() {
        let services = "# Network services\nhttp 80/tcp www # WorldWideWeb\ndomain 53/tcp\ndomain 54/udp\n";
        assert_eq!(service(services, "www", None), Some(80));
        assert_eq!(service(services, "domain", Some(Transport::Udp)), Some(54));
        assert_eq!(service(services, "WorldWideWeb", None), None);
    }
}
