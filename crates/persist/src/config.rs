//! The configuration, `/etc/portkeep/portkeep.toml`.
//!
//! [`KEYS`] is the one table of all keys. It reads the file, and the manual page is made from it. A configuration with
//! a mistake is refused as a whole, because half of a policy is of no use.

mod keys;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use portkeep_core::{Errno, PortRange, defaults};
use toml::de::{DeTable, DeValue};

use crate::{
    Account, Diagnostic,
    diagnostic::Report,
    document,
    files::{self, Content},
};
pub use keys::{KEYS, Key};

/// The path of the configuration file.
pub const PATH: &str = "/etc/portkeep/portkeep.toml";

/// The members of this group may follow events, if the configuration names no other group.
pub const WATCHERS: &str = "portkeep-watch";

/// The configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Requests without a port are served from it first; `None`: they fail.
    pub pool: Option<PortRange>,
    /// The error of an outsider's bind of a reserved port: EADDRINUSE or EACCES.
    pub deny_errno: Errno,
    /// The group whose members are administrators besides root.
    pub administrators: Option<Account>,
    /// A group whose members may follow events; `None`: [`WATCHERS`], if there is such a group.
    pub watchers: Option<Account>,
    /// Reservations are enforced in this cgroup folder; `None`: on the whole host.
    pub enforce: Option<PathBuf>,
    /// Sockets in this cgroup folder may make reservations; `None`: in that of `enforce`.
    pub serve: Option<PathBuf>,
    /// The folder of the store, as configured. [`Config::state_dir`] reads the environment, too.
    pub state_dir: PathBuf,
    /// Ports per user.
    pub quota: Quota,
    /// Accounts that may acquire runtime blocks of privileged ports.
    pub privileged: Privileged,
    /// Limits for the reports of events.
    pub events: Events,
}

/// How many ports users may hold, counted once for each transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The limit of a user that is not named.
    pub default: Limit,
    /// The limit of root in each network namespace but the one where Portkeep was brought up.
    pub containers: Limit,
    /// The limits by user.
    pub users: BTreeMap<Account, Limit>,
    /// The limits by group; the largest limit of a user's groups counts.
    pub groups: BTreeMap<Account, Limit>,
}

/// A number of ports, or no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// At most this number.
    Ports(u32),
    /// As many as there are.
    Unlimited,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ports(number) => write!(f, "{number}"),
            Self::Unlimited => f.write_str("unlimited"),
        }
    }
}

/// Accounts that may acquire runtime blocks below `ip_unprivileged_port_start`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Privileged {
    /// These users.
    pub users: Vec<Account>,
    /// The members of these groups.
    pub groups: Vec<Account>,
}

/// Limits for the reports of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Events {
    /// How many events of one account are reported one by one in a second.
    pub per_second: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            pool: Some(defaults::POOL),
            deny_errno: Errno::EADDRINUSE,
            administrators: None,
            watchers: None,
            enforce: None,
            serve: None,
            state_dir: "/var/lib/portkeep".into(),
            quota: Quota {
                default: Limit::Ports(defaults::QUOTA),
                containers: Limit::Ports(defaults::CONTAINER_QUOTA),
                users: BTreeMap::new(),
                groups: BTreeMap::new(),
            },
            privileged: Privileged::default(),
            events: Events { per_second: 20 },
        }
    }
}

/// The keys that a file sets, by [`Key::name`]. The file does not decide about the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given(BTreeSet<String>);

impl Given {
    fn of(document: &DeTable<'_>) -> Self {
        let mut keys = BTreeSet::new();
        for entry in document::entries(document) {
            match entry.value().get_ref() {
                DeValue::Table(table) => {
                    keys.extend(
                        document::entries(table).iter().map(|inner| format!("{}.{}", entry.key(), inner.key())),
                    );
                }
                _ => drop(keys.insert(entry.key().to_owned())),
            }
        }
        Self(keys)
    }

    /// Whether the file sets this key, or this table of names.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains(key)
    }
}

impl Config {
    /// Read the file at `path`. If there is no file, the result is the defaults.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, Vec<Diagnostic>> {
        Self::load_given(path).map(|(config, _)| config)
    }

    /// The same, and the keys that the file sets.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn load_given(path: &Path) -> Result<(Self, Given), Vec<Diagnostic>> {
        match files::read(path) {
            Ok(Content::Text(text)) => Self::parse_given(path, &text),
            Ok(Content::Null | Content::Absent) => Ok(Default::default()),
            Err(wrong) => Err(vec![wrong]),
        }
    }

    /// Read a text. Complaints name it as `file`.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Vec<Diagnostic>> {
        Self::parse_given(file, text).map(|(config, _)| config)
    }

    fn parse_given(file: &Path, text: &str) -> Result<(Self, Given), Vec<Diagnostic>> {
        let mut report = Report::new(file, text);
        let mut config = Self::default();
        let mut given = Given::default();
        if let Some(document) = document::parse(&mut report, text) {
            config.read(&mut report, &document, "");
            given = Given::of(&document);
        }
        if report.is_clean() { Ok((config, given)) } else { Err(report.into_diagnostics()) }
    }

    /// The folder of the store of this machine: the environment variable `PORTKEEP_STATE_DIR`, unchanged, else the
    /// configured folder below `root`.
    pub fn state_dir(&self, root: &Path) -> PathBuf {
        match std::env::var_os("PORTKEEP_STATE_DIR") {
            Some(folder) if !folder.is_empty() => folder.into(),
            _ => self.state_dir_below(root),
        }
    }

    /// The configured folder of the store of a system that is mounted at `root`.
    pub fn state_dir_below(&self, root: &Path) -> PathBuf {
        root.join(self.state_dir.strip_prefix("/").unwrap_or(&self.state_dir))
    }

    /// Read the entries of a table; `prefix` is its name with a dot, empty for the file itself.
    fn read(&mut self, report: &mut Report<'_>, table: &DeTable<'_>, prefix: &str) {
        for entry in document::entries(table) {
            let name = format!("{prefix}{}", entry.key());
            let is_it = |key: &&Key| key.name == name || key.name.strip_suffix(".NAME") == Some(&name);
            if let Some(key) = KEYS.iter().find(is_it) {
                (key.read)(self, report, &entry);
            } else if KEYS.iter().any(|key| key.name.starts_with(&format!("{name}."))) {
                if let Some(inner) = entry.table(report) {
                    self.read(report, inner, &format!("{name}."));
                }
            } else {
                entry.unknown(report, known(prefix));
            }
        }
    }
}

/// The keys of a table ("" for the file itself), from [`KEYS`].
fn known(table: &str) -> impl Iterator<Item = &'static str> + Clone {
    let mut last = "";
    KEYS.iter().filter_map(move |key| {
        let key = key.name.strip_prefix(table)?.split('.').next()?;
        // The keys of one table are next to each other in `KEYS`.
        (std::mem::replace(&mut last, key) != key).then_some(key)
    })
}

#[cfg(test)]
mod tests;
