//! The `portkeep` command. Everything is in the library beside it.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    portkeep_cli::run(std::env::args_os(), &mut portkeep_cli::Io::standard()).into()
}
