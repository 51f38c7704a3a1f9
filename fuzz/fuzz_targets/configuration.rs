#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| portkeep_parsers::configuration(bytes));
