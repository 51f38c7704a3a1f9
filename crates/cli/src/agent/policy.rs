//! The configuration file, put into effect.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use portkeep_kernel::{Admin, Maps, Settings, cgroup, netns};
use portkeep_persist::{Config, Diagnostic, config::Limit};

use super::{accounts, subordinate};

/// Where the configuration comes from, and what it says.
#[derive(Debug)]
pub(super) struct Policy {
    file: PathBuf,
    /// The system whose subordinate uids count.
    root: PathBuf,
    config: Config,
    /// The administrators' group, 0 = root only.
    admin_gid: u32,
}

/// A limit as the kernel part keeps it.
fn ports(limit: Limit) -> u32 {
    match limit {
        // 0 means "the default" there, and the most means "none".
        Limit::Ports(number) => number.clamp(1, u32::MAX - 1),
        Limit::Unlimited => u32::MAX,
    }
}

/// The settings of the kernel part that a configuration means, and what cannot be looked up.
pub(crate) fn settings(config: &Config) -> (Settings, Vec<String>) {
    let mut complaints = Vec::new();
    let mut settings = Settings::default();
    settings.pool = config.pool;
    settings.deny_errno = config.deny_errno;
    settings.quota = match config.quota.default {
        Limit::Ports(number) => number,
        Limit::Unlimited => u32::MAX,
    };
    // Here root is root; in the namespaces of containers it may be anybody.
    settings.home = netns::current_cookie().ok();
    settings.quota_elsewhere = match config.quota.containers {
        Limit::Ports(number) => number,
        Limit::Unlimited => u32::MAX,
    };
    settings.group_quotas = !config.quota.groups.is_empty();
    if let Some(group) = &config.administrators {
        match accounts::gid(group) {
            Ok(gid) => settings.admin_gid = gid,
            Err(why) => complaints.push(format!("administrators: {why}; only root may administer")),
        }
    }
    (settings, complaints)
}

/// Let subordinate uids share their users' quotas; returns what could not be read.
pub(crate) fn share_quotas(maps: &mut Maps, root: &Path) -> anyhow::Result<Vec<String>> {
    let (mut ranges, complaints) = subordinate::read(root);
    // Root has no quota that its subordinates could share: each of them has one.
    ranges.retain(|(_, user)| *user != 0);
    maps.set_accounts(&ranges)?;
    Ok(complaints)
}

impl Policy {
    /// Read the file. One with mistakes is refused whole.
    pub(super) fn load(file: PathBuf, root: PathBuf) -> Result<Self, Vec<Diagnostic>> {
        let config = Config::load(&file)?;
        Ok(Self { file, root, config, admin_gid: 0 })
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Read the file again. One with mistakes changes nothing.
    pub(super) fn reload(&mut self) -> Result<(), Vec<Diagnostic>> {
        self.config = Config::load(&self.file)?;
        Ok(())
    }

    /// Put it into effect on the kernel part that is up. Without a file what is up stays as it was brought up. Returns
    /// what could not be put into effect.
    pub(super) fn apply(&mut self, maps: &mut Maps, admin: &Admin) -> anyhow::Result<Vec<String>> {
        let mut complaints = share_quotas(maps, &self.root)?;
        if !self.file.exists() {
            self.admin_gid = maps.config()?.admin_gid;
            return Ok(complaints);
        }
        let (settings, wrong) = settings(&self.config);
        complaints.extend(wrong);
        self.admin_gid = settings.admin_gid;
        let now = maps.reconfigure(&settings)?;
        for (key, wanted, have) in
            [("enforce", &self.config.enforce, now.enforce), ("serve", &self.config.serve, now.serve)]
        {
            if let Some(wanted) = wanted
                && cgroup::id(wanted).ok() != Some(have)
            {
                complaints.push(format!("{key} takes `portkeep down` and `portkeep up`: it is another cgroup now"));
            }
        }
        self.apply_quotas(maps, admin, &mut complaints)?;
        Ok(complaints)
    }

    fn apply_quotas(&self, maps: &mut Maps, admin: &Admin, complaints: &mut Vec<String>) -> anyhow::Result<()> {
        let mut of_users: BTreeMap<u32, u32> = BTreeMap::new();
        let mut of_groups: BTreeMap<u32, u32> = BTreeMap::new();
        // The kernel part knows a process's primary group; who is only listed as a member is entered here.
        for (group, limit) in &self.config.quota.groups {
            match accounts::gid(group) {
                Ok(gid) => drop(of_groups.insert(gid, ports(*limit))),
                Err(why) => complaints.push(format!("quota of a group: {why}")),
            }
            for uid in accounts::members(group) {
                let most = of_users.entry(uid).or_default();
                *most = (*most).max(ports(*limit));
            }
        }
        for (user, limit) in &self.config.quota.users {
            match accounts::uid(user) {
                Ok(uid) => drop(of_users.insert(uid, ports(*limit))),
                Err(why) => complaints.push(format!("quota of a user: {why}")),
            }
        }
        let had: Vec<u32> = maps.own_limits().collect::<Result<_, _>>()?;
        for uid in had.into_iter().filter(|uid| !of_users.contains_key(uid)) {
            admin.set_quota_limit(uid, 0)?;
        }
        for (uid, limit) in of_users {
            admin.set_quota_limit(uid, limit)?;
        }
        Ok(maps.set_group_limits(&of_groups)?)
    }

    /// Root, or a member of the administrators' group.
    pub(super) fn is_administrator(&self, uid: u32, gid: u32) -> bool {
        uid == 0 || self.admin_gid != 0 && (gid == self.admin_gid || accounts::belongs(uid, self.admin_gid))
    }

    /// Whether a user may acquire privileged ports.
    pub(super) fn may_have_privileged(&self, uid: u32) -> bool {
        let privileged = &self.config.privileged;
        uid == 0
            || privileged.users.iter().any(|user| accounts::uid(user) == Ok(uid))
            || privileged.groups.iter().any(|group| accounts::gid(group).is_ok_and(|gid| accounts::belongs(uid, gid)))
    }
}
