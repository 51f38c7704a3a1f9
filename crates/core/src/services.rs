//! Ports by the names of /etc/services.

use std::collections::HashMap;

use crate::{ParsePortsError, PortRange, Transport, Transports, shown, words::nearest};

/// The content of /etc/services: ports by name.
#[derive(Clone, Debug, Default)]
pub struct Services {
    ports: HashMap<(String, Transport), u16>,
}

impl Services {
    /// From the text of such a file. The first line that gives a name wins, as with `getservbyname`; lines that make
    /// no sense and other protocols are skipped.
    pub fn parse(text: &str) -> Self {
        let mut ports = HashMap::new();
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or("").split_whitespace();
            let (Some(name), Some(port)) = (words.next(), words.next()) else { continue };
            let Some((port, transport)) = port.split_once('/') else { continue };
            let (Ok(port), Ok(transport)) = (port.parse(), transport.parse::<Transport>()) else { continue };
            if port == 0 {
                continue;
            }
            for name in std::iter::once(name).chain(words) {
                ports.entry((name.to_owned(), transport)).or_insert(port);
            }
        }
        Self { ports }
    }

    /// The port of a name or alias, host byte order.
    pub fn port(&self, name: &str, transport: Transport) -> Option<u16> {
        self.ports.get(&(name.to_owned(), transport)).copied()
    }

    /// Whether there are no services, usually because /etc/services does not exist.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// The port of a name in all of these transports; with `None` in those that know the name.
    pub(crate) fn block(&self, name: &str, transports: Option<Transports>) -> Result<PortRange, ParsePortsError> {
        let quoted = format!("\"{}\"", shown(name));
        let known: Vec<(Transport, u16)> =
            Transport::ALL.into_iter().filter_map(|t| self.port(name, t).map(|port| (t, port))).collect();
        let wanted: Vec<(Transport, u16)> = match transports {
            Some(transports) => known.iter().filter(|(t, _)| transports.contains(*t)).copied().collect(),
            None => known.clone(),
        };
        let complete = transports.is_none_or(|transports| wanted.len() == transports.iter().count());
        match (wanted.as_slice(), known.first()) {
            ([(_, tcp), (_, udp)], _) if tcp != udp => Err(ParsePortsError::new(
                format!("{quoted} is {tcp}/tcp and {udp}/udp in /etc/services"),
                "name them apart, each with its transport".to_owned(),
            )),
            ([(_, port), ..], _) if complete => {
                PortRange::single(*port).map_err(|error| ParsePortsError::new(error.to_string(), None))
            }
            (wanted, Some((transport, port))) => {
                let other = if *transport == Transport::Tcp { "UDP" } else { "TCP" };
                let too = if wanted.is_empty() { "" } else { ", too" };
                Err(ParsePortsError::new(
                    format!("{quoted} is only {port}/{transport} in /etc/services"),
                    format!("write {port} to reserve the same number for {other}{too}"),
                ))
            }
            (_, None) if self.is_empty() => Err(ParsePortsError::new(
                format!("{quoted} cannot be looked up: there is no /etc/services"),
                "write the number".to_owned(),
            )),
            (_, None) => Err(ParsePortsError::new(
                format!("{quoted} is neither a port, nor a range, nor a service of /etc/services"),
                self.nearest(name).map(|near| format!("did you mean \"{near}\"?")),
            )),
        }
    }

    /// The name that `name` most likely was meant to be.
    fn nearest(&self, name: &str) -> Option<&str> {
        // Sorted, so that of two equally similar names always the same one is given.
        let mut names: Vec<&str> = self.ports.keys().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        nearest(name, names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_aliases_per_transport() {
        let text = "# Network services\n\nhttp\t80/tcp\t\twww # WorldWideWeb\ndomain 53/tcp\ndomain 54/udp\n\
                    http 81/tcp\nsctp-only 9/sctp\nbroken\nworse x/tcp\nzero 0/tcp\n";
        let services = Services::parse(text);
        assert_eq!(services.port("www", Transport::Tcp), Some(80));
        assert_eq!(services.port("http", Transport::Tcp), Some(80));
        assert_eq!(services.port("http", Transport::Udp), None);
        assert_eq!(services.port("domain", Transport::Udp), Some(54));
        for none in ["WorldWideWeb", "sctp-only", "broken", "worse", "zero", ""] {
            assert_eq!(services.port(none, Transport::Tcp), None, "{none}");
        }
        assert_eq!(services.nearest("domian"), Some("domain"));
    }

    #[test]
    fn a_name_of_the_other_transport_is_answered_with_its_number() {
        let services = Services::parse("http 80/tcp\nntp 123/udp\n");
        for (name, wanted, remedy) in [
            ("http", Transports::Both, "write 80 to reserve the same number for UDP, too"),
            ("http", Transports::Udp, "write 80 to reserve the same number for UDP"),
            ("ntp", Transports::Both, "write 123 to reserve the same number for TCP, too"),
            ("ntp", Transports::Tcp, "write 123 to reserve the same number for TCP"),
        ] {
            let text = services.block(name, Some(wanted)).unwrap_err().on_one_line();
            assert!(text.ends_with(remedy), "{text}");
        }
    }
}
