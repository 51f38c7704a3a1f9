//! Which enforcement a command gets, and what kernel enforcement requires.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use portkeep::Enforcement;
use portkeep_kernel::{Instance, InstanceError, Obstacle, Settings, UpOptions};

use crate::{
    agent,
    args::{
        help::ADVANCED,
        pins::{Pins, Seen, served_here},
        sources::ConfigFile,
    },
};

/// Where kernel enforcement is, or is to be brought up.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Place {
    #[command(flatten)]
    pub(crate) pins: Pins,
    /// Cgroup folder whose sockets are held to the reservations [default: the whole host]
    #[arg(long, value_name = "CGROUP", env = "PORTKEEP_ENFORCE", hide_env_values = true, help_heading = ADVANCED)]
    pub(crate) enforce: Option<PathBuf>,
    /// Cgroup folder whose sockets may make reservations [default: that of --enforce]
    #[arg(long, value_name = "CGROUP", env = "PORTKEEP_SERVE", hide_env_values = true, help_heading = ADVANCED)]
    pub(crate) serve: Option<PathBuf>,
}

impl Place {
    /// The configuration decides what the command line leaves open.
    pub(crate) fn or(&self, config: &portkeep_persist::Config) -> Self {
        Self {
            pins: self.pins.clone(),
            enforce: self.enforce.clone().or_else(|| config.enforce.clone()),
            serve: self.serve.clone().or_else(|| config.serve.clone()),
        }
    }

    pub(crate) fn options(&self, settings: Settings) -> UpOptions {
        let mut options = UpOptions::default();
        options.folder = Some(self.pins.folder());
        options.enforce = self.enforce.clone();
        options.serve = self.serve.clone();
        options.settings = settings;
        options
    }
}

/// The enforcement that refuses outsiders.
#[derive(Debug)]
pub(crate) enum Level {
    /// Kernel enforcement.
    Kernel(Served),
    /// Held mode, with the reason: only the sockets that hold the ports refuse outsiders.
    Held(String),
}

/// The kernel enforcement that serves this process. If it is up only while processes require it, this keeps it up.
#[derive(Debug, Default)]
pub(crate) struct Served {
    need: Option<(PathBuf, File)>,
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some((folder, guard)) = self.need.take() {
            // If this fails, the next process that ends takes kernel enforcement down, or `portkeep down` does.
            let _ = need_no_more(&folder, guard);
        }
    }
}

/// If kernel enforcement is up only while processes require it, and this was the last of them, take it down.
pub(crate) fn need_no_more(folder: &Path, guard: File) -> Result<(), InstanceError> {
    if Instance::need_no_more(folder, guard)? {
        // Entries that remain in the sysctl are harmless, and the next `down` tries again.
        let _ = agent::leave_overlap();
    }
    Ok(())
}

/// "port 61000 is only held", for the warning of held mode.
pub(crate) fn only_held(ports: &portkeep::PortList) -> String {
    let (s, is) = if ports.count() == 1 { ("", "is") } else { ("s", "are") };
    format!("port{s} {ports} {is} only held")
}

impl Level {
    pub(crate) const fn enforcement(&self) -> Enforcement {
        match self {
            Self::Kernel(_) => Enforcement::Kernel,
            Self::Held(_) => Enforcement::Held,
        }
    }

    /// The same level, but another process keeps kernel enforcement up in place of this one.
    pub(crate) fn leave(self) -> Self {
        match self {
            Self::Kernel(mut served) => {
                served.need = None;
                Self::Kernel(served)
            }
            held @ Self::Held(_) => held,
        }
    }

    /// The folder and the guard for another process that keeps kernel enforcement up, beside this one.
    pub(crate) fn need(&self) -> io::Result<Option<(PathBuf, File)>> {
        Ok(match self {
            Self::Kernel(Served { need: Some((folder, guard)) }) => Some((folder.clone(), guard.try_clone()?)),
            Self::Kernel(Served { need: None }) | Self::Held(_) => None,
        })
    }

    /// The level itself. If the ports can only be held, and an option (the first of `wishes` that is true) asks for
    /// something that held mode cannot give, it is an error.
    pub(crate) fn that_grants(self, wishes: &[(bool, &str)]) -> anyhow::Result<Self> {
        if let Self::Held(reason) = &self
            && let Some((_, wish)) = wishes.iter().find(|(wanted, _)| *wanted)
        {
            anyhow::bail!("{wish} requires kernel enforcement: {reason}");
        }
        Ok(self)
    }

    /// The best possible level. If kernel enforcement is not up and this process has the rights, it brings the BPF
    /// programs up with the settings of the configuration, for as long as it requires them.
    pub(crate) fn best(place: &Place, config: &ConfigFile) -> anyhow::Result<Self> {
        config.check()?;
        let served = served_here()?;
        let serve = |need| Ok(Self::Kernel(Served { need }));
        if served.is_some() {
            match place.pins.look() {
                // It may be taken down when the last process that requires it ends. So register that this process
                // requires it, too.
                Seen::Up(instance) if instance.config().transient != 0 => {}
                _ => return serve(None),
            }
        } else if let Some(obstacle) = Obstacle::to_bpf() {
            return Ok(Self::Held(format!("kernel enforcement is not up and cannot be brought up: {obstacle}")));
        }

        let config = config.load()?;
        // A failed look-up in it (of the administrators' group) is not reported by a command that only runs something.
        let (mut settings, _) = agent::settings(&config);
        settings.transient = true;
        let need = match Instance::up_and_need(&place.or(&config).options(settings)) {
            Ok((instance, guard)) => {
                let need = (instance.folder().to_owned(), guard);
                if instance.is_newly_up() {
                    // Its warnings are not reported by a command that only runs something.
                    drop(agent::after_up(&instance)?);
                }
                need
            }
            Err(
                error @ (InstanceError::Elsewhere { .. } | InstanceError::Skew { .. } | InstanceError::Layout { .. }),
            ) => {
                return Err(error.into());
            }
            Err(error) => {
                let text = format!("{:#}", anyhow::Error::from(error));
                // Only `portkeep up` shows the verifier's log.
                let (text, more) = match text.split_once('\n') {
                    Some((first, _)) => (first, "... (`portkeep up` shows more)"),
                    None => (&*text, ""),
                };
                return Ok(Self::Held(format!("kernel enforcement cannot be brought up: {text}{more}")));
            }
        };
        match served_here() {
            Ok(Some(_)) => serve(Some(need)),
            unserved => {
                let _ = need_no_more(&need.0, need.1);
                unserved?;
                Ok(Self::Held("kernel enforcement is up, but does not serve the cgroup this runs in".into()))
            }
        }
    }
}
