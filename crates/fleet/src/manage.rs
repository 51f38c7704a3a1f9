//! `release` and `forget`: for administrators of the fleet.

use portkeep::persistent::Name;
use portkeep_cli::Exit;

use crate::{
    arbiter, complain,
    config::Config,
    etcd::Client,
    record::{Keys, Part},
    view::{self, JobState},
};

/// End a job, whichever process asked for it
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Its sockets keep running. The ports are free when each host reports that they are vacant, and have rested.

Examples:
  portkeep-fleet release train42")]
pub(crate) struct Release {
    /// Its name
    name: Name,
    /// The job that ended, as one JSON object on one line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Take a host that will not come back out of the fleet
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Its parts of jobs count as vacant from then on. Do this only if the machine is off or was installed anew: otherwise \
its processes may still have ports that others get.

Examples:
  portkeep-fleet forget node7")]
pub(crate) struct Forget {
    /// Its name
    host: Name,
}

pub(crate) fn release(args: &Release, config: &Config) -> anyhow::Result<u8> {
    let client = Client::new(config)?;
    let job = arbiter::release(&client, &Keys(config.prefix.clone()), args.name.as_str())?;
    view::print(&job, JobState::Ended, args.json)?;
    Ok(Exit::Done.code())
}

pub(crate) fn forget(args: &Forget, config: &Config) -> anyhow::Result<u8> {
    let client = Client::new(config)?;
    let keys = Keys(config.prefix.clone());
    let host = args.host.as_str();
    for Part { ports, name, .. } in arbiter::forget(&client, &keys, host, config.rest)? {
        complain("note", format_args!("{host} no longer has a part of job {name:?}, ports {ports}"));
    }
    Ok(Exit::Done.code())
}
