//! A configuration is read, or refused with at least one mistake.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use portkeep_persist::Config;

fuzz_target!(|text: &str| {
    if let Err(mistakes) = Config::parse(Path::new("portkeep.toml"), text) {
        assert!(!mistakes.is_empty());
        assert!(mistakes.iter().all(|mistake| !mistake.to_string().is_empty()));
    }
});
