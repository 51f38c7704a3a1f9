//! The configuration file, put into effect.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use portkeep_core::{Errno, defaults};
use portkeep_kernel::{self as kernel, Admin, Maps, PRIVILEGED_GROUPS, Settings, cgroup, netns};
use portkeep_persist::{
    Account, Config, Diagnostic,
    config::{Given, Limit, Privileged, WATCHERS},
};

use portkeep_observe::{
    accounts::{self, Remembered},
    subordinate::{self, Owners},
};

use super::{peer::Peer, programs, reserved_ports::ReservedPorts, sysctl};

/// The place and the content of the configuration.
#[derive(Debug)]
pub(crate) struct Policy {
    file: PathBuf,
    /// The root folder of the system whose subordinate uids count.
    root: PathBuf,
    config: Config,
    /// The keys that the file sets. Other keys stay as `up` set them.
    given: Given,
    /// The configuration of the BPF programs when this agent started, as `up` and its flags set it.
    base: kernel::Config,
    /// The administrators' group, 0 = root only.
    admin_gid: u32,
    /// The group whose members may follow events.
    watchers_gid: Option<u32>,
    owners: Owners,
    /// The members of these two groups, and the accounts that may have privileged ports.
    members: Remembered<(u32, u32), bool>,
    privileged: Remembered<u32, bool>,
}

/// A limit as the BPF programs keep it.
fn ports(limit: Limit) -> u32 {
    match limit {
        // 0 means "the default" there, and the most means "none".
        Limit::Ports(number) => number.clamp(1, u32::MAX - 1),
        Limit::Unlimited => u32::MAX,
    }
}

/// The quota of a user with this primary group, as the configuration has it.
pub fn quota(config: &Config, uid: u32, gid: u32) -> Limit {
    let quota = &config.quota;
    if let Some((_, limit)) = quota.users.iter().find(|(user, _)| accounts::uid(user) == Ok(uid)) {
        return *limit;
    }
    let has = |group: &Account| accounts::gid(group) == Ok(gid) || accounts::members(group).contains(&uid);
    let of_groups = quota.groups.iter().filter(|(group, _)| has(group)).map(|(_, limit)| *limit).max();
    of_groups.unwrap_or(if uid == 0 { quota.containers } else { quota.default })
}

/// The settings for the BPF programs that follow from a configuration, and the accounts that cannot be looked up.
pub fn settings(config: &Config) -> (Settings, Vec<String>) {
    let mut complaints = Vec::new();
    let mut settings = Settings::default();
    settings.pool = config.pool;
    settings.deny_errno = config.deny_errno;
    settings.quota = match config.quota.default {
        Limit::Ports(number) => number,
        Limit::Unlimited => u32::MAX,
    };
    // In this namespace root is the machine's root. In the namespaces of containers any user may be root.
    settings.home = netns::current_cookie().ok();
    settings.quota_elsewhere = match config.quota.containers {
        Limit::Ports(number) => number,
        Limit::Unlimited => u32::MAX,
    };
    settings.group_quotas = !config.quota.groups.is_empty();
    // A namespace without the sysctl has no such ports either.
    settings.unprivileged_start = sysctl::unprivileged_port_start()
        .ok()
        .and_then(|start| u16::try_from(start).ok())
        .unwrap_or(defaults::UNPRIVILEGED_START);
    for group in &config.privileged.groups {
        match accounts::gid(group) {
            Ok(gid) => settings.privileged_gids.push(gid),
            Err(why) => complaints.push(format!("privileged.groups: {why}")),
        }
    }
    if settings.privileged_gids.len() > PRIVILEGED_GROUPS {
        complaints.push(format!("privileged.groups: the first {PRIVILEGED_GROUPS} groups count, the others do not"));
    }
    if let Some(group) = &config.administrators {
        match accounts::gid(group) {
            Ok(gid) => settings.admin_gid = gid,
            Err(why) => complaints.push(format!("administrators: {why}; only root may administer")),
        }
    }
    (settings, complaints)
}

/// Make subordinate uids share their users' quotas; returns what could not be read.
pub(super) fn share_quotas(maps: &mut Maps, root: &Path) -> anyhow::Result<Vec<String>> {
    Ok(share_quotas_of(maps, root)?.1)
}

fn share_quotas_of(maps: &mut Maps, root: &Path) -> anyhow::Result<(Owners, Vec<String>)> {
    let (ranges, complaints) = subordinate::read(root);
    let owners = Owners::new(ranges);
    maps.set_accounts(owners.ranges())?;
    Ok((owners, complaints))
}

/// The present settings, with the changes that the file contains.
fn with_given(base: &kernel::Config, wanted: Settings, given: &Given) -> Settings {
    let wanted_home = wanted.home;
    let mut settings = wanted;
    if !given.has("pool") {
        settings.pool = programs::pool(base);
    }
    if !given.has("deny_errno") {
        settings.deny_errno = Errno(base.deny_errno as i32);
    }
    if !given.has("administrators") {
        settings.admin_gid = base.admin_gid;
    }
    if !given.has("quota.default") {
        settings.quota = base.quota;
    }
    if !given.has("quota.containers") {
        settings.quota_elsewhere = base.quota_elsewhere;
    }
    if !given.has("privileged.groups") {
        settings.privileged_gids = base.privileged_gids.into_iter().filter(|gid| *gid != 0).collect();
    }
    settings.share = base.share;
    settings.home = match base.home {
        // `up` did not set which namespace is the machine's own. A quota for the other namespaces requires it.
        0 if given.has("quota.containers") => wanted_home,
        0 => None,
        home => Some(home),
    };
    // The namespace of `up` decides which ports are privileged; the agent may not be in it.
    if settings.home.is_none() || settings.home != netns::current_cookie().ok() {
        settings.unprivileged_start = u16::try_from(base.unprivileged_start).unwrap_or(u16::MAX);
    }
    settings
}

