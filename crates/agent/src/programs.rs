//! The agent's access to the BPF programs, with or without pins.

use std::{io, os::fd::OwnedFd, path::PathBuf};

use anyhow::Context;
use portkeep::control;
use portkeep_core::{
    PortRange,
    wire::{AGENT_BEACON, AGENT_PROBE, AGENT_READER, AgentMark},
};
use portkeep_kernel::{Admin, Config, Events, Instance, InstanceError, Loaded, Maps, cgroup};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::vacancy::Prober;

/// The BPF programs with the event ring, which has one reader at a time.
#[derive(Debug)]
pub struct Programs {
    pub(super) maps: Maps,
    pub(super) admin: Admin,
    pub(super) events: Events,
    pub(super) config: Config,
    folder: Option<PathBuf>,
}

impl Programs {
    /// The programs of a pinned instance.
    pub fn of_instance(instance: &Instance) -> anyhow::Result<Self> {
        Ok(Self {
            maps: instance.maps()?,
            admin: instance.admin()?,
            events: instance.events()?,
            config: *instance.config(),
            folder: Some(instance.folder().to_owned()),
        })
    }

    /// The programs of an instance in this process, after it was attached.
    pub fn of_loaded(loaded: &mut Loaded) -> anyhow::Result<Self> {
        let maps = loaded.maps()?;
        let config = maps.config()?;
        Ok(Self { maps, admin: loaded.admin()?, events: loaded.events()?, config, folder: None })
    }

    /// The event ring. The agent does not see events that are read here.
    pub fn events(&mut self) -> &mut Events {
        &mut self.events
    }

    /// Whether this instance is still up. After `portkeep down` it is not, even if another one has come up since: open
    /// maps stay readable, but are no longer used. If this is unknown, it counts as up, because otherwise the agent
    /// would undo everything.
    pub(super) fn is_up(&self) -> bool {
        let Some(folder) = &self.folder else { return true };
        match Instance::open(folder) {
            Ok(instance) => instance.config().since == self.config.since,
            Err(InstanceError::NotUp(_)) => false,
            // Either it was upgraded, and the maps are the same, or it cannot be opened for lack of descriptors or
            // memory.
            Err(_) => true,
        }
    }

    pub(super) fn beacon(&self) -> anyhow::Result<OwnedFd> {
        marked(&self.config, AGENT_BEACON).map_err(explain(&self.config))
    }

    pub(super) fn reader(&self) -> anyhow::Result<OwnedFd> {
        marked(&self.config, AGENT_READER).map_err(explain(&self.config))
    }
}

/// A socket of the agent. It has this role as long as it is open.
fn marked(config: &Config, role: u32) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    control::agent_mark(&socket, &AgentMark { secret: config.secret, role, zero: 0 })?;
    Ok(socket)
}

/// The message if the BPF programs do not serve a socket of ours.
fn explain(config: &Config) -> impl FnOnce(io::Error) -> anyhow::Error {
    let serve = config.serve;
    move |error| {
        let unserved = error.raw_os_error() == Some(rustix::io::Errno::NOPROTOOPT.raw_os_error());
        if !unserved {
            return anyhow::Error::from(error).context("marking a socket as the agent's");
        }
        let served = cgroup::path_of(serve).map_or_else(|| format!("(id {serve})"), |path| path.display().to_string());
        let own = cgroup::of_process(std::process::id())
            .map_or_else(|| "an unknown cgroup".into(), |path| path.display().to_string());
        anyhow::anyhow!(
            "the control codes are served in cgroup {served} and below, and this process is outside, in {own}: start \
             the agent inside, or bring kernel enforcement up with a `--serve` that includes it"
        )
    }
}

/// The pool, `None` if there is none.
pub(super) fn pool(config: &Config) -> Option<PortRange> {
    PortRange::inclusive(config.pool_first, config.pool_last).ok()
}

/// The best prober for this process, to which the control codes may not be served.
pub(super) fn prober(config: &Config) -> anyhow::Result<Prober> {
    match marked(config, AGENT_PROBE) {
        Ok(_) => Ok(Prober::marked(config.secret)),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOPROTOOPT.raw_os_error()) => {
            Ok(Prober::listing_only())
        }
        Err(error) => Err(error).context("marking a socket as the agent's"),
    }
}
