//! The ports of a persistent reservation, for the command of `run`.

use anyhow::Context;
use nix::unistd::{Gid, Uid, getgroups};
use portkeep::{
    Info, State,
    persistent::{Audience, Name},
};
use portkeep_kernel::cgroup;
use portkeep_observe::{accounts, process};

use super::user::User;
use crate::{Io, args::sources::Places, commands::persist::view};

/// The reservation of this name, in force in this network namespace.
pub(crate) fn find(name: &Name, places: &Places, io: &mut Io<'_>) -> anyhow::Result<Info> {
    let declared = view::look(places, io)?.declared;
    let of_name: Vec<Info> = declared.into_iter().filter(|info| info.name.as_deref() == Some(name.as_str())).collect();
    let Some(found) = of_name.iter().find(|info| info.state == State::Active).or(of_name.first()) else {
        anyhow::bail!("there is no persistent reservation {name} (see `portkeep persist list`)");
    };
    if found.state != State::Active {
        let reason = found.reason.as_deref().unwrap_or("its state is unknown");
        anyhow::bail!("the reservation {name} is not in force: {reason}");
    }
    let token = found.token.context("the reservation has no token")?;
    anyhow::ensure!(
        portkeep::lookup(token)?.is_some(),
        "the reservation {name} is in force, but not in this network namespace"
    );
    Ok(found.clone())
}

/// Why the command cannot bind the ports by their numbers; `None` if it can, as far as can be seen here.
pub(crate) fn outside(info: &Info, user: Option<&User>) -> Option<String> {
    let audience = info.audience.as_ref()?;
    let uid = user.map_or_else(|| Uid::current().as_raw(), User::uid);
    if is_inside(audience, uid, user) {
        return None;
    }
    let named = accounts::named(audience);
    let remedy = named.each().iter().find_map(|one| match one {
        Audience::User(user) => Some(format!("; add --user {user}")),
        _ => None,
    });
    let remedy = remedy.unwrap_or_default();
    let name = info.name.as_deref().unwrap_or_default();
    Some(format!(
        "the reservation {name} is for {named}, and the command runs as {}: its binds of these ports are refused{remedy}",
        accounts::user_name(uid)
    ))
}

fn is_inside(audience: &Audience, uid: u32, user: Option<&User>) -> bool {
    match audience {
        Audience::Several(several) => several.iter().any(|one| is_inside(one, uid, user)),
        Audience::Administrators => uid == 0,
        Audience::User(account) => accounts::uid(account) == Ok(uid),
        Audience::Group(account) => accounts::gid(account).is_ok_and(|gid| match user {
            Some(_) => accounts::belongs(uid, gid),
            None => Gid::current().as_raw() == gid || getgroups().is_ok_and(|all| all.contains(&Gid::from_raw(gid))),
        }),
        Audience::Unit(unit) => own_cgroup().and_then(|own| process::unit_of(&own)).as_ref() == Some(unit),
        Audience::Cgroup(path) => own_cgroup()
            .and_then(|own| cgroup::below_root(&own))
            .is_some_and(|own| own.starts_with(path.trim_start_matches('/'))),
    }
}

fn own_cgroup() -> Option<std::path::PathBuf> {
    cgroup::of_process(std::process::id())
}
