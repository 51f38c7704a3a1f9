//! The accounts that ports are charged to, and the rights of users and groups.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use aya::maps::lpm_trie::Key;

use crate::maps::{MapAccessError, Maps, call};

impl Maps {
    /// The limits of groups: ports that each of a group's users may hold, by gid; `u32::MAX` = none.
    pub fn set_group_limits(&mut self, limits: &BTreeMap<u32, u32>) -> Result<(), MapAccessError> {
        let call = call("group_limits");
        let stale: Vec<u32> = self.group_limits.keys().flatten().filter(|gid| !limits.contains_key(gid)).collect();
        for gid in stale {
            self.group_limits.remove(&gid).map_err(call)?;
        }
        for (gid, limit) in limits {
            self.group_limits.insert(gid, limit, 0).map_err(call)?;
        }
        Ok(())
    }

    /// Users who may acquire privileged ports, besides the groups of [`crate::Settings::privileged_gids`].
    pub fn set_privileged_users(&mut self, uids: &BTreeSet<u32>) -> Result<(), MapAccessError> {
        let call = call("privileged");
        let stale: Vec<u32> = self.privileged.keys().flatten().filter(|uid| !uids.contains(uid)).collect();
        for uid in stale {
            self.privileged.remove(&uid).map_err(call)?;
        }
        for uid in uids {
            self.privileged.insert(uid, 1, 0).map_err(call)?;
        }
        let mut config = self.config()?;
        config.privileged_users = (!uids.is_empty()).into();
        self.set_config(&config)
    }

    /// Map subordinate uids to their users, whose quota they share. If ranges overlap, one of them counts. Existing
    /// reservations stay charged to the same account.
    pub fn set_accounts(&mut self, ranges: &[(RangeInclusive<u32>, u32)]) -> Result<(), MapAccessError> {
        let call = call("accounts");
        let mut wanted: BTreeMap<(u32, u32), u32> = BTreeMap::new();
        for (range, user) in ranges {
            wanted.extend(prefixes(range).map(|prefix| (prefix, *user)));
        }
        let known: Vec<_> = self.accounts.keys().collect::<Result<_, _>>().map_err(call)?;
        for key in known.iter().filter(|key| !wanted.contains_key(&(key.prefix_len(), u32::from_be(key.data())))) {
            self.accounts.remove(key).map_err(call)?;
        }
        for ((length, first), user) in wanted {
            self.accounts.insert(&Key::new(length, first.to_be()), user, 0).map_err(call)?;
        }
        let mut config = self.config()?;
        // Root is never a subordinate uid.
        config.accounts_from = ranges.iter().map(|(range, _)| (*range.start()).max(1)).min().unwrap_or(0);
        self.set_config(&config)
    }
}

/// The fewest prefixes that cover a range and nothing else, as with addresses: (bits that count, first number).
fn prefixes(range: &RangeInclusive<u32>) -> impl Iterator<Item = (u32, u32)> {
    let (mut next, last) = (u64::from(*range.start()), u64::from(*range.end()));
    std::iter::from_fn(move || {
        if next > last {
            return None;
        }
        let aligned = if next == 0 { 32 } else { next.trailing_zeros().min(32) };
        let fits = (last - next + 1).ilog2();
        let (bits, first) = (aligned.min(fits), next as u32);
        next += 1 << bits;
        Some((32 - bits, first))
    })
}

#[cfg(test)]
mod tests {
    use super::prefixes;

    #[test]
    fn prefixes_cover_a_range_and_nothing_else() {
        for range in [0..=0, 100_000..=165_535, 1..=6, 0..=u32::MAX, 5..=5, 4_294_967_290..=u32::MAX, 65_536..=131_071]
        {
            let mut next = u64::from(*range.start());
            for (length, first) in prefixes(&range) {
                assert_eq!(u64::from(first), next, "{range:?}");
                let size = 1u64 << (32 - length);
                assert_eq!(next % size, 0, "{range:?}");
                next += size;
            }
            assert_eq!(next, u64::from(*range.end()) + 1, "{range:?}");
        }
        assert_eq!(prefixes(&(65_536..=131_071)).collect::<Vec<_>>(), [(16, 65_536)]);
    }
}
