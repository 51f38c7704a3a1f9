//! A configuration of the fleet, or what etcd answers, is read or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portkeep_fleet::fuzz;

fuzz_target!(|text: &str| {
    if let Err(mistake) = fuzz::configuration(text) {
        assert!(!mistake.is_empty());
    }
    fuzz::answer(text);
});
