//! The BPF programs on the hooks that Portkeep uses, those of others included.

use std::{fs::File, io, path::Path};

use aya::programs::loaded_programs;

use crate::{
    object::{ENFORCING, SERVING},
    sys::{self, AttachPoint},
};

/// A program that runs for the sockets of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Its number.
    pub id: u32,
    /// Its name, at most 15 bytes; empty if it has none.
    pub name: String,
    /// The hook, as bpftool names it.
    pub hook: &'static str,
}

/// All programs on these hooks that run for the sockets of a cgroup, Portkeep's included: those that are attached to
/// the cgroup and to the cgroups above it.
///
/// # Errors
///
/// If the kernel does not show them: this requires root.
pub fn programs(cgroup: &Path) -> io::Result<Vec<Attached>> {
    let folder = File::open(cgroup)?;
    let names: Vec<(u32, String)> = loaded_programs()
        .filter_map(|info| info.ok().map(|info| (info.id(), info.name_as_str().unwrap_or_default().to_owned())))
        .collect();
    let mut found = Vec::new();
    for (_, point) in ENFORCING.into_iter().chain(SERVING) {
        for id in sys::programs_on(&folder, point)? {
            let name = names.iter().find(|(other, _)| *other == id).map_or_else(String::new, |(_, name)| name.clone());
            found.push(Attached { id, name, hook: name_of(point) });
        }
    }
    Ok(found)
}

const fn name_of(point: AttachPoint) -> &'static str {
    match point {
        AttachPoint::SockOps => "sock_ops",
        AttachPoint::Bind4 => "bind4",
        AttachPoint::Bind6 => "bind6",
        AttachPoint::Connect4 => "connect4",
        AttachPoint::Connect6 => "connect6",
        AttachPoint::PostBind4 => "post_bind4",
        AttachPoint::PostBind6 => "post_bind6",
        AttachPoint::GetSockopt => "getsockopt",
        AttachPoint::SetSockopt => "setsockopt",
        AttachPoint::SockRelease => "sock_release",
    }
}