/// A pool that would leave too few ephemeral ports in the agent's namespace is not applied (N5).
fn keep_ephemeral_ports(
    maps: &Maps,
    reserved_ports: &ReservedPorts,
    settings: &mut Settings,
) -> anyhow::Result<Option<String>> {
    let now = programs::pool(&maps.config()?);
    let Some(pool) = settings.pool.filter(|pool| Some(*pool) != now) else { return Ok(None) };
    Ok(reserved_ports.check_pool_here(maps, netns::current_cookie()?, pool)?.err().map(|why| {
        settings.pool = now;
        format!("pool {pool}: {why}; the pool stays as it was")
    }))
}

impl Policy {
    /// Read the file. If it has mistakes, it is refused as a whole.
    pub(crate) fn load(file: PathBuf, root: PathBuf, base: kernel::Config) -> Result<Self, Vec<Diagnostic>> {
        let (config, given) = Config::load_given(&file)?;
        Ok(Self {
            file,
            root,
            config,
            given,
            admin_gid: base.admin_gid,
            watchers_gid: None,
            base,
            owners: Owners::default(),
            members: Remembered::default(),
            privileged: Remembered::default(),
        })
    }

    /// The accounts of the uids.
    pub(crate) fn owners(&self) -> &Owners {
        &self.owners
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Read the file again. If it has mistakes, nothing changes.
    pub(crate) fn reload(&mut self) -> Result<(), Vec<Diagnostic>> {
        (self.config, self.given) = Config::load_given(&self.file)?;
        self.members = Remembered::default();
        self.privileged = Remembered::default();
        Ok(())
    }

    /// Apply it to the BPF programs that are up. Keys that the file does not set stay as `up` set them. Returns what
    /// could not be applied.
    pub(crate) fn apply(
        &mut self,
        maps: &mut Maps,
        admin: &Admin,
        reserved_ports: &ReservedPorts,
    ) -> anyhow::Result<Vec<String>> {
        let (owners, mut complaints) = share_quotas_of(maps, &self.root)?;
        self.owners = owners;
        let (wanted, wrong) = settings(&self.config);
        complaints.extend(wrong);
        let mut settings = with_given(&self.base, wanted, &self.given);
        complaints.extend(keep_ephemeral_ports(maps, reserved_ports, &mut settings)?);
        self.admin_gid = settings.admin_gid;
        self.watchers_gid = match &self.config.watchers {
            Some(group) => accounts::gid(group).map_err(|why| complaints.push(format!("watchers: {why}"))).ok(),
            None => accounts::gid(&Account::Name(WATCHERS.to_owned())).ok(),
        };
        maps.set_privileged_users(&self.privileged_uids(&mut complaints))?;
        let now = maps.reconfigure(&settings)?;
        for (key, wanted, have) in
            [("enforce", &self.config.enforce, now.enforce), ("serve", &self.config.serve, now.serve)]
        {
            if let Some(wanted) = wanted
                && cgroup::id(wanted).ok() != Some(have)
            {
                complaints.push(format!(
                    "a change of {key} requires `portkeep down` and `portkeep up`; another cgroup is in effect"
                ));
            }
        }
        self.apply_quotas(maps, admin, &mut complaints)?;
        Ok(complaints)
    }

    fn apply_quotas(&self, maps: &mut Maps, admin: &Admin, complaints: &mut Vec<String>) -> anyhow::Result<()> {
        let mut of_users: BTreeMap<u32, u32> = BTreeMap::new();
        let mut of_groups: BTreeMap<u32, u32> = BTreeMap::new();
        // The BPF programs know a process's primary group only. Accounts that the group database lists as members are
        // entered here.
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

    /// Users who may have privileged ports: those that are named, and the members that the group database lists. The
    /// BPF programs know a process's own groups.
    fn privileged_uids(&self, complaints: &mut Vec<String>) -> BTreeSet<u32> {
        let mut uids: BTreeSet<u32> = self.config.privileged.groups.iter().flat_map(accounts::members).collect();
        for user in &self.config.privileged.users {
            match accounts::uid(user) {
                Ok(uid) => drop(uids.insert(uid)),
                Err(why) => complaints.push(format!("privileged.users: {why}")),
            }
        }
        uids
    }

    /// Root, or a member of the administrators' group. Uid 0 without the rights of root is neither of them.
    pub(crate) fn is_administrator(&self, peer: &Peer) -> bool {
        peer.is_root || self.admin_gid != 0 && self.is_member(peer, self.admin_gid)
    }

    /// An administrator, or a member of the group that may follow events.
    pub(crate) fn is_watcher(&self, peer: &Peer) -> bool {
        self.is_administrator(peer) || self.watchers_gid.is_some_and(|gid| self.is_member(peer, gid))
    }

    /// Uid 0 without the rights of root is a member of no group.
    fn is_member(&self, peer: &Peer, gid: u32) -> bool {
        let listed = || self.members.of((peer.uid, gid), |(uid, gid)| accounts::belongs(*uid, *gid));
        peer.uid != 0 && (peer.gid == gid || listed())
    }

    /// Whether a user other than root may acquire privileged ports.
    pub(crate) fn may_have_privileged(&self, uid: u32) -> bool {
        let Privileged { users, groups } = &self.config.privileged;
        uid != 0
            && self.privileged.of(uid, |uid| {
                users.iter().any(|user| accounts::uid(user) == Ok(*uid))
                    || groups.iter().any(|group| accounts::gid(group).is_ok_and(|gid| accounts::belongs(*uid, gid)))
            })
    }
}
