//! Answers and events of the BPF programs.

use portkeep::Info;
use portkeep_core::wire;
use portkeep_kernel::RingEvent;
use zerocopy::FromBytes;

/// A record of the ring of events: no event, or one of the kinds that there are.
pub fn events(bytes: &[u8]) {
    if let Some(event) = RingEvent::from_bytes(bytes) {
        assert!(event.ports.start() > 0);
        assert!(!event.comm.contains(char::is_control), "{:?}", event.comm);
        // A longer record of a later version begins in the same way.
        assert_eq!(RingEvent::from_bytes(&[bytes, &[0xff; 8]].concat()), Some(event));
    }
}

/// The answer to a query: its meaning can be written as JSON.
pub fn wire(bytes: &[u8]) {
    // Further audiences follow the state, as many as there are bytes for.
    if let Ok((state, rest)) = wire::State::read_from_prefix(bytes)
        && let also = rest.chunks_exact(size_of::<wire::Also>()).filter_map(|one| wire::Also::read_from_bytes(one).ok())
        && let Some(info) = Info::from_wire(&state, &also.collect::<Vec<_>>())
    {
        // Not read again: the kernel has no user 4294967295, and the text of one is refused.
        assert!(serde_json::to_string(&info).is_ok(), "a reservation can be written");
    }
}
