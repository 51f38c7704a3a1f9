//! Records of the ring of events, of any bytes: no event, or one of the kinds that there are.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portkeep_kernel::Event;

fuzz_target!(|bytes: &[u8]| {
    if let Some(event) = Event::from_bytes(bytes) {
        assert!(event.ports.start() > 0);
        assert!(!event.comm.contains(char::is_control), "{:?}", event.comm);
        // A longer record of a later version begins in the same way.
        assert_eq!(Event::from_bytes(&[bytes, &[0xff; 8]].concat()), Some(event));
    }
});
