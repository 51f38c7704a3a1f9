//! Ports as people and the kernel write them: ranges, services, and lists of ip_local_reserved_ports.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portkeep_core::{PortRange, PortSet, Transports};
use portkeep_persist::Services;

fuzz_target!(|text: &str| {
    if let Ok(range) = text.parse::<PortRange>() {
        assert_eq!(range.to_string().parse(), Ok(range));
    }
    if let Ok(set) = text.parse::<PortSet>() {
        assert_eq!(set.to_string().parse::<PortSet>().expect("a set as it is written"), set);
    }
    // The text is both the file and the word that is looked up in it.
    let services = Services::parse(text);
    for transports in [Transports::Tcp, Transports::Udp, Transports::Both] {
        let _ = services.ports(text, transports);
        let _ = text.split_whitespace().next().map(|name| services.ports(name, transports));
    }
});
