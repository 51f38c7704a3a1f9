//! A drop-in file is refused with a place, or it survives export and import.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use portkeep_persist::{Services, export, import};

fuzz_target!(|text: &str| {
    let services = Services::parse("https 443/tcp\ndomain 53/tcp\ndomain 53/udp\n");
    match import(Path::new("f.toml"), text, &services) {
        Ok(read) => {
            let again = import(Path::new("f.toml"), &export(&read), &services).expect("an export can be imported");
            assert_eq!(again, read);
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            assert!(mistakes.iter().all(|mistake| !mistake.to_string().is_empty()));
        }
    }
});
