//! `/etc/portkeep/fleet.toml`, and the options that overrule it.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use portkeep::PortRange;
use portkeep_cli::command::{ADVANCED, ports};
use serde::Deserialize;

/// The configuration where no option names another.
pub(crate) const PATH: &str = "/etc/portkeep/fleet.toml";
const STATE_DIR: &str = "/var/lib/portkeep-fleet";
/// Below Portkeep's pool and the usual ephemeral range.
const RANGE: &str = "20000-24999";

/// How to reach etcd, and what the fleet's ports are. It is the same on all hosts, except for the host's name.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// URLs of etcd's members.
    #[serde(default)]
    pub(crate) endpoints: Vec<String>,
    pub(crate) tls: Option<Tls>,
    user: Option<String>,
    /// Its first line is the password.
    password_file: Option<PathBuf>,
    /// The cluster's id, as `portkeep-fleet status` shows it.
    pub(crate) cluster: Option<String>,
    /// The beginning of all keys.
    #[serde(default = "prefix")]
    pub(crate) prefix: String,
    /// The ports of the fleet.
    #[serde(default = "range")]
    pub(crate) range: PortRange,
    /// Seconds for which a block rests when all hosts are done with it.
    #[serde(default = "rest")]
    pub(crate) rest: u32,
    /// Seconds after which a daemon or a command that has ended counts as gone.
    #[serde(default = "lease")]
    pub(crate) lease: u32,
    /// The name of this host.
    pub(crate) host: Option<String>,
    /// Where the daemon remembers which cluster it belongs to.
    #[serde(default = "state_dir")]
    pub(crate) state_dir: PathBuf,
}

/// Files in PEM.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    /// The certificates to trust.
    pub(crate) ca: PathBuf,
    /// The certificate of this client, if etcd asks for one.
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

/// A user of etcd.
#[derive(Clone, Debug)]
pub(crate) struct EtcdUser {
    pub(crate) user: String,
    pub(crate) password: String,
}

/// Where etcd is and how to talk to it
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = ADVANCED)]
pub(crate) struct Options {
    /// The configuration
    #[arg(long, value_name = "FILE", global = true, default_value = PATH)]
    #[arg(env = "PORTKEEP_FLEET_CONFIG", hide_env_values = true)]
    config: PathBuf,
    /// URLs of etcd's members, in place of the configuration's
    #[arg(long, value_name = "URL,...", value_delimiter = ',', global = true)]
    #[arg(env = "PORTKEEP_FLEET_ENDPOINTS", hide_env_values = true)]
    endpoints: Vec<String>,
    /// Certificates to trust, PEM
    #[arg(long, value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
    /// Certificate of this client, PEM
    #[arg(long, value_name = "FILE", requires = "key", global = true)]
    certificate: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "certificate", global = true)]
    key: Option<PathBuf>,
    /// User of etcd
    #[arg(long, value_name = "NAME", requires = "password_file", global = true)]
    etcd_user: Option<String>,
    /// File with the password
    #[arg(long, value_name = "FILE", global = true)]
    password_file: Option<PathBuf>,
    /// The ports of the fleet, in a row
    #[arg(long, value_name = "PORTS", global = true, value_parser = block)]
    range: Option<PortRange>,
}

impl Options {
    /// The configuration with these options.
    pub(crate) fn load(&self) -> anyhow::Result<Config> {
        let mut config = Config::read(&self.config)?;
        if !self.endpoints.is_empty() {
            config.endpoints.clone_from(&self.endpoints);
        }
        if let Some(ca) = &self.ca {
            config.tls = Some(Tls { ca: ca.clone(), certificate: None, key: None });
        }
        if self.certificate.is_some() {
            let tls = config.tls.as_mut().context("--certificate requires --ca")?;
            (tls.certificate, tls.key) = (self.certificate.clone(), self.key.clone());
        }
        config.user = self.etcd_user.clone().or(config.user);
        config.password_file = self.password_file.clone().or(config.password_file);
        config.range = self.range.unwrap_or(config.range);
        let path = self.config.display();
        ensure!(!config.endpoints.is_empty(), "no etcd is named: write `endpoints` into {path}, or use --endpoints");
        for endpoint in &config.endpoints {
            let known = endpoint.starts_with("http://") || endpoint.starts_with("https://");
            ensure!(known, "the endpoint {endpoint:?} is not a URL; write it as https://etcd1:2379");
        }
        let Config { prefix, lease, rest, .. } = &config;
        let slashes = prefix.starts_with('/') && prefix.ends_with('/');
        ensure!(slashes, "{path}: `prefix` is {prefix:?}; it must begin and end with a slash, as \"/portkeep/\"");
        ensure!(*lease >= 5, "{path}: `lease` is {lease}; it must be at least 5 seconds");
        ensure!(*rest >= 2, "{path}: `rest` is {rest}; it must be at least 2 seconds");
        Ok(config)
    }
}

impl Config {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && path == Path::new(PATH) => String::new(),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        Self::parse(&text).with_context(|| format!("{} has a mistake", path.display()))
    }

    pub(crate) fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    pub(crate) fn account(&self) -> anyhow::Result<Option<EtcdUser>> {
        let (user, path) = match (&self.user, &self.password_file) {
            (None, None) => return Ok(None),
            (Some(user), Some(path)) => (user, path),
            (Some(_), None) => bail!("`user` requires `password_file` in fleet.toml"),
            (None, Some(_)) => bail!("`password_file` requires `user` in fleet.toml"),
        };
        let text = String::from_utf8(secret(path)?).with_context(|| format!("{} is not UTF-8", path.display()))?;
        let password = text.lines().next().unwrap_or_default().to_owned();
        Ok(Some(EtcdUser { user: user.clone(), password }))
    }
}

/// The content of a file that not every user may read.
pub(crate) fn secret(path: &Path) -> anyhow::Result<Vec<u8>> {
    let path_shown = path.display();
    let reading = || format!("reading {path_shown}");
    let mut file = File::open(path).with_context(reading)?;
    let mode = file.metadata().with_context(reading)?.permissions().mode();
    ensure!(mode & 0o006 == 0, "every user of this host can read {path_shown}; correct it: chmod o= {path_shown}");
    let mut content = Vec::new();
    file.read_to_end(&mut content).with_context(reading)?;
    Ok(content)
}

fn block(text: &str) -> Result<PortRange, String> {
    let found = ports(text)?;
    let block = found.list.as_block().filter(|_| found.transports.is_none());
    block.ok_or_else(|| "must be one block without a transport, as 20000-24999".into())
}

fn prefix() -> String {
    "/portkeep/".into()
}

fn range() -> PortRange {
    RANGE.parse().expect("a block")
}

const fn rest() -> u32 {
    60
}

const fn lease() -> u32 {
    30
}

fn state_dir() -> PathBuf {
    STATE_DIR.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file of the package changes nothing, and names every key with its default.
    #[test]
    fn the_packaged_configuration_is_understood() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/etc/fleet.toml");
        let text = fs::read_to_string(path).unwrap();
        assert!(text.lines().all(|line| line.is_empty() || line.starts_with('#')), "{text}");
        let keys: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix('#')).filter(|line| !line.starts_with(' ')).collect();
        let config: Config = Config::parse(&keys.join("\n")).unwrap();
        let default: Config = Config::parse("").unwrap();
        let of = |config: Config| (config.prefix, config.range, config.rest, config.lease, config.state_dir);
        assert_eq!(of(config), of(default));
    }
}
