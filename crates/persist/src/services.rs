//! The names of /etc/services.

use std::collections::HashMap;

use portkeep_core::Transport;

use crate::{diagnostic::nearest, files};

/// What /etc/services says: ports by name.
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
