//! Where declarations and the configuration are read from.

use std::path::{Path, PathBuf};

use portkeep_persist::{Config, config};

/// The same as the agent's.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Sources {
    /// Configuration file [default: /etc/portkeep/portkeep.toml, below --root]
    #[arg(long, value_name = "FILE", env = "PORTKEEP_CONFIG", hide_env_values = true, help_heading = "Place")]
    config: Option<PathBuf>,
    /// The system whose files are read, where it is mounted [default: /]
    #[arg(long, value_name = "DIR", env = "PORTKEEP_ROOT", hide_env_values = true, help_heading = "Place")]
    root: Option<PathBuf>,
}

impl Sources {
    pub(crate) fn root(&self) -> &Path {
        self.root.as_deref().unwrap_or(Path::new("/"))
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(|| self.below_root(Path::new(config::PATH)))
    }

    /// The folder of the store. What the environment says is meant as it stands.
    pub(crate) fn state_dir(&self, config: &Config) -> PathBuf {
        let folder = config.state_dir();
        if folder == config.state_dir { self.below_root(&folder) } else { folder }
    }

    fn below_root(&self, path: &Path) -> PathBuf {
        self.root().join(path.strip_prefix("/").unwrap_or(path))
    }
}
