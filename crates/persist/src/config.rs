//! The configuration, `/etc/portkeep/portkeep.toml`.
//!
//! [`KEYS`] is the one table of what can be set; the manual page is made from it. A configuration with a mistake is
//! refused as a whole: nobody wants half of a policy.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use portkeep_core::{Errno, PortRange, defaults};
use serde::Serialize;
use toml::de::{DeTable, DeValue};

use crate::{
    Account, Diagnostic,
    diagnostic::Report,
    document::{self, Entry, integer, kind},
    files::{self, Content},
    stanza,
};

/// Where it is.
pub const PATH: &str = "/etc/portkeep/portkeep.toml";

/// The group of those who may follow events, if the configuration names no other.
pub const WATCHERS: &str = "portkeep-watch";

/// One key of the configuration, as the manual page shows it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Key {
    /// With its table, as in `quota.default`; `NAME` in the place of a user's or group's name.
    pub name: &'static str,
    /// The type of its value.
    pub kind: &'static str,
    /// The default, in TOML or in words.
    pub default: &'static str,
    /// Its purpose.
    pub text: &'static str,
    /// A value that could be set, in TOML.
    pub example: &'static str,
}

/// Every key there is.
pub const KEYS: &[Key] = &[
    Key {
        name: "pool",
        kind: "\"FIRST-LAST\" or \"none\"",
        default: "\"61000-65535\"",
        text: "Requests without a port are served from these ports first. Pool ports that are not reserved are free for \
               every program. Keep the pool outside net.ipv4.ip_local_port_range. \"none\": no such requests.",
        example: "\"20000-20999\"",
    },
    Key {
        name: "deny_errno",
        kind: "\"EADDRINUSE\" or \"EACCES\"",
        default: "\"EADDRINUSE\"",
        text: "The error of an outsider's bind of a reserved port. After EADDRINUSE most programs try the next port; \
               Windows gives EACCES.",
        example: "\"EACCES\"",
    },
    Key {
        name: "administrators",
        kind: "group, by name or number",
        default: "root only",
        text: "A group whose members may create and delete persistent reservations, as root may.",
        example: "\"netadmin\"",
    },
    Key {
        name: "watchers",
        kind: "group, by name or number",
        default: "portkeep-watch, if there is such a group",
        text: "A group whose members may follow events and read the agent's counters, as `portkeep watch` and portkeep-web \
               do. They may change nothing. Administrators may do so too.",
        example: "\"monitoring\"",
    },
    Key {
        name: "enforce",
        kind: "cgroup folder",
        default: "the whole host",
        text: "The cgroup folder whose sockets are kept off reserved ports.",
        example: "\"/sys/fs/cgroup/system.slice\"",
    },
    Key {
        name: "serve",
        kind: "cgroup folder",
        default: "that of enforce",
        text: "The cgroup folder whose sockets may make reservations.",
        example: "\"/sys/fs/cgroup/system.slice\"",
    },
    Key {
        name: "state_dir",
        kind: "folder",
        default: "\"/var/lib/portkeep\"",
        text: "Where the store of persistent reservations is. The environment variable PORTKEEP_STATE_DIR overrides it.",
        example: "\"/srv/portkeep\"",
    },
    Key {
        name: "quota.default",
        kind: "number or \"unlimited\"",
        default: "1024",
        text: "How many ports one user may hold at a time in runtime reservations, counted once for each transport. \
               Subordinate uids (/etc/subuid) count as their user. Root has no limit.",
        example: "256",
    },
    Key {
        name: "quota.containers",
        kind: "number or \"unlimited\"",
        default: "4096",
        text: "The same for root in each network namespace but the one where Portkeep was brought up: in a container root \
               may be anybody.",
        example: "512",
    },
    Key {
        name: "quota.users.NAME",
        kind: "number or \"unlimited\"",
        default: "quota.default",
        text: "The same for one user, by name or number. It overrides the groups' quotas.",
        example: "4096",
    },
    Key {
        name: "quota.groups.NAME",
        kind: "number or \"unlimited\"",
        default: "quota.default",
        text: "The same for each member of a group, by name or number. The largest quota of the user's groups counts.",
        example: "\"unlimited\"",
    },
    Key {
        name: "privileged.users",
        kind: "list of users",
        default: "[]",
        text: "Users that may make runtime reservations of ports below net.ipv4.ip_unprivileged_port_start.",
        example: "[\"www-data\", 1000]",
    },
    Key {
        name: "privileged.groups",
        kind: "list of groups",
        default: "[]",
        text: "Groups whose members may reserve these ports.",
        example: "[\"web\"]",
    },
    Key {
        name: "events.per_second",
        kind: "number",
        default: "20",
        text: "The largest number of events of one account that are reported one by one in a second. Further events are \
               counted and reported as a summary. 0: summaries only.",
        example: "5",
    },
];

