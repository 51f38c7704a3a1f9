//! Obstacles to bringing kernel enforcement up, each with a remedy.
//!
//! The kernel reports EPERM to an ordinary user, to root in a container, to root in a user namespace and to root
//! without one of three capabilities. The remedy is different for each of them, so the reason is looked for once the
//! kernel has refused. Nothing is checked in advance.

use std::{fmt, fs, path::Path};

use rustix::{
    process::{Resource, geteuid, getrlimit},
    thread::{CapabilitySet, capabilities},
};

use crate::sys;

/// Why this process cannot bring kernel enforcement up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Obstacle {
    /// It belongs to an ordinary user.
    User,
    /// It belongs to root, but lacks these capabilities.
    Capabilities(Vec<&'static str>),
    /// Its capabilities are those of a user namespace, and BPF requires those of the first one.
    UserNamespace,
    /// A seccomp filter or a security module denies bpf(2) as a whole.
    Filter,
    /// A BPF file system would have to be mounted, and that requires CAP_SYS_ADMIN.
    Mount,
    /// It may not have more open files than this.
    Files(Option<u64>),
    /// The file system is mounted read-only.
    ReadOnly,
}

const HOST: &str =
    "in a container, have the host run `portkeep up`: kernel enforcement of the host serves containers as well";

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User => f.write_str("it requires root"),
            Self::Capabilities(missing) => {
                write!(f, "it requires {}, which this process does not have ({HOST})", missing.join(" and "))
            }
            Self::UserNamespace => write!(f, "it requires root of the host, not of a user namespace ({HOST})"),
            Self::Filter => write!(f, "bpf(2) is denied here by a seccomp filter or a security module ({HOST})"),
            Self::Mount => f.write_str(
                "no BPF file system is mounted, and mounting one requires CAP_SYS_ADMIN: have it mounted (`mount -t bpf bpf \
                 /sys/fs/bpf`)",
            ),
            Self::Files(limit) => {
                f.write_str("the limit of open files is too low")?;
                if let Some(limit) = limit {
                    write!(f, ": it is {limit}")?;
                }
                f.write_str(", 64 are enough (`ulimit -n 64`)")
            }
            Self::ReadOnly => f.write_str(
                "the file system is read-only: remount it writable, or name a folder in another BPF file system with \
                 --pin-dir",
            ),
        }
    }
}

impl Obstacle {
    /// The obstacle to using BPF in this process, as far as it can be found without using BPF.
    pub fn to_bpf() -> Option<Self> {
        let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
        // CAP_SYS_ADMIN includes the two capabilities that Linux 5.8 split off from it.
        let has = |one| {
            effective.contains(one) || (one != CapabilitySet::NET_ADMIN && effective.contains(CapabilitySet::SYS_ADMIN))
        };
        let needed = [
            (CapabilitySet::BPF, "CAP_BPF"),
            (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
            (CapabilitySet::PERFMON, "CAP_PERFMON"),
        ];
        let missing: Vec<_> = needed.into_iter().filter(|(one, _)| !has(*one)).map(|(_, name)| name).collect();
        if !missing.is_empty() {
            return Some(if geteuid().is_root() { Self::Capabilities(missing) } else { Self::User });
        }
        if !in_first_user_namespace() {
            return Some(Self::UserNamespace);
        }
        sys::bpf_is_denied().then_some(Self::Filter)
    }

    /// The reason behind the error number of a step that failed; `mounting`: the step mounts a BPF file system.
    pub(crate) fn behind(errno: i32, mounting: bool) -> Option<Self> {
        match errno {
            libc::EPERM | libc::EACCES | libc::ENOSYS => {
                let may_mount =
                    || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
                Self::to_bpf().or_else(|| (mounting && !may_mount()).then_some(Self::Mount))
            }
            // Without CAP_PERFMON the verifier does not know all helpers.
            libc::EINVAL => Self::to_bpf(),
            libc::EMFILE => Some(Self::Files(getrlimit(Resource::Nofile).current)),
            libc::EROFS => Some(Self::ReadOnly),
            _ => None,
        }
    }
}

/// Whether this process is in the first user namespace (`PROC_USER_INIT_INO` of `include/linux/proc_ns.h`). Without
/// /proc this is unknown, and true.
pub fn in_first_user_namespace() -> bool {
    fs::read_link("/proc/self/ns/user").map_or(true, |link| link == Path::new("user:[4026531837]"))
}
