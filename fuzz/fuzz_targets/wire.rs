//! The answers of the BPF programs to queries, of any bytes: what they mean can be written as JSON and read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portkeep::Info;
use portkeep_core::wire;
use zerocopy::FromBytes;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((state, _)) = wire::State::read_from_prefix(bytes)
        && let Some(info) = Info::from_wire(&state)
    {
        let written = serde_json::to_string(&info).expect("a reservation can be written");
        assert_eq!(serde_json::from_str::<Info>(&written).expect("and read").ports, info.ports);
    }
});
