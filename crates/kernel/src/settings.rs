//! Settings that an administrator chooses when kernel enforcement is brought up.

use portkeep_core::{Errno, PortRange, cipher, defaults, wire};
use zerocopy::FromZeros;

use crate::{
    layout::{Config, PRIVILEGED_GROUPS},
    maps::{MapAccessError, Maps},
    object::BUILD,
};

/// Settings of the BPF programs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// Ports that wildcard requests are served from. `None`: no wildcard requests.
    pub pool: Option<PortRange>,
    /// Ports one user may hold at a time, counted once for each transport. Root has no limit.
    pub quota: u32,
    /// Cookie of the network namespace whose root has no limit. In each other namespace root has the limit
    /// [`Settings::quota_elsewhere`]. `None`: root has no limit anywhere.
    pub home: Option<u64>,
    /// Ports that root of another namespace than `home` may hold.
    pub quota_elsewhere: u32,
    /// How much of the port table one account may use, in words of 64 ports of one transport and namespace. The table
    /// has room for 1,048,576 words.
    pub share: u32,
    /// The error of an outsider's bind.
    pub deny_errno: Errno,
    /// It ends with the last `portkeep run` that needs it.
    pub transient: bool,
    /// Group that may administer besides root; 0: none.
    pub admin_gid: u32,
    /// In `home`, acquiring ports below this one requires a right. Root, processes with CAP_NET_BIND_SERVICE,
    /// [`Settings::privileged_gids`] and the users of [`crate::Maps::set_privileged_users`] have it.
    pub unprivileged_start: u16,
    /// Groups that have the right; the first [`PRIVILEGED_GROUPS`] count.
    pub privileged_gids: Vec<u32>,
    /// Whether limits of groups are looked up, see [`crate::Maps::set_group_limits`].
    pub group_quotas: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pool: Some(defaults::POOL),
            quota: defaults::QUOTA,
            home: None,
            quota_elsewhere: defaults::CONTAINER_QUOTA,
            share: 1 << 16,
            deny_errno: Errno::EADDRINUSE,
            transient: false,
            admin_gid: 0,
            unprivileged_start: defaults::UNPRIVILEGED_START,
            privileged_gids: Vec::new(),
            group_quotas: false,
        }
    }
}

impl Settings {
    /// The value of the `config` map, with a fresh cipher key and secret.
    pub(crate) fn to_config(&self, enforce: (u64, u32), serve: u64) -> Result<Config, getrandom::Error> {
        let mut random = [0u8; 32];
        getrandom::fill(&mut random)?;
        let word = |i: usize| u32::from_ne_bytes([random[i], random[i + 1], random[i + 2], random[i + 3]]);
        let long = |i: usize| u64::from(word(i)) << 32 | u64::from(word(i + 4));
        let mut config = Config::new_zeroed();
        config.abi = wire::ABI;
        config.round_keys = cipher::expand([word(0), word(4), word(8), word(12)]);
        config.secret = [long(16), long(24)];
        config.since = crate::sys::monotonic_ns();
        config.build = BUILD;
        (config.enforce, config.enforce_level) = enforce;
        config.serve = serve;
        config.transient = self.transient.into();
        self.change(&mut config);
        Ok(config)
    }

    /// The settings that can change while kernel enforcement is up.
    pub(crate) fn change(&self, config: &mut Config) {
        config.deny_errno = self.deny_errno.0.unsigned_abs();
        config.quota = self.quota;
        config.home = self.home.unwrap_or(0);
        config.quota_elsewhere = self.quota_elsewhere;
        config.share = self.share;
        (config.pool_first, config.pool_last) = self.pool.map_or((0, 0), |pool| (pool.start(), pool.last()));
        config.admin_gid = self.admin_gid;
        config.group_quotas = self.group_quotas.into();
        config.unprivileged_start = self.unprivileged_start.into();
        config.privileged_gids = [0; PRIVILEGED_GROUPS];
        for (place, gid) in config.privileged_gids.iter_mut().zip(&self.privileged_gids) {
            *place = *gid;
        }
    }
}

impl Maps {
    /// Change the settings that can change while kernel enforcement is up.
    pub fn reconfigure(&mut self, settings: &Settings) -> Result<Config, MapAccessError> {
        let mut config = self.config()?;
        settings.change(&mut config);
        self.set_config(&config)?;
        Ok(config)
    }
}
