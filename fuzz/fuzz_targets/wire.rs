//! The answers of the BPF programs to queries, of any bytes: what they mean can be written as JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portkeep::Info;
use portkeep_core::wire;
use zerocopy::FromBytes;

fuzz_target!(|bytes: &[u8]| {
    // Further audiences follow the state, as many as there are bytes for.
    if let Ok((state, rest)) = wire::State::read_from_prefix(bytes)
        && let also = rest.chunks_exact(size_of::<wire::Also>()).filter_map(|one| wire::Also::read_from_bytes(one).ok())
        && let Some(info) = Info::from_wire(&state, &also.collect::<Vec<_>>())
    {
        // Not read again: the kernel has no user 4294967295, and the text of one is refused.
        assert!(serde_json::to_string(&info).is_ok(), "a reservation can be written");
    }
});
