//! `portkeep-web`: a map of the ports of this machine in the browser, and metrics for Prometheus.
//!
//! It reads only, and requires no right: reservations from the BPF programs by queries that every process may make,
//! declared reservations from the agent's socket, sockets from sock_diag. Events and counters come from the agent, if
//! it lets this user follow them.
//!
//! `guard` decides which requests are answered at all; `data` gathers; `feed` follows events; `metrics` are in
//! OpenMetrics. The page is in `assets/` and embedded.
#![forbid(unsafe_code)]

mod assets;
mod data;
mod feed;
mod guard;
mod listen;
mod metrics;
mod server;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, error::ErrorKind};

use listen::Listen;

const EXAMPLES: &str = "\
Examples:
  portkeep-web
  portkeep-web --listen unix:/run/portkeep-web/web.sock";

const AFTER_HELP: &str = "\
It only reads, and answers GET requests whose Host is its own address or a name given with --host. There is no password: every \
process that can reach the address can read everything. Use a Unix socket or a reverse proxy to admit certain users only.

Examples:
  portkeep-web
  portkeep-web --listen unix:/run/portkeep-web/web.sock

Exit status:
  0  A signal ended it.
  1  It could not listen.
  2  Wrong usage.";

/// Show the ports of this machine in the browser
#[derive(Debug, Parser)]
#[command(name = "portkeep-web", version, max_term_width = 100, after_help = EXAMPLES, after_long_help = AFTER_HELP)]
struct Args {
    /// Where to listen: ADDRESS:PORT or unix:PATH
    #[arg(long, value_name = "WHERE", default_value = "127.0.0.1:7676", env = "PORTKEEP_WEB_LISTEN")]
    listen: Listen,
    /// Another Host to answer to, as browsers send it: NAME or NAME:PORT (repeat it for more)
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<String>,
}

/// The table of options, for the manual page.
pub fn command() -> clap::Command {
    Args::command()
}

/// Run the command, with the arguments of this process.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let usage = !matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // Nothing can be done about an output that is closed.
            let _ = error.print();
            return ExitCode::from(if usage { 2 } else { 0 });
        }
    };
    match server::run(&args.listen, &args.hosts) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
