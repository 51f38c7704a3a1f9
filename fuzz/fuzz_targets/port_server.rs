//! A request of the port server's protocol: the number of a process, as it is written.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The library of the command has one public function, and this parser needs nothing else of it.
#[path = "../../crates/cli/src/portserver/request.rs"]
mod request;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(number) = request::process_of(bytes) {
        assert!(number > 0);
        assert_eq!(request::process_of(format!("{number}\n").as_bytes()), Ok(number));
    }
});
