//! libFuzzer on one target, which the environment variable `PORTKEEP_PARSER` names. `cargo xtask fuzz` builds and starts it.
#![no_main]

use std::{env, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use portkeep_parsers::{TARGETS, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = env::var("PORTKEEP_PARSER").expect("PORTKEEP_PARSER names a target");
    TARGETS.iter().find(|(known, _)| *known == name).expect("PORTKEEP_PARSER names a target that exists").1
});

fuzz_target!(|bytes: &[u8]| TARGET(bytes));
