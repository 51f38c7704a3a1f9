//! `up`: bring kernel enforcement up.

use std::io::Write;

use anyhow::bail;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use portkeep::{Errno, PortRange, persistent::protocol::Reason};
use portkeep_kernel::{Instance, InstanceError, Obstacle};
use portkeep_persist::Config;

use crate::{
    DONE, Io, agent,
    args::{
        pins::{Seen, served_here},
        sources::ConfigFile,
    },
    commands::status,
    exit::refused,
    level::Place,
};

const AFTER_HELP: &str = "\
From here on every program can make reservations and the kernel enforces them, until `portkeep down` or a reboot; no \
process has to keep running. If enforcement is already up, `up` changes nothing. Concurrent `up` commands are safe: \
one does the work, the others find it done. Requires root (CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and a cgroup v2 hierarchy).

Examples:
  portkeep up                              the whole host
  portkeep up --pool 20000-20999           wildcard requests are served from this range
  portkeep up --enforce /sys/fs/cgroup/system.slice

Ports of the pool that are not reserved behave as any other port. The pool is best outside net.ipv4.ip_local_port_range; \
where they overlap, the overlap is entered into ip_local_reserved_ports, and `portkeep down` takes it out.";

/// Bring kernel enforcement up
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Ports that requests without a port are served from first, FIRST-LAST or `none` [default: 61000-65535]
    #[arg(long, value_name = "FIRST-LAST", value_parser = pool)]
    pool: Option<Pool>,
    /// Ports that one user may hold at a time, or `unlimited`; root has no limit [default: 1024]
    #[arg(long, value_name = "N", value_parser = quota)]
    quota: Option<u32>,
    /// Error of an outsider's bind of a reserved port [default: EADDRINUSE]
    #[arg(long, value_name = "ERRNO", value_parser = deny_errno())]
    deny_errno: Option<Errno>,
    #[command(flatten)]
    config: ConfigFile,
    /// One JSON object, as `status --json` prints it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// The value of `--pool`. `none` is a possible value, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pool(Option<PortRange>);

fn pool(text: &str) -> Result<Pool, portkeep_core::ParsePortsError> {
    if text == "none" { Ok(Pool(None)) } else { text.parse().map(|range| Pool(Some(range))) }
}

/// As in portkeep.toml.
fn quota(text: &str) -> Result<u32, &'static str> {
    if text == "unlimited" {
        Ok(u32::MAX)
    } else {
        text.parse().map_err(|_| "must be a number of ports, or `unlimited`")
    }
}

fn deny_errno() -> impl TypedValueParser<Value = Errno> {
    PossibleValuesParser::new(["EADDRINUSE", "EACCES"])
        .map(|name| if name == "EACCES" { Errno::EACCES } else { Errno::EADDRINUSE })
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let config = args.config.load()?;
    let (mut settings, complaints) = agent::settings(&config);
    complaints.into_iter().for_each(|complaint| io.warning(complaint));
    settings.pool = args.pool.map_or(settings.pool, |pool| pool.0);
    settings.quota = args.quota.unwrap_or(settings.quota);
    settings.deny_errno = args.deny_errno.unwrap_or(settings.deny_errno);

    let instance = match Instance::up(&args.place.or(&config).options(settings)) {
        Ok(instance) => instance,
        Err(error) => {
            if let (Seen::NotUp, Ok(Some(_))) = (args.place.pins.look(), served_here()) {
                io.note(
                    "kernel enforcement serves this cgroup already, brought up elsewhere: reservations can be made here",
                );
            }
            return Err(match Obstacle::to_bpf() {
                Some(Obstacle::User) => {
                    refused(Reason::NotAllowed, "only root can bring kernel enforcement up (try sudo)")
                }
                _ => anyhow::Error::from(error).context("bringing kernel enforcement up"),
            });
        }
    };
    if instance.is_newly_up() {
        agent::after_up(&instance)?.into_iter().for_each(|complaint| io.warning(complaint));
    } else {
        adopt(&instance, &args)?;
    }
    let status = status::of(&args.place.pins, io)?;
    if let Some(overlap) = status.overlap() {
        let open = if overlap.is_entered() || status.agent == Some(true) {
            ""
        } else {
            "; until an agent runs, automatic choices come from the others even if they are reserved"
        };
        io.warning(format_args!("{overlap}{open}; {}", agent::Overlap::HELP));
    }
    if args.json {
        io.json(&status)?;
    } else {
        writeln!(io.out, "{}", if instance.is_newly_up() { "up" } else { "already up" })?;
        status.write(&mut io.out)?;
    }
    Ok(DONE)
}

/// Bring kernel enforcement up as the configuration says, or adopt it as it is. For the agent that starts at boot.
pub(crate) fn by_configuration(place: &Place, config: &Config) -> anyhow::Result<Instance> {
    let (settings, _) = agent::settings(config);
    let options = place.or(config).options(settings);
    let mut up = Instance::up(&options);
    if let Err(InstanceError::Skew { .. }) = up {
        // Another version brought it up: the package was upgraded while it was up.
        Instance::upgrade(&place.pins.folder())?;
        up = Instance::up(&options);
    }
    let instance = up?;
    if instance.is_newly_up() {
        agent::after_up(&instance)?.iter().for_each(|complaint| tracing::warn!("{complaint}"));
    }
    Ok(instance)
}

/// An error if the settings in force differ from those asked for: the answer "up" would be false.
fn adopt(instance: &Instance, args: &Args) -> anyhow::Result<()> {
    let config = instance.config();
    let have = PortRange::inclusive(config.pool_first, config.pool_last).ok();
    let show = |pool: Option<PortRange>| pool.map_or_else(|| "none".into(), |pool| pool.to_string());
    if let Some(Pool(want)) = args.pool.filter(|want| want.0 != have) {
        bail!("already up, with pool {}, not {}; run `portkeep down` first", show(have), show(want));
    }
    if let Some(want) = args.quota.filter(|want| *want != config.quota) {
        let show = |quota: u32| if quota == u32::MAX { "unlimited".into() } else { quota.to_string() };
        bail!("already up, with quota {}, not {}; run `portkeep down` first", show(config.quota), show(want));
    }
    if let Some(want) = args.deny_errno.filter(|want| want.0.unsigned_abs() != config.deny_errno) {
        let have = Errno(config.deny_errno.cast_signed());
        bail!("already up, refusing with {have}, not {want}; run `portkeep down` first");
    }
    Ok(())
}
