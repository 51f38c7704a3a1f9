//! The rules that `nft` and `iptables-save` print, of any text: each has ports, and words for people.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portkeep_observe::nat::{of_iptables, of_nft};

fuzz_target!(|text: &str| {
    for redirect in of_nft(text).into_iter().flatten().chain(of_iptables("iptables", text)) {
        let last = redirect.ports.last();
        assert!(redirect.transport.is_none_or(|transport| redirect.has(transport, last)));
        assert!(!redirect.rule.is_empty());
    }
});
