//! `acquire`: ports for a shell, a script or a program without the library.

mod hold;

use std::{ffi::OsString, io::Write};

use anyhow::Context;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use portkeep::{Scope, Transports};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use self::hold::{End, Hold};
use crate::{
    DONE, Io,
    args::{ask::Ask, sources::ConfigFile},
    claim::{Claim, Kind},
    level::{Level, Place, only_held},
};

const AFTER_HELP: &str = "\
Prints the ports on one line, `61000-61003 tcp 6f1d...` (ports, transport, token; a list has a token for each block, \
with commas), and ends the reservation when its \
standard input ends or on SIGINT, SIGTERM or SIGHUP. It fails if another process \
ends the reservation. In scripts and services standard input is often at its end from the beginning. Then nothing would \
keep the ports, so the command fails. Use one of these options there:

--hold keeps the ports until a signal. --while-pid and --for return as soon as the ports are reserved. A process in the \
background keeps them, and a signal to that process ends the reservation (`portkeep list` shows its number). With \
both options, whatever comes first ends it. If another process ends the reservation before, only `portkeep list` and \
`portkeep watch` show it: the caller has gone on. --for 0s only checks whether the ports can be reserved.

--wait waits until other processes release the ports. A signal ends the wait, with status 128+N.

Without kernel enforcement the last word is `held`. With --require-kernel, --strict, --also or --scope \
cgroup it fails instead.

Examples:
  portkeep acquire --count 4                           until Ctrl-D
  line=$(portkeep acquire --while-pid $$)              while this script runs
  ports=${line%% *}
  portkeep acquire --ports 61004 --wait=30s --for 10m
  portkeep acquire -p 80,443 --hold --scope cgroup     for everything in the cgroup of the caller";

/// Reserve ports and keep them until standard input ends
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    ask: Ask,
    /// Processes that can use the ports
    #[arg(long, default_value = "user", value_parser = scope())]
    scope: Scope,
    /// Only sockets associated with the token can use the ports
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    hold: Hold,
    /// One JSON object on one line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    place: Place,
}

/// The scope `process` is not offered: it would be this process, which binds nothing.
fn scope() -> impl TypedValueParser<Value = Scope> {
    let values = [
        PossibleValue::new("user").help("Every process of the same user"),
        PossibleValue::new("cgroup").help("Every process in the cgroup of the caller and below it"),
    ];
    PossibleValuesParser::new(values).map(|name| if name == "cgroup" { Scope::Cgroup(0) } else { Scope::User })
}

/// `words` are the arguments of this process.
pub(crate) fn run(args: Args, words: &[OsString], io: &mut Io<'_>) -> anyhow::Result<u8> {
    args.hold.begin()?;
    // Checked first: for a request that cannot be granted, the BPF programs must not be brought up.
    args.ask.wanted.ports()?;
    let lets_in = !args.ask.also()?.is_empty();
    let until = args.hold.until()?;
    if args.hold.leaves() {
        return hold::leave_to_another(words, io);
    }
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("catching signals")?;
    let wishes = [
        (args.ask.requires_kernel()?, "--require-kernel"),
        (args.scope == Scope::Cgroup(0), "--scope cgroup"),
        (args.strict, "--strict"),
        (lets_in, "--also"),
    ];
    let level = Level::best(&args.place, &args.config)?.that_grants(&wishes)?;
    let claim = match &level {
        Level::Kernel(_) => {
            if let Some(missing) = args.ask.missing_also() {
                io.warning(missing);
            }
            let kind = if args.strict { Kind::Strict } else { Kind::Plain };
            Claim::kernel(&args.ask, &args.config, "", args.scope, kind, None, || signals.pending().next())?
        }
        Level::Held(reason) => {
            let claim = Claim::held(&args.ask, &args.config, || signals.pending().next())?;
            let udp = match claim.transports {
                Transports::Tcp => "",
                Transports::Udp | Transports::Both => ", but no program can bind the UDP ports",
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
    args.hold.settle(&until, io)?;
    let end = hold::wait(until, signals, &claim);
    // Release the ports first, then the BPF programs that may be up only for them.
    drop(claim);
    drop(level);
    match end {
        End::Wanted => Ok(DONE),
        End::Lost(reason) => anyhow::bail!("{reason}"),
    }
}
