//! `run`: a command with ports of its own.

mod beside;
pub(crate) mod custodian;
pub(crate) mod into_command;
mod lent;
mod once;
mod subgroup;
pub(crate) mod substitute;
mod user;

use std::{
    ffi::{CString, OsString},
    os::unix::process::ExitStatusExt,
    path::Path,
};

use anyhow::Context;
use portkeep::{
    Info, Scope, Transport, Transports,
    persistent::{Account, Name},
};

use self::{
    beside::{Inside, Sides},
    substitute::{environment, fill_in},
    user::User,
};
use crate::{
    Exit, Io,
    args::{
        ask::{Ask, LABEL},
        pins::served_here,
        sources::{ConfigFile, Places, Sources},
    },
    claim::{Claim, Grant, Kind, Watch},
    level::{Level, Place, Served, only_held},
    signals::Forwarder,
};

const AFTER_HELP: &str = "\
Examples:
  portkeep run -- ./server --listen 127.0.0.1:{PORT}
  portkeep run --count 2 --align 2 --udp -- ./rtp {PORT0} {PORT1}
  portkeep run --ports 8080,8443 -- ./server {PORT0} {PORT1}
  portkeep run --both --label dns -- sh -c 'exec ./resolver --port $DNS_PORT'
  portkeep run --count 4 -- torchrun --master-port {PORT} train.py
  portkeep run --ephemeral 500 -- pytest -n 8
  portkeep run --user www-data -- ./server {PORT}
  portkeep run --reservation web --user www-data -- ./server {PORT}
  portkeep run --also unit=docker.service -- docker run -p {PORT}:80 nginx

The command finds its ports in PORT (the first), PORT0, PORT1, ... (each), PORTS (all, comma-separated) \
and with --label <LABEL>_PORT (MY_APP_PORT for `my-app`); PORTKEEP_TOKEN has the token (of a list that of the first block, and \
PORTKEEP_TOKENS all, with commas) and PORTKEEP_ENFORCEMENT is `kernel` or `held`. \
In its arguments {PORT}, {PORT0}, {PORT1}, ... and {PORTS} are replaced. {{PORT}} becomes a literal {PORT}, and with \
--no-substitute nothing is replaced.

With --ephemeral the command gets a private ephemeral range. Each bind to port 0 draws from it, in rotation, for TCP and UDP (or the one that --tcp or --udp names). Outsiders cannot have these ports, so a program that chooses a free port and binds it later does not lose it. PORTKEEP_EPHEMERAL has the range. PORT and the other variables are then set only with --count, --ports or --align. If the command starts another `run --ephemeral`, that one has a range of its own.

Only the command and the processes that it starts can bind these ports. The reservation ends when the last of these \
processes has ended: a server in the background keeps its ports after `run` has returned, and when `run` is killed. \
A cgroup (portkeep-run-<pid>) marks the processes. If no cgroup can be created, every process of the same user can bind \
the ports, and the reservation ends with `run`. If kernel enforcement is not up, root brings it up while such a \
command runs. Other users get `held` mode, which prevents accidental but not deliberate use of the ports; there the command can bind \
its TCP ports only if it sets SO_REUSEADDR, as most servers do. Each of these is reported on standard error. With --require-kernel, --also or --scope cgroup `run` fails instead of holding the ports.

--also is for commands that have another process bind the port: with `docker run -p` that is the Docker engine. The others may \
bind the ports by number. Binds to port 0 draw from the range of --ephemeral for the command only.

A command that hands its work to a server that runs already (tmux new-window) leaves the reservation: that server's \
processes have neither the variables nor the right to bind the ports.

With --main the reservation ends with the command itself. Processes that it leaves running are named, and lose their ports.

--user runs the command as another user, with its groups and without any right of root. HOME, USER, LOGNAME and SHELL are those of \
that user. With --reservation the command runs on the ports of a persistent reservation, which stays as it is: the \
command is not admitted, so it must run as the user, or in the group, unit or cgroup, that the reservation is for.

Warnings about limits of the enforcement are printed once for each job (process group), even if it starts many `run`. With --quiet \
they are not printed.

SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1 and SIGUSR2 are passed on to the command, not to the processes that it starts. With --wait the command starts when the \
ports are reserved. One of the first four signals or the end of the time ends that wait.

Exit status:
  that of the command; 128+N if signal N ended it
  125  portkeep failed    126  the command cannot be executed    127  there is no such command";

/// Run a command on reserved ports
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    ask: Ask,
    /// A private range of N ports for binds to port 0
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    ephemeral: Option<u16>,
    /// Processes that count as the command
    #[arg(long, value_enum, default_value_t = RunScope::Auto)]
    scope: RunScope,
    /// Run the command as this user (requires root)
    #[arg(long, value_name = "NAME")]
    user: Option<Account>,
    /// Run it on the ports of this persistent reservation
    #[arg(long, value_name = "NAME", conflicts_with_all = ["wanted", "ports", "align", "label", "wait", "also"])]
    reservation: Option<Name>,
    /// End the reservation with the command, not with its last process
    #[arg(long)]
    main: bool,
    /// Do not replace {PORT} in the arguments
    #[arg(long)]
    no_substitute: bool,
    /// Do not warn about limits of the enforcement
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    place: Place,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum RunScope {
    /// As cgroup, or as user where no cgroup can be made
    Auto,
    /// The command and all that it starts, in a cgroup of its own
    Cgroup,
    /// Every process of the same user
    User,
}

