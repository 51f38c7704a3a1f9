//! Requests and descriptors of other programs.

use portkeep::{
    Info,
    persistent::protocol::{Answer, Request},
};

use crate::text;

// The library of the command has one public function, and this parser needs nothing else of it.
#[path = "../../../crates/cli/src/commands/portserver/request.rs"]
mod request;

/// A line on the agent's socket, from a client or from the agent: refused, or the same after writing and reading.
pub fn agent_socket(line: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(line) {
        let written = serde_json::to_vec(&request).expect("a request can be written");
        assert_eq!(serde_json::from_slice::<Request>(&written).expect("and read"), request);
    }
    if let Ok(answer) = serde_json::from_slice::<Answer>(line) {
        let written = serde_json::to_vec(&answer).expect("an answer can be written");
        assert_eq!(serde_json::from_slice::<Answer>(&written).expect("and read"), answer);
    }
}

/// A link of `/proc/PID/fd`, of a process of anybody: no held block, or one that prints on one line.
pub fn held_mark(bytes: &[u8]) {
    if let Some(info) = Info::of_held_mark(text(bytes)) {
        let name = info.name.clone().unwrap_or_default();
        assert!(!name.contains(char::is_control), "{name:?}");
        let written = serde_json::to_string(&info).expect("a reservation can be written");
        let read: Info = serde_json::from_str(&written).expect("and read");
        assert_eq!(serde_json::to_string(&read).expect("and written again"), written);
    }
}

/// A request of the port server's protocol: the number of a process, as it is written.
pub fn port_server(bytes: &[u8]) {
    if let Ok(number) = request::process_of(bytes) {
        assert!(number > 0);
        assert_eq!(request::process_of(format!("{number}\n").as_bytes()), Ok(number));
    }
}
