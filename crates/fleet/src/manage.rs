//! `release` and `forget`: for administrators of the fleet.

use portkeep::persistent::{Name, protocol::Reason};
use portkeep_cli::Exit;

use crate::{
    arbiter, complain,
    config::Config,
    etcd::{Client, KeyValue, Op},
    failure::Failure,
    print_json,
    record::{Keys, Part},
};

/// End a job, whichever process asked for it
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Its sockets keep running. The ports are free when each host reports that they are vacant, and have rested.\n\n\
                        Examples:\n  portkeep-fleet release train42"
)]
pub(crate) struct Release {
    /// Its name
    name: Name,
    /// The job that ended, as one JSON object on one line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Take a host that will not come back out of the fleet
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Its parts of jobs count as vacant from then on. Do this only if the machine is off or was installed anew: \
                        otherwise its processes may still have ports that others get.\n\nExamples:\n  portkeep-fleet forget node7"
)]
pub(crate) struct Forget {
    /// Its name
    host: Name,
}

pub(crate) fn release(args: &Release, config: &Config) -> anyhow::Result<u8> {
    let client = Client::new(config)?;
    let job = arbiter::release(&client, &Keys(config.prefix.clone()), args.name.as_str())?;
    if args.json {
        print_json(&crate::view::ended(&job))?;
    } else {
        println!("{} {} {}", job.ports, job.transports, job.name);
    }
    Ok(Exit::Done.code())
}

pub(crate) fn forget(args: &Forget, config: &Config) -> anyhow::Result<u8> {
    let client = Client::new(config)?;
    let keys = Keys(config.prefix.clone());
    let host = args.host.as_str();
    let reads = [Op::get(&keys.known_host(host)), Op::get(&keys.host(host)), Op::all(&keys.all_parts())];
    let (_, [known, member, parts]) = client.read(reads)?;
    if known.is_empty() {
        return Err(Failure::new(Reason::NotFound, format!("{host} does not belong to the fleet")).into());
    }
    if !member.is_empty() {
        let message = format!("the daemon of {host} runs; stop it first, and wait until `status` shows {host} as lost");
        return Err(Failure::new(Reason::InUse, message).into());
    }
    client.transact(&[], &[Op::delete_all(&keys.live_of(host)), Op::delete(&keys.known_host(host))], &[])?;
    for part in parts.iter().filter(|part| part.name() == host) {
        let id = part.key.rsplit('/').nth(1).unwrap_or_default();
        let Part { ports, name, .. } = KeyValue::parse(part)?;
        arbiter::done(&client, &keys, id, host, ports, config.rest)?;
        complain("note", format_args!("{host} no longer has a part of job {name:?}, ports {ports}"));
    }
    Ok(Exit::Done.code())
}
