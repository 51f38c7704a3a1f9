//! A line on the agent's socket, from a client or from the agent: refused, or the same after writing and reading.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portkeep::persistent::protocol::{Answer, Request};

fuzz_target!(|line: &[u8]| {
    if let Ok(request) = serde_json::from_slice::<Request>(line) {
        let written = serde_json::to_vec(&request).expect("a request can be written");
        assert_eq!(serde_json::from_slice::<Request>(&written).expect("and read"), request);
    }
    if let Ok(answer) = serde_json::from_slice::<Answer>(line) {
        let written = serde_json::to_vec(&answer).expect("an answer can be written");
        assert_eq!(serde_json::from_slice::<Answer>(&written).expect("and read"), answer);
    }
});
