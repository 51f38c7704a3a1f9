//! `acquire`: hold a block for as long as somebody keeps the line open.

use std::{
    io::{self, Read, Write},
    sync::mpsc,
    thread,
};

use anyhow::Context;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use portkeep::{Scope, Transports};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{
    DONE, Io,
    ask::Ask,
    claim::{Claim, Kind},
    level::{Level, Place, only_held},
    sources::ConfigFile,
};

const AFTER_HELP: &str = "\
Prints the ports on one line, `61000-61003 tcp 6f1d...` (ports, transport, token; a list has a token for each block, \
with commas), and ends the reservation when its \
standard input ends or on SIGINT, SIGTERM or SIGHUP. It fails if another process \
ends the reservation. Without kernel enforcement the last word is `held`. With --require-kernel, --strict or --scope \
cgroup it fails instead.

Examples:
  portkeep acquire --count 4                      until Ctrl-D
  coproc P { portkeep acquire --both; }           in a script: until it ends
  read -r ports transport token <&\"${P[0]}\"
  portkeep acquire -p 80,443 --scope cgroup       for everything in the cgroup of the caller";

/// Reserve ports and keep them until standard input ends
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    ask: Ask,
    /// Processes that can use the ports
    #[arg(long, default_value = "user", value_parser = scope())]
    scope: Scope,
    /// Only sockets associated with the token can use the ports
    #[arg(long)]
    strict: bool,
    /// One JSON object on one line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    place: Place,
}

/// The process alone would be this one, which binds nothing.
fn scope() -> impl TypedValueParser<Value = Scope> {
    let values = [
        PossibleValue::new("user").help("Every process of the same user"),
        PossibleValue::new("cgroup").help("Every process in the cgroup of the caller and below it"),
    ];
    PossibleValuesParser::new(values).map(|name| if name == "cgroup" { Scope::Cgroup(0) } else { Scope::User })
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("catching signals")?;
    // A request that cannot be granted anyway is no reason to bring the BPF programs up.
    args.ask.ports()?;
    let wishes = [
        (args.ask.requires_kernel()?, "--require-kernel"),
        (args.scope == Scope::Cgroup(0), "--scope cgroup"),
        (args.strict, "--strict"),
    ];
    let level = Level::best(&args.place, &args.config)?.that_grants(&wishes)?;
    let claim = match &level {
        Level::Kernel(_) => {
            let kind = if args.strict { Kind::Strict } else { Kind::Plain };
            Claim::kernel(&args.ask, &args.config, "", args.scope, kind, None, || signals.pending().next())?
        }
        Level::Held(reason) => {
            let claim = Claim::held(&args.ask, &args.config)?;
            let udp = match claim.transports {
                Transports::Tcp => "",
                _ => ", but no program can bind the UDP ports",
            };
            io.warning(format_args!(
                "{}, not enforced by the kernel: programs that set SO_REUSEADDR can still bind TCP ports{udp} ({reason})",
                only_held(&claim.ports)
            ));
            claim
        }
    };
    if args.json {
        io.json(&claim.info()?)?;
    } else {
        let tokens: Vec<String> = claim.tokens.iter().map(ToString::to_string).collect();
        let tokens = if tokens.is_empty() { "held".into() } else { tokens.join(",") };
        writeln!(io.out, "{} {} {tokens}", claim.ports, claim.transports)?;
    }
    io.out.flush()?;
    let end = wait_for_the_end(signals, &claim);
    // First the ports, then the BPF programs that may have been up only for them.
    drop(claim);
    drop(level);
    match end {
        End::Wanted => Ok(DONE),
        End::Lost(reason) => anyhow::bail!("{reason}"),
    }
}

/// The reason why the reservation ended.
enum End {
    /// Standard input has ended, or a signal came.
    Wanted,
    /// Somebody else, with the reason.
    Lost(String),
}

fn wait_for_the_end(mut signals: Signals, claim: &Claim) -> End {
    let (send, ended) = mpsc::channel();
    let (by_input, by_signal) = (send.clone(), send.clone());
    let _watch = claim.watch(move |reason| drop(send.send(End::Lost(reason))));
    // Neither thread is waited for: one of them is stuck in a read until the process ends.
    thread::spawn(move || {
        let mut rest = [0; 4096];
        let mut input = io::stdin().lock();
        while !matches!(input.read(&mut rest), Ok(0) | Err(_)) {}
        let _ = by_input.send(End::Wanted);
    });
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            let _ = by_signal.send(End::Wanted);
        }
    });
    // The thread that reads holds its end of the channel until it has said something.
    ended.recv().unwrap_or(End::Wanted)
}