/// The configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Requests without a port are served from it first; `None`: they fail.
    pub pool: Option<PortRange>,
    /// The error of an outsider's bind of a reserved port: EADDRINUSE or EACCES.
    pub deny_errno: Errno,
    /// The group that may administer besides root.
    pub administrators: Option<Account>,
    /// A group whose members may follow events; `None`: [`WATCHERS`], if there is such a group.
    pub watchers: Option<Account>,
    /// The cgroup folder that is enforced; `None`: the whole host.
    pub enforce: Option<PathBuf>,
    /// The cgroup folder that is served; `None`: that of `enforce`.
    pub serve: Option<PathBuf>,
    /// Where the store is. [`Config::state_dir`] has the environment's say in it.
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
    /// Those who are not named.
    pub default: Limit,
    /// Root of each network namespace but the first.
    pub containers: Limit,
    /// By user.
    pub users: BTreeMap<Account, Limit>,
    /// By group; the largest of a user's groups counts.
    pub groups: BTreeMap<Account, Limit>,
}

/// A number of ports, or no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// At most so many.
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

/// Which keys a file sets, as [`Key::name`] has them. The file does not decide about the others.
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
    /// Read the file at `path`. None there: the defaults.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, Vec<Diagnostic>> {
        Self::load_given(path).map(|(config, _)| config)
    }

    /// The same, and which keys the file sets.
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

    /// Read a text; `file` is what complaints call it.
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
            config.read(&mut report, &document);
            given = Given::of(&document);
        }
        if report.is_clean() { Ok((config, given)) } else { Err(report.into_diagnostics()) }
    }

    /// Where the store is: what the environment variable `PORTKEEP_STATE_DIR` says, else what is configured.
    pub fn state_dir(&self) -> PathBuf {
        match std::env::var_os("PORTKEEP_STATE_DIR") {
            Some(folder) if !folder.is_empty() => folder.into(),
            _ => self.state_dir.clone(),
        }
    }

    fn read(&mut self, report: &mut Report<'_>, document: &DeTable<'_>) {
        for entry in document::entries(document) {
            match entry.key() {
                "pool" => {
                    if let Some(pool) = pool(report, &entry) {
                        self.pool = pool;
                    }
                }
                "deny_errno" => match entry.string(report).map(Errno::from_name) {
                    Some(Some(errno @ (Errno::EADDRINUSE | Errno::EACCES))) => self.deny_errno = errno,
                    Some(_) => report.say(entry.at(), "`deny_errno` is \"EADDRINUSE\" or \"EACCES\""),
                    None => {}
                },
                "administrators" => self.administrators = stanza::account(report, "administrators", entry.value()),
                "watchers" => self.watchers = stanza::account(report, "watchers", entry.value()),
                "enforce" => self.enforce = folder(report, &entry),
                "serve" => self.serve = folder(report, &entry),
                "state_dir" => {
                    if let Some(folder) = folder(report, &entry) {
                        self.state_dir = folder;
                    }
                }
                "quota" => self.quota.read(report, &entry),
                "privileged" => {
                    for inner in inner(report, &entry) {
                        match inner.key() {
                            "users" => self.privileged.users = accounts(report, &inner),
                            "groups" => self.privileged.groups = accounts(report, &inner),
                            _ => inner.unknown(report, known("privileged.")),
                        }
                    }
                }
                "events" => {
                    for inner in inner(report, &entry) {
                        match (inner.key(), number(inner.value().get_ref())) {
                            ("per_second", Some(number)) => self.events.per_second = number,
                            ("per_second", None) => report.say(inner.at(), "`per_second` is a number from 0 on"),
                            _ => inner.unknown(report, known("events.")),
                        }
                    }
                }
                _ => entry.unknown(report, known("")),
            }
        }
    }
}

impl Quota {
    fn read(&mut self, report: &mut Report<'_>, entry: &Entry<'_, '_>) {
        for inner in inner(report, entry) {
            match inner.key() {
                "default" => {
                    if let Some(limit) = limit(report, &inner) {
                        self.default = limit;
                    }
                }
                "containers" => {
                    if let Some(limit) = limit(report, &inner) {
                        self.containers = limit;
                    }
                }
                "users" => self.users = limits(report, &inner),
                "groups" => self.groups = limits(report, &inner),
                _ => inner.unknown(report, known("quota.")),
            }
        }
    }
}

