//! Ports by number and by the names of /etc/services.

use std::collections::HashMap;

use portkeep_core::{PortRange, Transport, Transports};

use crate::{diagnostic::nearest, document::shown, files};

/// The alternative to asking for port 0.
pub(crate) const ANY: &str = "`portkeep persist add --any N` chooses once and keeps the numbers";

/// Why a text does not say which ports. The sentence in [`std::fmt::Display`] is whole; [`PortsError::help`] says what to
/// write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PortsError {
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl PortsError {
    pub(crate) fn new(message: impl Into<String>, help: impl Into<Option<String>>) -> Self {
        Self { message: message.into(), help: help.into() }
    }

    /// The correction, where that is known.
    pub fn help(&self) -> Option<&str> {
        self.help.as_deref()
    }
}

/// The content of /etc/services: ports by name.
#[derive(Clone, Debug, Default)]
pub struct Services {
    ports: HashMap<(String, Transport), u16>,
}

impl Services {
    /// Those of the machine. No such file, or one that cannot be read, is no services.
    pub fn of_machine() -> Self {
        Self::of_root(files::Root("/".as_ref()))
    }

    pub(crate) fn of_root(root: files::Root<'_>) -> Self {
        match root.read(&root.path("/etc/services")) {
            Ok(files::Content::Text(text)) => Self::parse(&text),
            _ => Self::default(),
        }
    }

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

    /// The block that a text means for these transports: a port, a range, or the name of a service.
    ///
    /// # Errors
    ///
    /// If it is none of these, or the service is not the same port in all of the transports.
    pub fn ports(&self, text: &str, transports: Transports) -> Result<PortRange, PortsError> {
        let text = text.trim();
        let numeric = |c: char| c.is_ascii_digit() || c.is_whitespace() || "-:".contains(c);
        if text.is_empty() || text.chars().all(numeric) {
            return text.parse::<PortRange>().map_err(|error| {
                let zero = text == "0" || text.starts_with("0-");
                PortsError::new(error.to_string(), zero.then(|| ANY.to_owned()))
            });
        }
        if let Some((name, transport @ ("tcp" | "udp"))) = text.split_once('/') {
            let help = format!("the key says the transport: `{transport} = \"{}\"`", shown(name));
            return Err(PortsError::new(format!("\"{}\" has a transport in it", shown(text)), help));
        }
        self.service(text, transports)
    }

    /// The port that a service's name stands for.
    pub(crate) fn service(&self, name: &str, transports: Transports) -> Result<PortRange, PortsError> {
        let quoted = format!("\"{}\"", shown(name));
        let known: Vec<(Transport, u16)> =
            Transport::ALL.into_iter().filter_map(|t| self.port(name, t).map(|port| (t, port))).collect();
        let wanted: Vec<u16> = known.iter().filter(|(t, _)| transports.contains(*t)).map(|(_, port)| *port).collect();
        if wanted.len() == transports.iter().count() {
            if wanted.iter().any(|port| *port != wanted[0]) {
                return Err(PortsError::new(
                    format!("{quoted} is {}/tcp and {}/udp in /etc/services", wanted[0], wanted[1]),
                    "write two stanzas, each with a name of its own".to_owned(),
                ));
            }
            return PortRange::single(wanted[0]).map_err(|error| PortsError::new(error.to_string(), None));
        }
        if let Some((transport, port)) = known.first() {
            let help = match transports {
                Transports::Both => format!("write `both = {port}` if both are wanted, or `{transport} = {quoted}`"),
                _ => format!("write `{transport} = {quoted}`, or the number"),
            };
            return Err(PortsError::new(format!("{quoted} is only {port}/{transport} in /etc/services"), help));
        }
        if self.is_empty() {
            return Err(PortsError::new(
                format!("{quoted} cannot be looked up: there is no /etc/services"),
                "write the number".to_owned(),
            ));
        }
        let help = self.nearest(name).map(|near| format!("did you mean \"{near}\"?"));
        Err(PortsError::new(format!("{quoted} is neither a port, nor a range, nor a service of /etc/services"), help))
    }

    /// Whether there are none: mostly because /etc/services is not there.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// The name that `name` most likely was meant to be.
    pub(crate) fn nearest(&self, name: &str) -> Option<&str> {
        // Sorted, so that of two that are as near the same is named each time.
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
}
