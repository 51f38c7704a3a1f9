//! `status`: what is enforced, where, and for whom.

use std::{
    io::Write,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use portkeep::{Enforcement, Errno, Info, PortRange, Time, Version};
use portkeep_core::{PortSet, ephemeral::Exhausted, time, wire};
use portkeep_kernel::{Config, Instance, InstanceError, Maps, Obstacle, cgroup, netns, root_elsewhere};
use portkeep_observe::accounts;
use serde::Serialize;

use crate::{
    DONE, Io, NOTHING,
    agent::{self, Overlap},
    args::pins::{Pins, Seen, served_here},
    render::local_time::local,
    waiting::{self, Heard},
};

const AFTER_HELP: &str = "\
Some fields require root. Fields that could not be read are listed as not seen.

Examples:
  portkeep status
  portkeep status --json | jq .reservations

Exit status: 0 if it is up, 3 if it is not (or if that cannot be seen from here)";

/// Show what is enforced and where
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pins: Pins,
}

/// The state, as far as it is known. `None`: could not be seen from here.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Status {
    pub(crate) up: Option<bool>,
    /// The enforcement of a reservation made here.
    enforcement_here: Option<Enforcement>,
    abi: Option<u32>,
    pub(crate) build: Option<String>,
    pub(crate) enforced_in: Option<String>,
    served_in: Option<String>,
    since: Option<Time>,
    reservations: Option<u32>,
    ports: Option<u64>,
    /// The number of persistent ones among them.
    persistent: Option<u32>,
    /// Binds of outsiders that were refused since it came up.
    refused: Option<u64>,
    pub(crate) pool: Option<PortRange>,
    /// The overlap of the pool with the ephemeral ports of this network namespace.
    overlap: Option<Overlap>,
    /// Reservations that `force` allowed leave this namespace too few ephemeral ports (N5).
    #[serde(skip)]
    pub(crate) exhausted: Option<Exhausted>,
    /// `None`: no limit, or not seen.
    quota: Option<u32>,
    /// The accounts that hold ports, the fullest first. Requires root.
    pub(crate) quotas: Option<Vec<QuotaUse>>,
    deny_errno: Option<String>,
    pub(crate) agent: Option<bool>,
    /// Whether the agent that runs answers on its socket. `None` if none runs, or its socket cannot be reached from
    /// here.
    pub(crate) agent_answers: Option<bool>,
    /// Declarations that are not in force, as the agent reports them.
    waiting: Vec<Info>,
    pub(crate) transient: Option<bool>,
    /// Why something is missing above.
    pub(crate) not_seen: Option<String>,
}

/// The ports that an account holds, and its limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct QuotaUse {
    /// "user www-data", "root of the network namespace blue".
    pub(crate) account: String,
    /// The user, if it is one.
    uid: Option<u32>,
    pub(crate) used: u32,
    /// `None`: no limit.
    pub(crate) limit: Option<u32>,
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let status = of(&args.pins, io)?;
    if args.json {
        io.json(&status)?;
    } else {
        status.write(&mut io.out)?;
    }
    Ok(if status.up == Some(true) { DONE } else { NOTHING })
}

pub(crate) fn of(pins: &Pins, io: &mut Io<'_>) -> anyhow::Result<Status> {
    let mut status = Status { enforcement_here: Some(Enforcement::Held), ..Status::default() };
    match served_here() {
        Ok(Some(version)) => {
            status.enforcement_here = Some(Enforcement::Kernel);
            status.add_version(&version);
        }
        Ok(None) => {}
        // An error about the version is only a warning here: `status` can still show the rest.
        Err(error) => io.warning(format_args!("{error:#}")),
    }
    match pins.look() {
        Seen::Up(instance) => status.add_instance(&instance)?,
        Seen::NotUp => status.up = Some(status.up.unwrap_or(false)),
        Seen::Hidden(reason) => status.not_seen = Some(reason),
        Seen::Unusable(error) => {
            status.up = Some(true);
            status.not_seen = Some(format!("{:#}", anyhow::Error::from(error)));
        }
    }
    // If a value cannot be read (a /proc without it), `status` must not fail.
    status.overlap = Overlap::of(status.pool).unwrap_or_default();
    status.add_agent();
    Ok(status)
}