// The fields are dropped in this order: the ports first, the BPF programs last.
struct Prepared {
    claim: Option<Claim>,
    range: Option<Claim>,
    level: Level,
    /// A persistent reservation, in place of a claim.
    lent: Option<Info>,
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    // This comes first: a signal must not end the process after it has made something that would remain.
    let mut forwarder = Forwarder::new().context("catching signals")?;
    let activated = into_command::is_activated();
    let user = args.user.as_ref().map(User::of).transpose()?;
    user.as_ref().map(User::check).transpose()?;
    let lent = match &args.reservation {
        Some(name) => {
            let places = Places { pins: args.place.pins.clone(), sources: Sources::of(&args.config) };
            Some(lent::find(name, &places, io)?)
        }
        None => None,
    };
    if let Some(why) = lent.as_ref().and_then(|lent| lent::outside(lent, user.as_ref())) {
        io.warning(why);
    }
    let mut level = level(&args, lent.is_some())?;
    let mut inside = None;
    if let Some(transport) = args.owns(&level, lent.is_some())? {
        match beside::part(transport) {
            Ok(Sides::Outside(outside)) => {
                let ended = outside.attend(forwarder, level, args.main, args.quiet, io)?;
                return Ok(exit_code(ended.code(), ended.signal()));
            }
            Ok(Sides::Inside(here)) => {
                // From here on this is the process of the command. Signals to it end its waits.
                forwarder = forwarder.in_child().context("catching signals")?;
                level = level.leave();
                inside = Some(here);
            }
            Err(reason) if args.scope == RunScope::Cgroup => return Err(reason),
            Err(reason) if args.ephemeral.is_some() => {
                return Err(reason.context(
                    "--ephemeral requires a cgroup of its own for the command, and none can be made; with --scope user \
                     all processes of this user draw from the range",
                ));
            }
            Err(reason) => {
                let whose = user.as_ref().map_or("this user", User::name);
                args.warn(
                    io,
                    format_args!(
                        "no cgroup of its own for the command: every process of {whose} can bind its ports ({reason:#})"
                    ),
                );
            }
        }
    }
    let prepared = set_up(&args, level, lent, inside.as_ref(), user.as_ref(), &mut forwarder, io)?;
    let mut command = prepared.command(&args, activated, user.as_ref())?;
    let program = args.command.first().context("no command")?;
    if let Some(claim) = &prepared.claim {
        claim.make_way()?;
    }
    let grants: Vec<Grant> = prepared.claims().map(Claim::grant).collect();
    if let Some(inside) = inside {
        return Ok(into_command::not_started(program, &inside.become_it(&mut command, &grants, forwarder)?, io));
    }
    let watches: Vec<Watch> = grants.iter().map(|grant| grant.watch(|reason| Io::standard().error(reason))).collect();
    let ended = forwarder.run(&mut command);
    drop(watches);
    Ok(match ended {
        Ok(status) => exit_code(status.code(), status.signal()),
        Err(error) => into_command::not_started(program, &error, io),
    })
}

impl Args {
    /// Whether fixed ports are requested. Beside a private ephemeral range, an option must name or count them.
    fn wants_fixed(&self, lent: bool) -> bool {
        !lent && (self.ephemeral.is_none() || self.ask.names_ports())
    }

    /// The transport of the owner socket, if the ports are for a cgroup of the command's own.
    fn owns(&self, level: &Level, lent: bool) -> anyhow::Result<Option<Transport>> {
        let range = self.ephemeral.map(|count| self.ask.for_range(count));
        let ask = if self.wants_fixed(lent) { Some(&self.ask) } else { range.as_ref() };
        match (ask, level) {
            (Some(ask), Level::Kernel(_)) if self.scope != RunScope::User => Ok(ask.wanted.ports()?.1.iter().next()),
            _ => Ok(None),
        }
    }

    fn warn(&self, io: &mut Io<'_>, text: std::fmt::Arguments<'_>) {
        if !self.quiet && once::is_first_of_job() {
            io.warning(text);
        }
    }
}

impl Prepared {
    fn claims(&self) -> impl Iterator<Item = &Claim> {
        self.claim.iter().chain(&self.range)
    }