/// The keys of a table ("" for the file itself), from [`KEYS`].
fn known(table: &'static str) -> impl Iterator<Item = &'static str> + Clone {
    let mut last = "";
    KEYS.iter().filter_map(move |key| {
        let key = key.name.strip_prefix(table)?.split('.').next()?;
        // The keys of a table stand together.
        (std::mem::replace(&mut last, key) != key).then_some(key)
    })
}

fn inner<'t, 'i>(report: &mut Report<'_>, entry: &Entry<'t, 'i>) -> Vec<Entry<'t, 'i>> {
    entry.table(report).map(document::entries).unwrap_or_default()
}

fn number(value: &DeValue<'_>) -> Option<u32> {
    u32::try_from(integer(value)?).ok()
}

fn pool(report: &mut Report<'_>, entry: &Entry<'_, '_>) -> Option<Option<PortRange>> {
    match entry.string(report)? {
        "none" => Some(None),
        text => {
            let read = text.parse().map_err(|error: portkeep_core::ParsePortsError| {
                report.advise(entry.at(), error.to_string(), "write \"61000-65535\", or \"none\" for no pool");
            });
            read.ok().map(Some)
        }
    }
}

fn folder(report: &mut Report<'_>, entry: &Entry<'_, '_>) -> Option<PathBuf> {
    let path = PathBuf::from(entry.string(report)?);
    if path.is_absolute() && !path.as_os_str().to_string_lossy().contains('\0') {
        return Some(path);
    }
    report.say(entry.at(), format!("`{}` wants an absolute path", entry.key()));
    None
}

fn limit(report: &mut Report<'_>, entry: &Entry<'_, '_>) -> Option<Limit> {
    let value = entry.value().get_ref();
    match (number(value), value) {
        (Some(ports), _) => return Some(Limit::Ports(ports)),
        (None, DeValue::String(text)) if text == "unlimited" => return Some(Limit::Unlimited),
        (None, DeValue::Integer(_) | DeValue::String(_)) => {
            report.say(entry.at(), "a quota is a number of ports from 0 on, or \"unlimited\"");
        }
        (None, other) => {
            report.say(entry.at(), format!("a quota is a number of ports or \"unlimited\", not {}", kind(other)));
        }
    }
    None
}

fn limits(report: &mut Report<'_>, entry: &Entry<'_, '_>) -> BTreeMap<Account, Limit> {
    let mut limits = BTreeMap::new();
    for inner in inner(report, entry) {
        match inner.key().parse::<Account>() {
            Err(error) => report.say(inner.key_at(), error.to_string()),
            Ok(account) => {
                if let Some(limit) = limit(report, &inner) {
                    limits.insert(account, limit);
                }
            }
        }
    }
    limits
}

fn accounts(report: &mut Report<'_>, entry: &Entry<'_, '_>) -> Vec<Account> {
    let values = entry.array(report).into_iter().flatten();
    values.filter_map(|value| stanza::account(report, entry.key(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Vec<String>> {
        Config::parse(Path::new("c"), text).map_err(|wrong| wrong.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn everything_can_be_set() {
        let config = parse(
            r#"
pool = "20000-20999"
deny_errno = "EACCES"
administrators = "netadmin"
watchers = 42
enforce = "/sys/fs/cgroup/a"
serve = "/sys/fs/cgroup/a/b"
state_dir = "/srv/portkeep"
[quota]
default = 7
containers = 8
[quota.users]
alice = 4096
bob = "unlimited"
1000 = 5
[quota.groups]
web = 1
[privileged]
users = ["www-data", 33]
groups = ["web"]
[events]
per_second = 0
"#,
        )
        .unwrap();
        let name = |name: &str| Account::Name(name.into());
        let expected = Config {
            pool: PortRange::inclusive(20000, 20999).ok(),
            deny_errno: Errno::EACCES,
            administrators: Some(name("netadmin")),
            watchers: Some(Account::Id(42)),
            enforce: Some("/sys/fs/cgroup/a".into()),
            serve: Some("/sys/fs/cgroup/a/b".into()),
            state_dir: "/srv/portkeep".into(),
            quota: Quota {
                default: Limit::Ports(7),
                containers: Limit::Ports(8),
                users: [
                    (name("alice"), Limit::Ports(4096)),
                    (name("bob"), Limit::Unlimited),
                    (Account::Id(1000), Limit::Ports(5)),
                ]
                .into(),
                groups: [(name("web"), Limit::Ports(1))].into(),
            },
            privileged: Privileged { users: vec![name("www-data"), Account::Id(33)], groups: vec![name("web")] },
            events: Events { per_second: 0 },
        };
        assert_eq!(config, expected);
        assert_eq!(parse("").unwrap(), Config::default());
        assert_eq!(parse("pool = \"none\"").unwrap().pool, None);
    }

    /// The line that sets a key of the table to a value.
    fn setting(key: &Key, value: &str) -> String {
        match key.name.replace("NAME", "someone").rsplit_once('.') {
            None => format!("{} = {value}\n", key.name),
            Some((table, key)) => format!("[{table}]\n{key} = {value}\n"),
        }
    }

    #[test]
    fn the_table_of_keys_is_what_the_parser_knows() {
        for key in KEYS {
            let set = parse(&setting(key, key.example)).unwrap_or_else(|wrong| panic!("{}: {wrong:?}", key.name));
            assert_ne!(set, Config::default(), "{} does nothing", key.name);
            // A default that is TOML is what is there when nothing is said.
            if key.default.starts_with(['"', '[']) || key.default.parse::<u32>().is_ok() {
                assert_eq!(parse(&setting(key, key.default)).unwrap(), Config::default(), "{}", key.name);
            }
            assert!(key.text.ends_with('.') && !key.kind.is_empty(), "{}", key.name);
            // No key takes just anything.
            assert!(parse(&setting(key, "1.5")).is_err(), "{}", key.name);
        }
    }

    /// The other way round: what the parser knows is in the table. It says itself what it knows, when asked for what
    /// nobody knows, and it says so from the table; so a key that is read but not in the table is looked for in the source.
    #[test]
    fn what_the_parser_knows_is_in_the_table() {
        let source = include_str!("config.rs");
        let source = &source[source.find("    fn read(").unwrap()..source.find("/// The keys of a table").unwrap()];
        let mut read = 0;
        for (at, _) in source.match_indices("\" =>").chain(source.match_indices("\", Some(")) {
            let key = source[..at].rsplit('"').next().unwrap();
            let known = KEYS.iter().any(|documented| documented.name.split('.').any(|part| part == key));
            assert!(known, "`{key}` is read but not in KEYS");
            read += 1;
        }
        assert!(read >= 14, "{read} keys found in the source");
    }

    #[test]
    fn one_mistake_refuses_the_file_and_all_are_reported() {
        let wrong = parse(
            "pol = 1\npool = \"x\"\ndeny_errno = \"EPERM\"\nadministrators = \"\"\nenforce = \"a\"\n[quota]\ndefault = -1\nuser = 1\n\
             [quota.users]\n\"a b\" = 1\nc = \"lots\"\n[privileged]\nusers = \"x\"\ngroups = [true]\n[events]\nper_second = \"\"\n",
        )
        .unwrap_err();
        let places: Vec<&str> = wrong.iter().map(|w| w.split(": ").next().unwrap()).collect();
        let expected = [
            "c:1:1", "c:2:8", "c:3:14", "c:4:18", "c:5:11", "c:7:11", "c:8:1", "c:10:1", "c:11:5", "c:13:9", "c:14:11",
            "c:16:14",
        ];
        assert_eq!(places, expected, "{wrong:#?}");
        assert!(wrong[0].ends_with("help: did you mean `pool`?"), "{}", wrong[0]);
        assert!(wrong[6].ends_with("help: did you mean `users`?"), "{}", wrong[6]);
        let unknown = parse("zzz = 1").unwrap_err();
        assert!(
            unknown[0].ends_with("the keys here are pool, deny_errno, administrators, watchers, enforce, serve, state_dir, quota, privileged, events"),
            "{unknown:?}"
        );
    }

    #[test]
    fn a_file_decides_about_the_keys_that_it_contains() {
        let text = "pool = \"none\"\n[quota]\ndefault = 1024\n[quota.users]\nalice = 1\n";
        let (_, given) = Config::parse_given(Path::new("c"), text).unwrap();
        assert!(["pool", "quota.default", "quota.users"].into_iter().all(|key| given.has(key)));
        assert!(!["deny_errno", "quota", "quota.containers", "quota.groups"].into_iter().any(|key| given.has(key)));
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Config::load_given(&dir.path().join("portkeep.toml")).unwrap().1, Given::default());
    }

    #[test]
    fn no_file_is_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Config::load(&dir.path().join("portkeep.toml")).unwrap(), Config::default());
        assert!(Config::load(dir.path()).unwrap_err()[0].to_string().contains("is a directory"));
    }
}
