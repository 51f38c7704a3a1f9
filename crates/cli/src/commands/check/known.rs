//! The names that exist on a system: users, groups and units.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use portkeep::persistent::{Account, Audience};
use portkeep_kernel::cgroup;
use portkeep_observe::accounts;
use portkeep_persist::Config;

use crate::units;

/// A sentence about a server that binds as root although the reservation is for another user.
pub(crate) fn binds_as_root(audience: &Audience) -> Option<String> {
    let is_root = |one: &Audience| matches!(one, Audience::User(account) if accounts::uid(account) == Ok(0));
    let each = audience.each();
    let helps = |one: &Audience| is_root(one) || matches!(one, Audience::Unit(_) | Audience::Cgroup(_));
    if each.iter().any(helps) {
        return None;
    }
    let user = each.iter().find_map(|one| if let Audience::User(user) = one { Some(user) } else { None })?;
    Some(format!("a server that binds as root before it becomes {user} cannot bind these ports"))
}

/// A system, this one or one that is mounted somewhere.
#[derive(Debug)]
pub(crate) struct Known {
    root: PathBuf,
    /// Users and groups of another system, by name and number, from its files. `None` for this system: it can have other sources of them.
    others: Option<(HashSet<String>, HashSet<String>)>,
    /// Without systemd there are no units that could be missing.
    has_units: bool,
}

impl Known {
    pub(crate) fn below(root: &Path) -> Self {
        let names = |file: &str| {
            let text = fs::read_to_string(root.join(file)).unwrap_or_default();
            // The name is the first field, the number the third.
            text.lines().flat_map(|line| line.split(':').take(3).step_by(2)).map(str::to_owned).collect()
        };
        Self {
            others: (root != Path::new("/")).then(|| (names("etc/passwd"), names("etc/group"))),
            has_units: ["usr/lib/systemd/system", "lib/systemd/system"].iter().any(|dir| root.join(dir).is_dir()),
            root: root.to_owned(),
        }
    }

    /// Whether it is the system that runs here.
    pub(super) const fn is_this_system(&self) -> bool {
        self.others.is_none()
    }

    /// A sentence about what does not exist.
    pub(crate) fn missing(&self, audience: &Audience) -> Option<String> {
        match audience {
            Audience::User(account) => self.missing_user(account),
            Audience::Group(account) => self.missing_group(account),
            Audience::Unit(unit) => self.missing_unit(unit),
            Audience::Several(several) => several.iter().find_map(|one| self.missing(one)),
            Audience::Cgroup(path) => self.missing_cgroup(path),
            Audience::Administrators => None,
        }
    }

    /// The same for all that a configuration names.
    pub(super) fn missing_of_config(&self, config: &Config) -> Vec<String> {
        let users = config.quota.users.keys().chain(&config.privileged.users);
        let groups = config
            .quota
            .groups
            .keys()
            .chain(&config.privileged.groups)
            .chain(&config.administrators)
            .chain(&config.watchers);
        let folders = [&config.enforce, &config.serve].into_iter().flatten().filter(|folder| !folder.is_dir());
        let mut missing: Vec<String> = users
            .filter_map(|user| self.missing_user(user))
            .chain(groups.filter_map(|group| self.missing_group(group)))
            .chain(folders.map(|folder| format!("there is no cgroup {}", folder.display())))
            .collect();
        missing.sort();
        missing.dedup();
        missing
    }

    fn missing_user(&self, account: &Account) -> Option<String> {
        let exists = match &self.others {
            Some((users, _)) => users.contains(&account.to_string()),
            None => accounts::is_user(account),
        };
        (!exists).then(|| format!("there is no user {account}"))
    }

    fn missing_group(&self, account: &Account) -> Option<String> {
        let exists = match &self.others {
            Some((_, groups)) => groups.contains(&account.to_string()),
            None => accounts::is_group(account),
        };
        (!exists).then(|| format!("there is no group {account}"))
    }

    /// The cgroups of another system are not known, and without cgroup v2 there are none that could be missing.
    fn missing_cgroup(&self, path: &str) -> Option<String> {
        let root = cgroup::root().filter(|_| self.is_this_system())?;
        (!root.join(path.trim_start_matches('/')).is_dir()).then(|| format!("there is no cgroup {path}"))
    }

    fn missing_unit(&self, unit: &str) -> Option<String> {
        // Scopes have no files: programs make them.
        if !self.has_units || !unit.ends_with(".service") {
            return None;
        }
        let template = unit.split_once('@').map(|(stem, _)| format!("{stem}@.service"));
        let names: Vec<&str> = std::iter::once(unit).chain(template.as_deref()).collect();
        let exists = units::FOLDERS.iter().any(|dir| {
            // An alias is a link. Its target is a path on that system, so only the link itself is checked.
            names.iter().any(|name| self.root.join(dir).join(name).symlink_metadata().is_ok())
        });
        (!exists).then(|| format!("there is no unit {unit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_system_has_its_own_users_and_units() {
        let root = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        file("etc/passwd", "web:x:33:33::/:/bin/sh\n");
        file("etc/group", "voice:x:44:\n");
        let known = Known::below(root.path());
        let who = |text: &str| known.missing(&serde_json::from_str(text).unwrap());
        assert_eq!(who(r#"{"kind":"user","value":"web"}"#), None);
        assert_eq!(who(r#"{"kind":"user","value":33}"#), None);
        assert_eq!(who(r#"{"kind":"user","value":4711}"#).as_deref(), Some("there is no user 4711"));
        assert_eq!(who(r#"{"kind":"cgroup","value":"/no/such"}"#), None);
        assert_eq!(who(r#"{"kind":"user","value":"root"}"#).as_deref(), Some("there is no user root"));
        assert_eq!(who(r#"{"kind":"group","value":"voice"}"#), None);
        assert_eq!(who(r#"{"kind":"group","value":"web"}"#).as_deref(), Some("there is no group web"));
        // Without systemd, no unit can be missing.
        assert_eq!(who(r#"{"kind":"unit","value":"a.service"}"#), None);

        file("usr/lib/systemd/system/getty@.service", "");
        file("etc/systemd/system/a.service", "");
        let known = Known::below(root.path());
        let unit = |name: &str| known.missing(&Audience::unit(name).unwrap());
        assert_eq!((unit("a.service"), unit("getty@tty1.service"), unit("session-1.scope")), (None, None, None));
        assert_eq!(unit("b.service").as_deref(), Some("there is no unit b.service"));
    }
}
