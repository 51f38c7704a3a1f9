//! Users and groups by name and number, from all sources of this machine (NSS).

use std::{
    collections::HashMap,
    ffi::CString,
    hash::Hash,
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use portkeep_core::persistent::{Account, Audience, Others};

/// Answers older than this are asked for again.
const FRESH: Duration = Duration::from_secs(30);
/// The number of answers that are remembered.
const KNOWN: usize = 1024;

/// The uid of a user; a sentence if there is none.
pub fn uid(account: &Account) -> Result<u32, String> {
    match account {
        Account::Id(id) => Ok(*id),
        Account::Name(name) => match User::from_name(name) {
            Ok(Some(user)) => Ok(user.uid.as_raw()),
            Ok(None) => Err(format!("there is no user {name:?}")),
            Err(errno) => Err(format!("cannot look up user {name:?}: {errno}")),
        },
    }
}

fn group(account: &Account) -> Result<Option<Group>, String> {
    let (found, name) = match account {
        Account::Id(id) => (Group::from_gid(Gid::from_raw(*id)), id.to_string()),
        Account::Name(name) => (Group::from_name(name), name.clone()),
    };
    found.map_err(|errno| format!("cannot look up group {name:?}: {errno}"))
}

/// The gid of a group; a sentence if there is none.
pub fn gid(account: &Account) -> Result<u32, String> {
    match account {
        Account::Id(id) => Ok(*id),
        Account::Name(name) => match group(account)? {
            Some(group) => Ok(group.gid.as_raw()),
            None => Err(format!("there is no group {name:?}")),
        },
    }
}

/// The name of a user, or its number if it has none.
pub fn user_name(uid: u32) -> String {
    known_user(uid).unwrap_or_else(|| uid.to_string())
}

/// The name of a user, if it has one. Remembered for a while.
pub fn known_user(uid: u32) -> Option<String> {
    static USERS: LazyLock<Remembered<u32, Option<String>>> = LazyLock::new(Remembered::default);
    USERS.of(uid, |uid| User::from_uid(Uid::from_raw(*uid)).ok().flatten().map(|user| user.name))
}

/// The name of a group, or its number if it has none. Remembered for a while.
pub fn group_name(gid: u32) -> String {
    static GROUPS: LazyLock<Remembered<u32, Option<String>>> = LazyLock::new(Remembered::default);
    let name = |gid: &u32| Group::from_gid(Gid::from_raw(*gid)).ok().flatten().map(|group| group.name);
    GROUPS.of(gid, name).unwrap_or_else(|| gid.to_string())
}

/// An audience with names in place of numbers.
pub fn named(audience: &Audience) -> Audience {
    let Ok(named) = audience.try_map(|id| with_name(id, user_name), |id| with_name(id, group_name));
    named
}

/// The same for the others of a runtime reservation.
pub fn named_others(others: &Others) -> Others {
    let Ok(named) = others.try_map(|id| with_name(id, user_name), |id| with_name(id, group_name));
    named
}

fn with_name(id: &Account, name: fn(u32) -> String) -> Result<Account, std::convert::Infallible> {
    Ok(match id {
        Account::Id(id) => name(*id).parse().unwrap_or(Account::Id(*id)),
        Account::Name(name) => Account::Name(name.clone()),
    })
}

/// Whether this machine knows the user. If it cannot be looked up, it is not reported as missing.
pub fn is_user(account: &Account) -> bool {
    match account {
        Account::Id(id) => !matches!(User::from_uid(Uid::from_raw(*id)), Ok(None)),
        Account::Name(name) => !matches!(User::from_name(name), Ok(None)),
    }
}

/// Whether this machine knows the group, as [`is_user`].
pub fn is_group(account: &Account) -> bool {
    match account {
        Account::Id(id) => !matches!(Group::from_gid(Gid::from_raw(*id)), Ok(None)),
        Account::Name(name) => !matches!(Group::from_name(name), Ok(None)),
    }
}

/// The uids that the group database lists as members. It does not list accounts whose primary group this is.
pub fn members(account: &Account) -> Vec<u32> {
    let listed = group(account).ok().flatten().map(|group| group.mem).unwrap_or_default();
    listed.iter().filter_map(|name| Some(User::from_name(name).ok()??.uid.as_raw())).collect()
}

/// Whether a user belongs to a group according to the databases. A process may have changed its groups, but this is
/// also used for processes that have ended.
pub fn belongs(uid: u32, gid: u32) -> bool {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return false };
    let Ok(name) = CString::new(user.name) else { return false };
    let groups = getgrouplist(&name, user.gid).unwrap_or_default();
    user.gid.as_raw() == gid || groups.contains(&Gid::from_raw(gid))
}

/// Answers of the databases, remembered for a while. Users make the agent ask as often as they like, and a look-up may
/// require the network.
#[derive(Debug)]
pub struct Remembered<K, V> {
    known: Mutex<HashMap<K, (Instant, V)>>,
}

impl<K, V> Default for Remembered<K, V> {
    fn default() -> Self {
        Self { known: Mutex::default() }
    }
}

impl<K: Eq + Hash, V: Clone> Remembered<K, V> {
    /// The answer for a key. It is looked up if it is not known or too old.
    pub fn of(&self, key: K, ask: impl FnOnce(&K) -> V) -> V {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, value)) = known.get(&key)
            && when.elapsed() < FRESH
        {
            return value.clone();
        }
        let value = ask(&key);
        if known.len() >= KNOWN {
            known.clear();
        }
        known.insert(key, (Instant::now(), value.clone()));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_everywhere() {
        assert_eq!(uid(&Account::Name("root".into())), Ok(0));
        assert_eq!(gid(&Account::Id(4711)), Ok(4711));
        assert!(uid(&Account::Name("nobody-has-this-name".into())).unwrap_err().contains("nobody-has-this-name"));
        assert!(gid(&Account::Name("nobody-has-this-name".into())).is_err());
        assert_eq!((user_name(0), group_name(0)), ("root".into(), "root".into()));
        assert_eq!((user_name(4_000_000_000), group_name(4_000_000_000)), ("4000000000".into(), "4000000000".into()));
        let name = |name: &str| Account::Name(name.into());
        for known in [name("root"), Account::Id(0)] {
            assert!(is_user(&known) && is_group(&known), "{known}");
        }
        for unknown in [name("nobody-has-this-name"), Account::Id(4_000_000_000)] {
            assert!(!is_user(&unknown) && !is_group(&unknown), "{unknown}");
        }
        assert!(belongs(0, 0) && !belongs(0, 4711) && !belongs(4711, 0));
    }
}
