//! The `portkeep-fleet` command. Everything is in the library beside it.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    portkeep_fleet::main()
}
