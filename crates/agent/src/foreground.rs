//! The agent as a process: until a signal ends it.

use std::{io, os::unix::net::UnixStream, path::Path};

use portkeep_kernel::Instance;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    low_level::{pipe, unregister},
};

use super::{agent::Agent, options::Options, programs::Programs};

/// Run the agent in the foreground until SIGTERM or SIGINT, on the BPF programs pinned in `folder`. Granted
/// reservations stay granted. After SIGHUP it reads its files again.
pub fn run_in_foreground(folder: &Path, options: &Options) -> anyhow::Result<()> {
    let signals = Signals::register()?;
    let instance = Instance::open(folder)?;
    let mut programs = Programs::of_instance(&instance)?;
    Agent::start(&mut programs, options).and_then(|agent| agent.run(&signals.stop, &signals.reload))
}

/// Signals as descriptors to poll, as long as this value exists.
#[derive(Debug)]
struct Signals {
    stop: UnixStream,
    reload: UnixStream,
    registered: [signal_hook::SigId; 3],
}

impl Signals {
    fn register() -> io::Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        let (reload, reloaded) = UnixStream::pair()?;
        let registered = [
            pipe::register(SIGTERM, stopped.try_clone()?)?,
            pipe::register(SIGINT, stopped)?,
            pipe::register(SIGHUP, reloaded)?,
        ];
        Ok(Self { stop, reload, registered })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for signal in self.registered {
            unregister(signal);
        }
    }
}
