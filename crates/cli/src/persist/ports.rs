//! The ports of a persistent reservation on the command line.

use portkeep::{PortRange, Transports};
use portkeep_persist::Services;

/// `8443`, `5000-5019`, `5000,5001`, or a name of /etc/services; one block in any case.
pub(super) fn read(text: &str, transports: Transports) -> Result<PortRange, String> {
    let services = Services::of_machine();
    let part = |text: &str| {
        services.ports(text, transports).map_err(|error| match error.help() {
            Some(help) => format!("{error}; {help}"),
            None => error.to_string(),
        })
    };
    let mut parts: Vec<PortRange> = text.split(',').map(part).collect::<Result<_, _>>()?;
    parts.sort();
    let (first, last) = (parts[0], parts[parts.len() - 1]);
    let in_a_row = |pair: &[PortRange]| u32::from(pair[0].last()) + 1 == u32::from(pair[1].start());
    if !parts.windows(2).all(in_a_row) {
        return Err("these are several blocks, and a reservation is one; add one for each, each with a name".into());
    }
    PortRange::inclusive(first.start(), last.last()).map_err(|error| error.to_string())
}

pub(super) fn tcp(text: &str) -> Result<PortRange, String> {
    read(text, Transports::Tcp)
}

pub(super) fn udp(text: &str) -> Result<PortRange, String> {
    read(text, Transports::Udp)
}

pub(super) fn both(text: &str) -> Result<PortRange, String> {
    read(text, Transports::Both)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_one_block_or_refused() {
        let tcp = |text: &str| tcp(text).map(|range| range.to_string());
        assert_eq!(tcp("8443"), Ok("8443".into()));
        assert_eq!(tcp("5000-5019"), Ok("5000-5019".into()));
        assert_eq!(tcp("5002,5000-5001"), Ok("5000-5002".into()));
        assert!(tcp("80,443").unwrap_err().contains("several blocks"));
        assert!(tcp("80,80").unwrap_err().contains("several blocks"));
        assert!(tcp("0").unwrap_err().contains("port 0"));
        assert!(tcp("70000").is_err() && tcp("").is_err() && tcp("1,").is_err() && tcp("no-such-service").is_err());
    }
}