impl Status {
    pub(crate) const fn overlap(&self) -> Option<&Overlap> {
        self.overlap.as_ref()
    }

    /// Ask the agent, if one runs: whether it answers, and what waits.
    fn add_agent(&mut self) {
        if self.agent != Some(true) {
            return;
        }
        let heard = waiting::ask();
        self.waiting = heard.waiting().cloned().collect();
        self.agent_answers = match heard {
            Heard::Declared(_) | Heard::Busy => Some(true),
            Heard::Silence => Some(false),
            Heard::Absent | Heard::Unreachable => None,
        };
    }

    fn add_version(&mut self, version: &Version) {
        self.up = Some(true);
        self.abi = Some(version.abi);
        self.since = Some(version.since);
        self.reservations = Some(version.reservations);
        self.ports = Some(version.ports);
        self.pool = version.pool;
        self.agent = Some(version.agent);
    }

    fn add_instance(&mut self, instance: &Instance) -> anyhow::Result<()> {
        let config = instance.config();
        let maps = instance.maps()?;
        let counters = maps.counters()?;
        let mut persistent = 0;
        let (mut here, own) = (PortSet::default(), netns::current_cookie().ok());
        for item in maps.reservations() {
            let (_, reservation) = item?;
            if reservation.state() == wire::ACTIVE && Some(reservation.netns) == own {
                reservation.ports().into_iter().for_each(|ports| here.insert(ports));
            }
            persistent += u32::from(reservation.is_persistent() && reservation.state() != wire::REFUSED);
        }
        let ephemeral = agent::ephemeral_ports(&here).ok().flatten();
        self.exhausted = ephemeral.and_then(|ephemeral| ephemeral.check(&here).err());
        self.up = Some(true);
        self.abi = Some(config.abi);
        self.build = Some(format!("{:016x}", config.build));
        self.enforced_in = Some(cgroup_name(config.enforce));
        self.served_in = Some(cgroup_name(config.serve));
        self.since = Some(portkeep::wall_clock(Duration::from_nanos(config.since)));
        self.reservations = Some(counters.reservations);
        self.ports = Some(counters.ports);
        self.persistent = Some(persistent);
        self.refused = Some(counters.refused);
        self.pool = PortRange::inclusive(config.pool_first, config.pool_last).ok();
        self.quota = Some(config.quota).filter(|quota| *quota != u32::MAX);
        self.quotas = Some(quotas(&maps, config)?);
        self.deny_errno = Some(Errno(config.deny_errno.cast_signed()).to_string());
        self.agent = Some(counters.agents > 0);
        self.transient = Some(config.transient != 0);
        Ok(())
    }

