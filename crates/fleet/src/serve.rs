//! `daemon`: the part of the fleet on one host.

use std::{
    sync::{Arc, mpsc},
    thread,
};

use anyhow::Context;
use portkeep::persistent::Name;
use portkeep_cli::Exit;
use rustix::system::uname;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{
    complain,
    config::Config,
    daemon::{Daemon, DaemonInput},
    etcd::Client,
    fence::Kernel,
    memory::{self, Facts, Memory},
};

const AFTER_HELP: &str = "\
It requires root or membership of the agent's group of administrators. It writes to etcd only its lease while nothing \
happens. If it ends, however that comes, the ports of jobs stay reserved on this host; the next daemon goes on with \
them.

Examples:
  portkeep-fleet daemon --host node7";

/// Reserve on this host what the fleet decides
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The name of this host in the fleet; `host` of the configuration, or the host name
    #[arg(long, value_name = "NAME")]
    pub(crate) host: Option<Name>,
}

/// The host name of this machine.
pub(crate) fn machine_name() -> String {
    uname().nodename().to_string_lossy().into_owned()
}

/// The name of this host in the fleet.
fn host_name(config: &Config) -> anyhow::Result<String> {
    let name = config.host.clone().unwrap_or_else(machine_name);
    let parsed = name.parse::<Name>().with_context(|| {
        format!(
            "this host is called {name:?}, which no host of a fleet can be; set `host` in fleet.toml, or use --host"
        )
    });
    parsed.map(|name| name.to_string())
}

/// The facts as the daemon of this host has written them last.
pub(crate) fn facts(config: &Config) -> Option<Facts> {
    memory::look(config, &host_name(config).ok()?)
}

pub(crate) fn run(config: &Config) -> anyhow::Result<u8> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("catching signals")?;
    let host = host_name(config)?;
    let memory = Memory::open(config, &host)?;
    let client = Arc::new(Client::new(config)?);
    let (outbox, inbox) = mpsc::channel();
    let stop = outbox.clone();
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            let _ = stop.send(DaemonInput::Stop);
        }
    });
    let name = host.clone();
    let mut daemon = Daemon::new(client, config.clone(), host, memory, Kernel, (outbox, inbox));
    daemon.ready = Box::new(move |client| {
        complain("note", format_args!("host {name} belongs to the fleet of etcd cluster {:x}", client.cluster()));
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    });
    daemon.run()?;
    Ok(Exit::Done.code())
}
