//! The keys of the configuration.

use std::{collections::BTreeMap, path::PathBuf};

use portkeep_core::{Errno, PortRange};
use serde::Serialize;
use toml::de::DeValue;

use super::{Config, Limit};
use crate::{
    Account,
    diagnostic::Report,
    document::{self, Entry, integer, kind},
    stanza,
};

/// One key of the configuration, as the manual page shows it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Key {
    /// Its name with its table, as in `quota.default`. The name of a user or group is written as `NAME`.
    pub name: &'static str,
    /// The type of its value.
    pub kind: &'static str,
    /// The default, in TOML or in words.
    pub default: &'static str,
    /// Its purpose.
    pub text: &'static str,
    /// A value that could be set, in TOML.
    pub example: &'static str,
    /// Puts the value of an entry into the configuration. If the value is wrong, it reports why.
    #[serde(skip)]
    pub(super) read: fn(&mut Config, &mut Report<'_>, &Entry<'_, '_>),
}

/// All keys.
pub const KEYS: &[Key] = &[
    Key {
        name: "pool",
        kind: "\"FIRST-LAST\" or \"none\"",
        default: "\"61000-65535\"",
        text: "Requests without a port are served from these ports first. Pool ports that are not reserved are free for \
               every program. Keep the pool outside net.ipv4.ip_local_port_range. \"none\": no such requests.",
        example: "\"20000-20999\"",
        read: |config, report, entry| set(&mut config.pool, pool(report, entry)),
    },
    Key {
        name: "deny_errno",
        kind: "\"EADDRINUSE\" or \"EACCES\"",
        default: "\"EADDRINUSE\"",
        text: "The error of an outsider's bind of a reserved port. After EADDRINUSE most programs try the next port; \
               Windows gives EACCES.",
        example: "\"EACCES\"",
        read: |config, report, entry| match entry.string(report).map(Errno::from_name) {
            Some(Some(errno @ (Errno::EADDRINUSE | Errno::EACCES))) => config.deny_errno = errno,
            Some(_) => report.say(entry.at(), "`deny_errno` is \"EADDRINUSE\" or \"EACCES\""),
            None => {}
        },
    },
    Key {
        name: "administrators",
        kind: "group, by name or number",
        default: "root only",
        text: "A group whose members may create and delete persistent reservations, as root may.",
        example: "\"netadmin\"",
        read: |config, report, entry| config.administrators = stanza::account(report, entry.key(), entry.value()),
    },
    Key {
        name: "watchers",
        kind: "group, by name or number",
        default: "portkeep-watch, if there is such a group",
        text: "A group whose members may follow events and read the agent's counters, as `portkeep watch` and portkeep-web \
               do. They may change nothing. Administrators may do so too.",
        example: "\"monitoring\"",
        read: |config, report, entry| config.watchers = stanza::account(report, entry.key(), entry.value()),
    },
    Key {
        name: "enforce",
        kind: "cgroup folder",
        default: "the whole host",
        text: "The cgroup folder whose sockets are kept off reserved ports.",
        example: "\"/sys/fs/cgroup/system.slice\"",
        read: |config, report, entry| config.enforce = folder(report, entry),
    },
    Key {
        name: "serve",
        kind: "cgroup folder",
        default: "that of enforce",
        text: "The cgroup folder whose sockets may make reservations.",
        example: "\"/sys/fs/cgroup/system.slice\"",
        read: |config, report, entry| config.serve = folder(report, entry),
    },
    Key {
        name: "state_dir",
        kind: "folder",
        default: "\"/var/lib/portkeep\"",
        text: "Where the store of persistent reservations is. The environment variable PORTKEEP_STATE_DIR overrides it.",
        example: "\"/srv/portkeep\"",
        read: |config, report, entry| set(&mut config.state_dir, folder(report, entry)),
    },
    Key {
        name: "quota.default",
        kind: "number or \"unlimited\"",
        default: "1024",
        text: "How many ports one user may hold at a time in runtime reservations, counted once for each transport. \
               Subordinate uids (/etc/subuid) count as their user. Root has no limit.",
        example: "256",
        read: |config, report, entry| set(&mut config.quota.default, limit(report, entry)),
    },
    Key {
        name: "quota.containers",
        kind: "number or \"unlimited\"",
        default: "4096",
        text: "The same for root in each network namespace but the one where Portkeep was brought up: in a container root \
               may be anybody.",
        example: "512",
        read: |config, report, entry| set(&mut config.quota.containers, limit(report, entry)),
    },
    Key {
        name: "quota.users.NAME",
        kind: "number or \"unlimited\"",
        default: "quota.default",
        text: "The same for one user, by name or number. It overrides the groups' quotas.",
        example: "4096",
        read: |config, report, entry| config.quota.users = limits(report, entry),
    },
    Key {
        name: "quota.groups.NAME",
        kind: "number or \"unlimited\"",
        default: "quota.default",
        text: "The same for each member of a group, by name or number. The largest quota of the user's groups counts.",
        example: "\"unlimited\"",
        read: |config, report, entry| config.quota.groups = limits(report, entry),
    },
    Key {
        name: "privileged.users",
        kind: "list of users",
        default: "[]",
        text: "Users that may make runtime reservations of ports below net.ipv4.ip_unprivileged_port_start.",
        example: "[\"www-data\", 1000]",
        read: |config, report, entry| config.privileged.users = accounts(report, entry),
    },
    Key {
        name: "privileged.groups",
        kind: "list of groups",
        default: "[]",
        text: "Groups whose members may reserve these ports.",
        example: "[\"web\"]",
        read: |config, report, entry| config.privileged.groups = accounts(report, entry),
    },
    Key {
        name: "events.per_second",
        kind: "number",
        default: "20",
        text: "The largest number of events of one account that are reported one by one in a second. Further events are \
               counted and reported as a summary. 0: summaries only.",
        example: "5",
        read: |config, report, entry| match number(entry.value().get_ref()) {
            Some(number) => config.events.per_second = number,
            None => report.say(entry.at(), "`per_second` is a number from 0 on"),
        },
    },
];

/// Put a value in its place, if there is one.
fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
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
    for inner in entry.table(report).map(document::entries).unwrap_or_default() {
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
