//! Ports and rules as people, the kernel and other tools write them.

use portkeep_core::{PortList, PortRange, PortSet, Ports, Services, Transports};
use portkeep_observe::nat::{of_iptables, of_nft};

use crate::text;

/// The rules that `nft` and `iptables-save` print: each has ports, and words for people.
pub fn nat_rules(bytes: &[u8]) {
    let text = text(bytes);
    for redirect in of_nft(text).into_iter().flatten().chain(of_iptables("iptables", text)) {
        let last = redirect.ports.last();
        assert!(redirect.transport.is_none_or(|transport| redirect.has(transport, last)));
        assert!(!redirect.rule.is_empty());
    }
}

/// Ranges, services, and lists of `ip_local_reserved_ports`.
pub fn ports(bytes: &[u8]) {
    let text = text(bytes);
    if let Ok(range) = text.parse::<PortRange>() {
        assert_eq!(range.to_string().parse(), Ok(range));
    }
    if let Ok(set) = text.parse::<PortSet>() {
        assert_eq!(set.to_string().parse::<PortSet>().expect("a set as it is written"), set);
    }
    // The text is both the file and the word that is looked up in it.
    let services = Services::parse(text);
    let name = text.split_whitespace().next().unwrap_or_default();
    for text in [text, name] {
        if let Ok(ports) = Ports::parse(text, &services) {
            assert_eq!(Ports::parse(&ports.to_string(), &Services::default()), Ok(ports));
        }
        for transports in [None, Some(Transports::Tcp), Some(Transports::Udp), Some(Transports::Both)] {
            let _ = Ports::resolve(text, transports, &services);
        }
    }
    if let Ok(list) = text.parse::<PortList>() {
        let set = PortSet::from(&list);
        assert_eq!(set.to_string(), list.to_string());
        assert!(list.iter().all(|port| set.contains(port)));
    }
}
