//! Where declarations and the configuration are read from.

use std::path::{Path, PathBuf};

use portkeep_persist::{Config, config};

use crate::args::{help::ADVANCED, pins::Pins};

/// The configuration file that commands read.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ConfigFile {
    /// Configuration file [default: /etc/portkeep/portkeep.toml]
    #[arg(long, value_name = "FILE", env = "PORTKEEP_CONFIG", hide_env_values = true, help_heading = ADVANCED)]
    config: Option<PathBuf>,
}

impl ConfigFile {
    /// The file. If an option or the environment names it, it must exist: without it the command would do something
    /// else than was asked for.
    pub(crate) fn path(&self, root: &Path) -> anyhow::Result<PathBuf> {
        let Some(named) = &self.config else {
            return Ok(below(root, Path::new(config::PATH)));
        };
        // A link that leads nowhere is reported when it is read.
        anyhow::ensure!(
            named.exists() || named.is_symlink(),
            "there is no configuration file {}; correct --config or PORTKEEP_CONFIG",
            named.display()
        );
        Ok(named.clone())
    }

    /// The configuration of this machine.
    pub(crate) fn load(&self) -> anyhow::Result<Config> {
        load(&self.path(&root_of_environment())?)
    }

    /// An error if the file was named and does not exist.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        self.path(&root_of_environment()).map(drop)
    }
}

/// Where the configuration of the machine is. Only trials set the variable.
fn root_of_environment() -> PathBuf {
    std::env::var_os("PORTKEEP_ROOT").map_or_else(|| "/".into(), PathBuf::from)
}

fn load(file: &Path) -> anyhow::Result<Config> {
    Config::load(file).map_err(|wrong| {
        let text: Vec<String> = wrong.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", text.join("\n"))
    })
}

/// The same as the agent's.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Sources {
    #[command(flatten)]
    config: ConfigFile,
    /// The system whose files are read, where it is mounted [default: /]
    #[arg(long, value_name = "DIR", env = "PORTKEEP_ROOT", hide_env_values = true, help_heading = ADVANCED)]
    root: Option<PathBuf>,
}

/// Where kernel enforcement and the declarations of a machine are.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Places {
    #[command(flatten)]
    pub(crate) pins: Pins,
    #[command(flatten)]
    pub(crate) sources: Sources,
}

impl Sources {
    /// Those of a command that has at most a configuration file as an option.
    pub(crate) fn of(config: &ConfigFile) -> Self {
        Self { config: config.clone(), root: Some(root_of_environment()) }
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.as_deref().unwrap_or(Path::new("/"))
    }

    /// Whether it is the system that the agent serves; otherwise it is mounted in a folder.
    ///
    /// # Errors
    ///
    /// If there is no such folder.
    pub(crate) fn is_this_system(&self) -> anyhow::Result<bool> {
        if [Path::new("/"), &root_of_environment()].contains(&self.root()) {
            return Ok(true);
        }
        anyhow::ensure!(self.root().is_dir(), "there is no folder {}; correct --root", self.root().display());
        Ok(false)
    }

    /// See [`ConfigFile::path`].
    pub(crate) fn config(&self) -> anyhow::Result<PathBuf> {
        self.config.path(self.root())
    }

    /// The configuration.
    pub(crate) fn load(&self) -> anyhow::Result<Config> {
        load(&self.config()?)
    }

    /// The folder of the store. The environment names only that of this system.
    pub(crate) fn state_dir(&self, config: &Config) -> PathBuf {
        match self.is_this_system().unwrap_or(true) {
            true => config.state_dir(self.root()),
            false => config.state_dir_below(self.root()),
        }
    }
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}
