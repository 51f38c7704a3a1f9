//! A link of `/proc/PID/fd`, of a process of anybody: no held block, or one that prints on one line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portkeep::Info;

fuzz_target!(|link: &str| {
    if let Some(info) = Info::of_held_mark(link) {
        let name = info.name.clone().unwrap_or_default();
        assert!(!name.contains(char::is_control), "{name:?}");
        let written = serde_json::to_string(&info).expect("a reservation can be written");
        let read: Info = serde_json::from_str(&written).expect("and read");
        assert_eq!(serde_json::to_string(&read).expect("and written again"), written);
    }
});
