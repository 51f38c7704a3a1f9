//! The BPF programs on the hooks that Portkeep uses, those of others included.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use aya::programs::loaded_programs;

use crate::{
    object::{ENFORCING, SERVING},
    sys::{self, AttachPoint},
};

/// A program that is attached to a cgroup. It runs for the sockets made there and in the cgroups below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Its number.
    pub id: u32,
    /// Its name, at most 15 bytes; empty if it has none.
    pub name: String,
    /// The hook, as bpftool names it.
    pub hook: &'static str,
}

/// The programs on these hooks, Portkeep's included, by the folder of the cgroup that they are attached to: this cgroup
/// and those above it, whose programs run for all its sockets, and those below it, whose programs run for some. Cgroups
/// without programs are left out.
///
/// # Errors
///
/// If the kernel does not show them: this requires root.
pub fn programs(cgroup: &Path) -> io::Result<BTreeMap<PathBuf, Vec<Attached>>> {
    let names: Vec<(u32, String)> = loaded_programs()
        .filter_map(|info| info.ok().map(|info| (info.id(), info.name_as_str().unwrap_or_default().to_owned())))
        .collect();
    let root = crate::cgroup::root().unwrap_or_default();
    let mut folders: Vec<PathBuf> =
        cgroup.ancestors().skip(1).filter(|above| above.starts_with(&root)).map(Path::to_owned).collect();
    let mut below = vec![cgroup.to_owned()];
    while let Some(folder) = below.pop() {
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        below.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
        folders.push(folder);
    }
    let mut found = BTreeMap::new();
    for folder in folders {
        let open = match File::open(&folder) {
            // A cgroup below can be removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound && folder != cgroup => continue,
            open => open?,
        };
        let mut here = Vec::new();
        for (_, point) in ENFORCING.into_iter().chain(SERVING) {
            for id in sys::programs_on(&open, point)? {
                let name = names.iter().find(|(other, _)| *other == id).map(|(_, name)| name.clone());
                here.push(Attached { id, name: name.unwrap_or_default(), hook: name_of(point) });
            }
        }
        if !here.is_empty() {
            found.insert(folder, here);
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
