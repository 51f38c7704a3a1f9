//! `/etc/portreserve/<service>`: the files of the portreserve program.
//!
//! Each file has the name of a service. Each line has one port or service name. `/tcp` or `/udp` may follow it. Without
//! these, a number means both transports, and a name means the transports that /etc/services has for it. Here each port
//! of a file is a reservation `portreserve:<service>:<port>` for the unit `<service>.service`. As with portreserve,
//! files with `.` or `~` in their name are not read.

use std::{collections::BTreeMap, path::Path};

use portkeep_core::{
    ParsePortsError, PortList, PortRange, Ports, Services, Transport, Transports, port_list::split_transports,
};

use crate::{
    Audience, Declaration, Diagnostic,
    diagnostic::Report,
    stanza::{self, wrong_ports},
};

/// The folder.
pub const FOLDER: &str = "/etc/portreserve";

/// The declarations of one such file with their lines, and the complaints about its other lines.
pub(crate) fn read(file: &Path, text: &str, services: &Services) -> (Vec<stanza::Read>, Vec<Diagnostic>) {
    let mut report = Report::new(file, text);
    let mut ports: BTreeMap<u16, (Transports, usize)> = BTreeMap::new();
    let mut begin = 0;
    for (index, line) in text.split('\n').enumerate() {
        let word = line.split('#').next().unwrap_or("").trim();
        let start = begin + (line.len() - line.trim_start().len());
        begin += line.len() + 1;
        if word.is_empty() {
            continue;
        }
        let at = start..start + word.len();
        match entry(word, services) {
            Ok((list, transports)) => {
                for port in list.iter() {
                    let known = ports.entry(port).or_insert((transports, index + 1));
                    if known.0 != transports {
                        known.0 = Transports::Both;
                    }
                }
            }
            Err(error) => wrong_ports(&mut report, at, &error),
        }
    }

    let service = file.file_name().unwrap_or_default().to_string_lossy();
    let audience = match Audience::unit(&format!("{service}.service")) {
        Ok(audience) => audience,
        Err(error) => {
            return (Vec::new(), vec![Diagnostic::whole(file, format!("is not named for a service: {error}"))]);
        }
    };
    let mut found = Vec::new();
    for (port, (transports, line)) in ports {
        match (format!("portreserve:{service}:{port}").parse(), PortRange::single(port)) {
            (Ok(name), Ok(range)) => {
                let mut declaration = Declaration::new(name, range, transports);
                declaration.audience = audience.clone();
                // When Portkeep reads the file for the first time, the service is often running already.
                declaration.around = true;
                found.push((declaration, line));
            }
            (Err(error), _) => return (Vec::new(), vec![Diagnostic::whole(file, format!("gives no name: {error}"))]),
            (_, Err(error)) => report.say(0..0, error.to_string()),
        }
    }
    found.sort_by_key(|(_, line)| *line);
    (found, report.into_diagnostics())
}

/// `631`, `ipp`, `ipp/tcp`. Without a transport, a name means those that /etc/services has for it; a number means both.
fn entry(word: &str, services: &Services) -> Result<(PortList, Transports), ParsePortsError> {
    let (name, transports) = split_transports(word)?;
    let transports =
        transports.unwrap_or_else(|| match Transport::ALL.map(|transport| services.port(name, transport).is_some()) {
            [true, false] => Transports::Tcp,
            [false, true] => Transports::Udp,
            _ => Transports::Both,
        });
    Ports::resolve(name, Some(transports), services)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services() -> Services {
        Services::parse("ipp 631/tcp\nipp 631/udp\nbiff 512/udp comsat\nsmtp 25/tcp mail\n")
    }

    fn read_as(name: &str, text: &str) -> (Vec<String>, Vec<String>) {
        let (found, wrong) = read(Path::new(name), text, &services());
        let found =
            found.iter().map(|(d, line)| format!("{line} {} {} {} {}", d.name, d.ports, d.transports, d.audience));
        (found.collect(), wrong.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_line_is_a_port_of_the_service() {
        let (found, wrong) =
            read_as("/etc/portreserve/cups", "# printing\nipp\n 9100/tcp # raw\nbiff\n25/udp\nsmtp/tcp\n");
        assert_eq!(wrong, [""; 0]);
        assert_eq!(
            found,
            [
                "2 portreserve:cups:631 631 tcp+udp unit cups.service",
                "3 portreserve:cups:9100 9100 tcp unit cups.service",
                "4 portreserve:cups:512 512 udp unit cups.service",
                "5 portreserve:cups:25 25 tcp+udp unit cups.service",
            ]
        );
    }

    #[test]
    fn each_mistake_has_its_line() {
        let (found, wrong) = read_as("/r/cups", "0\nipp/sctp\n  imap\nsmpt/tcp\n70000\nsmtp/udp\n");
        assert_eq!(found, [""; 0]);
        let begin: Vec<&str> = wrong.iter().map(|w| w.split(": ").next().unwrap()).collect();
        assert_eq!(begin, ["/r/cups:1:1", "/r/cups:2:1", "/r/cups:3:3", "/r/cups:4:1", "/r/cups:5:1", "/r/cups:6:1"]);
        assert!(wrong[3].contains("did you mean \"smtp\""), "{}", wrong[3]);
        let (found, wrong) = read_as("/r/a b", "25/tcp");
        assert!(found.is_empty() && wrong[0].contains("not named for a service"), "{wrong:?}");
    }
}
