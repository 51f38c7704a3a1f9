//! Where kernel enforcement is pinned, and what can be seen of it from here.

use std::{
    io,
    path::{Path, PathBuf},
};

use portkeep::{QueryError, Version, persistent::protocol::Reason};
use portkeep_kernel::{Instance, InstanceError, Obstacle};
use portkeep_observe::process;

use crate::{args::help::ADVANCED, exit::refused};

/// Where kernel enforcement is pinned.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Pins {
    /// Folder of the pins, in a BPF file system [default: /sys/fs/bpf/portkeep]
    #[arg(long, value_name = "DIR", env = "PORTKEEP_PIN_DIR", hide_env_values = true, help_heading = ADVANCED)]
    pin_dir: Option<PathBuf>,
}

/// The view of kernel enforcement from a folder.
#[derive(Debug)]
pub(crate) enum Seen {
    /// It is up and of this version.
    Up(Instance),
    /// Nothing is pinned.
    NotUp,
    /// Whether it is up cannot be seen from here.
    Hidden(String),
    /// It is up, but cannot be used.
    Unusable(InstanceError),
}

impl Pins {
    pub(crate) fn folder(&self) -> PathBuf {
        self.pin_dir.clone().unwrap_or_else(Instance::default_folder)
    }

    /// The instance, for commands that require it.
    pub(crate) fn open(&self) -> anyhow::Result<Instance> {
        match self.look() {
            Seen::Up(instance) => Ok(instance),
            Seen::NotUp => {
                self.not_elsewhere()?;
                Err(InstanceError::NotUp(self.folder()).into())
            }
            Seen::Hidden(reason) => Err(refused(Reason::NotAllowed, reason)),
            Seen::Unusable(error) => Err(error.into()),
        }
    }

    /// An error if kernel enforcement serves this process although nothing is pinned in the folder: the message "not
    /// up" would be false.
    pub(crate) fn not_elsewhere(&self) -> anyhow::Result<()> {
        if served_here()?.is_some() {
            anyhow::bail!(
                "kernel enforcement is up, but not pinned in {}: this is for where it was brought up (in a container, the \
                 host)",
                self.folder().display()
            );
        }
        Ok(())
    }

    pub(crate) fn look(&self) -> Seen {
        let folder = self.folder();
        let hidden = || Seen::Hidden(only_by_root(&folder));
        // Checked first: without the right to enter the folder, it looks empty.
        match folder.join("maps").try_exists() {
            Ok(true) => {}
            Ok(false) => return Seen::NotUp,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return hidden(),
            Err(_) => return Seen::NotUp,
        }
        match Instance::open(&folder) {
            Ok(instance) => Seen::Up(instance),
            Err(InstanceError::NotUp(_)) if !may_administer() => hidden(),
            Err(InstanceError::NotUp(_)) => Seen::NotUp,
            Err(InstanceError::Map(_)) if !may_administer() => hidden(),
            Err(error) => Seen::Unusable(error),
        }
    }
}

/// Why a file or folder of root cannot be read.
pub(crate) fn only_by_root(path: &Path) -> String {
    format!("{} can only be read by {}", path.display(), process::lacks().unwrap_or("root"))
}

/// Kernel enforcement that serves sockets made here; `None` if none does.
pub(crate) fn served_here() -> anyhow::Result<Option<Version>> {
    match portkeep::version() {
        Ok(version) => Ok(Some(version)),
        // The second is the error of the system for an IPv4 socket, if there is no IPv6.
        Err(QueryError::KernelAbsent | QueryError::NotTcpOrUdp) => Ok(None),
        Err(error @ QueryError::OtherAbi { .. }) => Err(anyhow::Error::from(error).context(
            "version skew; use the portkeep it was brought up with, or bring it down and up again when no reservation \
             is held",
        )),
        Err(error) => Err(error.into()),
    }
}

/// Whether this process may bring kernel enforcement up, as far as this is known without trying.
pub(crate) fn may_administer() -> bool {
    Obstacle::to_bpf().is_none()
}