    pub(crate) fn write(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let mut line = |name: &str, value: String| writeln!(out, "{name:<13} {value}");
        let in_cgroup = |path: &String| if path == "/" { "the whole host".into() } else { format!("cgroup {path}") };
        line(
            "enforcement",
            match (self.up, self.since) {
                (Some(true), Some(since)) => {
                    format!("up since {} ({})", local(since), time::ago(since.age_at(SystemTime::now())))
                }
                (Some(true), None) => "up".into(),
                (Some(false), _) => "not up".into(),
                (None, _) => "not serving this cgroup; whether it is up elsewhere could not be seen".into(),
            },
        )?;
        if let Some(path) = &self.enforced_in {
            line("enforced in", in_cgroup(path))?;
        }
        if let Some(path) = &self.served_in {
            line("served in", in_cgroup(path))?;
        }
        if let (Some(reservations), Some(ports)) = (self.reservations, self.ports) {
            let s = |n: u64| if n == 1 { "" } else { "s" };
            let reservations = u64::from(reservations);
            let persistent = match self.persistent {
                Some(number) if number > 0 => format!("; {number} persistent"),
                _ => String::new(),
            };
            line("reservations", format!("{reservations}, {ports} port{} in them{persistent}", s(ports)))?;
            line("pool", self.pool.map_or_else(|| "none".into(), |pool| pool.to_string()))?;
        }
        if let Some(overlap) = &self.overlap {
            line("warning", overlap.to_string())?;
        }
        if let Some(exhausted) = &self.exhausted {
            line("warning", too_few_left(exhausted))?;
        }
        match self.quota {
            Some(quota) => line("quota", format!("{quota} ports for each user"))?,
            None if self.quotas.is_some() => line("quota", "unlimited".into())?,
            None => {}
        }
        for QuotaUse { account, used, limit, .. } in self.quotas.iter().flatten().take(SHOWN_ACCOUNTS) {
            let of = limit.map_or_else(|| " (no limit)".into(), |limit| format!(" of {limit}"));
            line("held", format!("{used}{of} by {account}"))?;
        }
        if let Some(errno) = &self.deny_errno {
            line("outsiders get", errno.clone())?;
        }
        if let Some(refused) = self.refused {
            line("refused", format!("{refused} bind{} of outsiders", if refused == 1 { "" } else { "s" }))?;
        }
        match (self.agent, self.agent_answers) {
            (Some(true), Some(false)) => line(
                "agent",
                "runs, but does not answer: it hangs or was stopped; restart it (`systemctl restart portkeep`)".into(),
            )?,
            (Some(true), Some(true) | None) => line("agent", "running".into())?,
            (Some(false), _) => {
                line("agent", "not running (needed for ports outside the pool and for `portkeep persist`)".into())?;
            }
            (None, _) => {}
        }
        for waiting in &self.waiting {
            line("waits", waiting::sentence(waiting))?;
        }
        if self.transient == Some(true) {
            line("transient", "goes with the last `portkeep run` that needs it".into())?;
        }
        line("enforced here", self.here())?;
        if let Some(reason) = &self.not_seen {
            line("not seen", reason.clone())?;
        }
        Ok(())
    }

    /// The enforcement that a program started here would get.
    fn here(&self) -> String {
        if self.enforcement_here == Some(Enforcement::Kernel) {
            return "by the kernel".into();
        }
        let cannot =
            |why: &dyn std::fmt::Display| format!(" (kernel enforcement cannot be brought up from here: {why})");
        let more = match Obstacle::to_bpf() {
            _ if self.up == Some(true) => String::new(),
            None if cgroup::root().is_none() => cannot(&InstanceError::NoCgroup2),
            None => " (`portkeep run` would bring kernel enforcement up while it runs)".into(),
            Some(obstacle) => cannot(&obstacle),
        };
        format!("only by holding the ports{more}")
    }
}

/// "96 of the 28232 ephemeral ports are left ...".
pub(crate) fn too_few_left(Exhausted { range, all, left, kept }: &Exhausted) -> String {
    format!(
        "{left} of the {all} ephemeral ports (net.ipv4.ip_local_port_range is {range}) are not reserved, and outgoing \
         connections need at least {kept}"
    )
}

/// The number of accounts that the text shows.
const SHOWN_ACCOUNTS: usize = 8;

/// The accounts that hold ports, those nearest to their limit first.
fn quotas(maps: &Maps, config: &Config) -> anyhow::Result<Vec<QuotaUse>> {
    let limit = |of: u32| (of != u32::MAX).then_some(of);
    let mut found = Vec::new();
    for item in maps.quotas() {
        let (account, quota) = item?;
        if quota.used == 0 {
            continue;
        }
        let own = (quota.limit != 0).then_some(quota.limit);
        found.push(match u32::try_from(account) {
            Ok(uid) => QuotaUse {
                account: format!("user {}", accounts::user_name(uid)),
                uid: Some(uid),
                used: quota.used,
                limit: limit(own.unwrap_or(if uid == 0 { u32::MAX } else { config.quota })),
            },
            Err(_) => QuotaUse {
                account: format!("root of the network namespace {}", account & !root_elsewhere(0)),
                uid: None,
                used: quota.used,
                limit: limit(own.unwrap_or(config.quota_elsewhere)),
            },
        });
    }
    let share = |quota: &QuotaUse| u64::from(quota.used) * 10_000 / u64::from(quota.limit.unwrap_or(u32::MAX)).max(1);
    found.sort_by_key(|quota| std::cmp::Reverse((share(quota), quota.used)));
    Ok(found)
}

fn cgroup_name(id: u64) -> String {
    let path: Option<PathBuf> = cgroup::path_of(id);
    path.map_or_else(|| format!("(gone, id {id})"), |path| path.display().to_string())
}
