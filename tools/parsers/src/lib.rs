//! Every parser that reads what others wrote. Each target here calls one of them with any bytes, and panics if something
//! does not hold. `cargo xtask fuzz` searches for such bytes with the coverage as its guide (see README.md); the test of this
//! package tries the seeds and changed seeds.
#![forbid(unsafe_code)]

mod files;
mod kernel;
mod programs;
mod texts;

/// A target of the fuzzer.
pub type Target = fn(&[u8]);

macro_rules! targets {
    ($($module:ident: $($name:ident)*;)*) => {
        $(pub use $module::{$($name),*};)*

        /// All targets. A target's seeds are in `seeds`, in a folder of its name.
        pub const TARGETS: &[(&str, Target)] = &[$($((stringify!($name), $name)),*),*];
    };
}

targets! {
    files: configuration drop_in fleet portreserve subordinate;
    kernel: events wire;
    programs: agent_socket held_mark port_server;
    texts: nat_rules ports;
}

/// The input as text, up to the first byte that is not.
fn text(bytes: &[u8]) -> &str {
    let valid = std::str::from_utf8(bytes).map_or_else(|error| error.valid_up_to(), str::len);
    std::str::from_utf8(&bytes[..valid]).unwrap_or_default()
}
