//! `show`, `wait`, `list` and `status`: they change nothing.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use portkeep::persistent::{Name, protocol::Reason};
use portkeep_cli::{
    Exit,
    command::{seconds, write_table},
};

use crate::{
    complain,
    config::Config,
    etcd::{Client, EtcdError},
    failure::Failure,
    memory::Facts,
    print_json,
    record::Keys,
    request, serve,
    view::{self, FleetView, JobState, JobView},
};

/// Show a job: its ports and its hosts
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  portkeep-fleet show train42\n  portkeep-fleet show train42 --json | jq .start"
)]
pub(crate) struct Show {
    /// Its name
    name: Name,
    /// One JSON object on one line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Wait until there is a job of this name, and show it
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  portkeep-fleet wait train42 --json\n  portkeep-fleet wait train42 --timeout 60"
)]
pub(crate) struct Wait {
    /// Its name
    name: Name,
    /// Seconds to wait [default: no limit]
    #[arg(long = "timeout", value_name = "SECONDS", value_parser = seconds)]
    limit: Option<Duration>,
    /// One JSON object on one line
    #[arg(long)]
    pub(crate) json: bool,
}

/// List the jobs, and the blocks that are not free yet
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  portkeep-fleet list\n  portkeep-fleet list --json")]
pub(crate) struct List {
    /// One JSON array on one line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show the hosts of the fleet, and what each has
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  portkeep-fleet status\n  portkeep-fleet status --json")]
pub(crate) struct Status {
    /// One JSON object on one line
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn show(args: &Show, config: &Config) -> anyhow::Result<u8> {
    let client = Client::new(config)?;
    shown(&client, config, &args.name, args.json)
}

fn shown(client: &Client, config: &Config, name: &Name, json: bool) -> anyhow::Result<u8> {
    let fleet = view::fleet(client, config)?;
    let mut jobs = fleet.jobs.iter().filter(|job| job.name == name.as_str());
    // A job of the same name may have been there before and be over.
    let Some(job) = jobs.find(|job| job.by.is_some()) else {
        return Err(Failure::no_job(name.as_str()).into());
    };
    if json {
        print_json(job)?;
    } else {
        list_of(std::slice::from_ref(job))?;
    }
    Ok(Exit::Done.code())
}

pub(crate) fn wait(args: &Wait, config: &Config) -> anyhow::Result<u8> {
    let client = Client::new(config)?;
    let (keys, name) = (Keys(config.prefix.clone()), args.name.as_str());
    let end = args.limit.and_then(|limit| Instant::now().checked_add(limit));
    if !request::wait_for(&client, &keys, name, end)? {
        let message =
            format!("there is still no job {name:?} that all of its hosts have answered; see `portkeep-fleet list`");
        return Err(Failure::new(Reason::NotFound, message).into());
    }
    shown(&client, config, &args.name, args.json)
}

pub(crate) fn list(args: &List, config: &Config) -> anyhow::Result<u8> {
    let fleet = view::fleet(&Client::new(config)?, config)?;
    if args.json {
        print_json(&fleet.jobs)?;
    } else {
        list_of(&fleet.jobs)?;
    }
    Ok(Exit::Done.code())
}

fn list_of(jobs: &[JobView]) -> anyhow::Result<()> {
    let head = ["NAME", "PORTS", "STATE", "HOSTS", "REASON"].map(str::to_owned);
    let row = |job: &JobView| {
        let hosts: Vec<&str> = job.hosts.iter().map(|host| host.host.as_str()).collect();
        let ports = job.transports.map_or_else(|| job.ports.to_string(), |of| format!("{}/{of}", job.ports));
        let unusual = job.hosts.iter().filter(|host| host.state != JobState::Active);
        let reasons: Vec<String> = unusual
            .map(|host| {
                let reason = host.reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
                format!("{}: {}{reason}", host.host, host.state.word())
            })
            .collect();
        [job.name.clone(), ports, job.state.word(), hosts.join(","), reasons.join("; ")]
    };
    let rows: Vec<[String; 5]> = [head].into_iter().chain(jobs.iter().map(row)).collect();
    write_table(&rows, &mut io::stdout())
}

pub(crate) fn status(args: &Status, config: &Config) -> anyhow::Result<u8> {
    let client = Client::new(config)?;
    match view::fleet(&client, config) {
        Ok(fleet) if args.json => print_json(&fleet)?,
        Ok(fleet) => status_of(&fleet)?,
        Err(error @ EtcdError::Unreachable { .. }) => {
            // The facts that this host saw last.
            if let Some(Facts { revision, cluster, .. }) = serve::facts(config) {
                complain("note", format_args!("this host last saw revision {revision} of cluster {cluster}"));
            }
            return Err(error.into());
        }
        Err(error) => return Err(error.into()),
    }
    Ok(Exit::Done.code())
}

fn status_of(fleet: &FleetView) -> anyhow::Result<()> {
    let mut out = io::stdout();
    let FleetView { cluster, revision, when, range, free, hosts, jobs } = fleet;
    writeln!(out, "etcd cluster {cluster}, revision {revision}, as of {when}")?;
    writeln!(out, "ports {range}, {free} free; jobs: {}", jobs.iter().filter(|job| job.by.is_some()).count())?;
    let head = ["HOST", "STATE", "JOBS", "REASON"].map(str::to_owned);
    let rows = hosts.iter().map(|host| {
        let state = if host.up { "up" } else { "lost" };
        [host.host.clone(), state.to_owned(), host.jobs.join(","), host.reason.clone().unwrap_or_default()]
    });
    write_table(&[head].into_iter().chain(rows).collect::<Vec<_>>(), &mut out)
}