    /// The command with its arguments and variables.
    fn command(&self, args: &Args, activated: bool, user: Option<&User>) -> anyhow::Result<std::process::Command> {
        let lent = self.lent.as_ref();
        let ports = self.claim.as_ref().map(|claim| &claim.ports).or(lent.map(|lent| &lent.ports));
        let mut words = args.command.iter();
        let program = words.next().context("no command")?;
        let mut command = into_command::command(program, activated, user);
        for word in words {
            command.arg(if args.no_substitute { word.clone() } else { fill_in(word, ports)? });
        }
        if let Some(ports) = ports {
            command.envs(environment(ports, args.ask.label.as_deref().or(args.reservation.as_ref().map(Name::as_str))));
        }
        command.env("PORTKEEP_ENFORCEMENT", self.level.enforcement().name());
        if let Some(range) = &self.range {
            command.env("PORTKEEP_EPHEMERAL", range.ports.to_string());
        }
        let claimed = self.claims().find(|claim| !claim.tokens.is_empty()).map(|claim| claim.tokens.clone());
        let lent = || lent?.blocks.iter().map(|block| block.token).collect::<Option<Vec<_>>>();
        if let Some(tokens) = claimed.or_else(lent) {
            let tokens: Vec<String> = tokens.iter().map(ToString::to_string).collect();
            command.env("PORTKEEP_TOKEN", &tokens[0]).env("PORTKEEP_TOKENS", tokens.join(","));
        }
        Ok(command)
    }
}

/// The level of enforcement that the command gets.
fn level(args: &Args, lent: bool) -> anyhow::Result<Level> {
    if lent && args.ephemeral.is_none() {
        anyhow::ensure!(served_here()?.is_some(), "kernel enforcement does not serve the cgroup this runs in");
        return Ok(Level::Kernel(Served::default()));
    }
    // Checked first: for a request that cannot be granted, the BPF programs must not be brought up.
    args.ask.wanted.ports()?;
    let wishes = [
        (args.ask.requires_kernel()?, "--require-kernel"),
        (args.scope == RunScope::Cgroup, "--scope cgroup"),
        (!args.ask.also()?.is_empty(), "--also"),
    ];
    Level::best(&args.place, &args.config)?.that_grants(&wishes)
}

/// Make the requests of the command. `inside` is its cgroup, if it has one of its own.
fn set_up(
    args: &Args,
    level: Level,
    lent: Option<Info>,
    inside: Option<&Inside>,
    user: Option<&User>,
    forwarder: &mut Forwarder,
    io: &mut Io<'_>,
) -> anyhow::Result<Prepared> {
    let fixed = args.wants_fixed(lent.is_some());
    let mut prepared = Prepared { claim: None, range: None, level, lent };
    if let Level::Held(reason) = &prepared.level {
        let no_range = "no private ephemeral range, only kernel enforcement can give one: a free port that the command chooses \
                        can be lost to another program before it is bound";
        if !fixed {
            args.warn(io, format_args!("{no_range} ({reason})"));
            return Ok(prepared);
        }
        let claim = Claim::held(&args.ask, &args.config, || forwarder.ended_by())?;
        let udp = match args.ask.wanted.ports()?.1 {
            Transports::Tcp => "",
            Transports::Udp | Transports::Both => "; the UDP ports are released when the command starts",
        };
        let no_range = if args.ephemeral.is_some() { format!("; {no_range}") } else { String::new() };
        args.warn(
            io,
            format_args!(
                "{}, not enforced by the kernel: programs that set SO_REUSEADDR can still bind TCP ports, and the \
                 command itself has to set it{udp}{no_range} \
                 ({reason})",
                only_held(&claim.ports)
            ),
        );
        prepared.claim = Some(claim);
        return Ok(prepared);
    }
    if let Some(missing) = args.ask.missing_also() {
        args.warn(io, format_args!("{missing}"));
    }
    let scope = inside.map_or(Scope::User, |inside| Scope::Cgroup(inside.cgroup));
    let _asking = match (scope, user) {
        (Scope::User, Some(user)) => Some(user.asks()?),
        _ => None,
    };
    let name = program_name(&args.command);
    if let (Some(_), Ok(name)) = (inside, CString::new(name.as_bytes())) {
        // The kernel keeps the name of the process that makes the request, and this process becomes the command.
        rustix::thread::set_name(&name)?;
    }
    // One owner socket for both: they end together.
    let owner = || inside.map(|inside| inside.owner.try_clone().context("duplicating the owner socket")).transpose();
    let mut claim_as =
        |ask: &Ask, kind, owner| Claim::kernel(ask, &args.config, &name, scope, kind, owner, || forwarder.ended_by());
    if fixed {
        prepared.claim = Some(claim_as(&args.ask, Kind::Plain, owner()?)?);
    }
    if let Some(count) = args.ephemeral {
        let beside = match &prepared.claim {
            Some(claim) => claim.owner().context("duplicating the owner socket")?,
            None => owner()?,
        };
        prepared.range = Some(claim_as(&args.ask.for_range(count), Kind::Ephemeral, beside)?);
    }
    Ok(prepared)
}

/// The label of a reservation without `--label`: the name of the command, because the owner process is always a
/// portkeep.
fn program_name(command: &[OsString]) -> String {
    let name = command.first().map(Path::new).and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let mut label: String = name.chars().filter(|c| !c.is_control()).collect();
    while label.len() > LABEL {
        label.pop();
    }
    label
}

/// The status that `run` ends with.
pub fn exit_code(code: Option<i32>, signal: Option<i32>) -> u8 {
    let code = code.or_else(|| signal.map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(Exit::RunFailed.code())
}
