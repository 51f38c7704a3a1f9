//! Users and groups as people know them.

use nix::unistd::{Gid, Group, Uid, User};
use portkeep::persistent::{Account, Audience};

/// The name of a user, or its number if it has none.
pub(crate) fn user(uid: u32) -> String {
    user_name(uid).unwrap_or_else(|| uid.to_string())
}

/// The name of a user, if it has one.
pub(crate) fn user_name(uid: u32) -> Option<String> {
    Some(User::from_uid(Uid::from_raw(uid)).ok()??.name)
}

/// The name of a group, or its number if it has none.
pub(crate) fn group(gid: u32) -> String {
    Group::from_gid(Gid::from_raw(gid)).ok().flatten().map_or_else(|| gid.to_string(), |group| group.name)
}

/// An audience with names in place of numbers.
pub(crate) fn of(audience: &Audience) -> Audience {
    let name = |id: &Account, name: fn(u32) -> String| match id {
        Account::Id(id) => name(*id).parse().unwrap_or(Account::Id(*id)),
        Account::Name(name) => Account::Name(name.clone()),
    };
    let known = |found: Account| Ok::<_, std::convert::Infallible>(found);
    match audience.try_map(|id| known(name(id, user)), |id| known(name(id, group))) {
        Ok(audience) => audience,
        Err(never) => match never {},
    }
}

/// Whether this machine knows the user. Numbers need no name. A name that cannot be looked up is not reported as missing.
pub(crate) fn is_user(account: &Account) -> bool {
    match account {
        Account::Id(_) => true,
        Account::Name(name) => !matches!(User::from_name(name), Ok(None)),
    }
}

/// Whether this machine knows the group.
pub(crate) fn is_group(account: &Account) -> bool {
    match account {
        Account::Id(_) => true,
        Account::Name(name) => !matches!(Group::from_name(name), Ok(None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_name_keeps_the_number() {
        assert_eq!((user(0), group(0)), ("root".into(), "root".into()));
        assert_eq!((user(4_000_000_000), group(4_000_000_000)), ("4000000000".into(), "4000000000".into()));
        let name = |name: &str| Account::Name(name.into());
        assert!(is_user(&name("root")) && is_group(&name("root")) && is_user(&Account::Id(4711)));
        assert!(!is_user(&name("nobody-has-this-name")) && !is_group(&name("nobody-has-this-name")));
    }
}
