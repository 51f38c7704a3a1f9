//! The system calls that neither aya nor rustix has.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`.
pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// One command of bpf(2). `A` is the prefix of `union bpf_attr` that the command uses.
fn bpf<A>(command: libc::c_long, attr: &A) -> io::Result<libc::c_long> {
    // SAFETY: the commands in this file at most read the attribute, of which the kernel gets the size and takes the
    // rest for zero. Pointers and descriptors in it are those of borrows that outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attr, size_of::<A>()) };
    if result >= 0 { Ok(result) } else { Err(io::Error::last_os_error()) }
}

fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: called only with a descriptor that bpf(2) has just made for us, so nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// The hook that a program is attached to on a cgroup (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(crate) enum AttachPoint {
    SockOps = 3,
    Bind4 = 8,
    Bind6 = 9,
    Connect4 = 10,
    Connect6 = 11,
    PostBind4 = 12,
    PostBind6 = 13,
    GetSockopt = 21,
    SetSockopt = 22,
    SockRelease = 34,
}

/// `BPF_LINK_CREATE` for a cgroup. aya 0.14 attaches too, but does not give access to the links of sockopt programs, so
/// they cannot be pinned.
///
/// Kernel commit af6eea57437a ("bpf: Implement bpf_link-based cgroup BPF program attachment"), Linux 5.7.
pub(crate) fn link_create(program: impl AsFd, cgroup: impl AsFd, point: AttachPoint) -> io::Result<OwnedFd> {
    let attr =
        [program.as_fd().as_raw_fd() as u32, cgroup.as_fd().as_raw_fd() as u32, point as u32, 0 /* flags */];
    bpf(BPF_LINK_CREATE, &attr).map(owned)
}

/// `BPF_LINK_UPDATE`: put another program under a link, without a gap.
///
/// Kernel commit 0c991ebc8c69 ("bpf: Implement bpf_prog replacement for an active bpf_cgroup_link"), Linux 5.7.
pub(crate) fn link_update(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let attr = [link.as_fd().as_raw_fd() as u32, program.as_fd().as_raw_fd() as u32, 0 /* flags */, 0];
    bpf(BPF_LINK_UPDATE, &attr).map(drop)
}

/// `BPF_LINK_DETACH`: detach the program now. Removing the last pin or descriptor of a link detaches it too, but later:
/// a worker releases pins after an RCU grace period.
///
/// Kernel commit 73b11c2ab072 ("bpf: Add support for forced LINK_DETACH command"), Linux 5.9.
pub(crate) fn link_detach(link: impl AsFd) -> io::Result<()> {
    let attr = [link.as_fd().as_raw_fd() as u32];
    bpf(BPF_LINK_DETACH, &attr).map(drop)
}

/// `struct { ... } query` of `union bpf_attr`, up to the count.
#[repr(C)]
struct QueryAttr {
    cgroup: u32,
    point: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    zero: u32,
}

/// `BPF_PROG_QUERY`: the ids of the programs that are attached to a point of a cgroup, at most 64.
///
/// Kernel commit 468e2f64d220 ("bpf: introduce BPF_PROG_QUERY command"), Linux 4.15.
pub(crate) fn programs_on(cgroup: impl AsFd, point: AttachPoint) -> io::Result<Vec<u32>> {
    const BPF_PROG_QUERY: libc::c_long = 16;
    let mut ids = [0u32; 64];
    let mut attr = QueryAttr {
        cgroup: cgroup.as_fd().as_raw_fd() as u32,
        point: point as u32,
        flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        zero: 0,
    };
    // SAFETY: the kernel writes at most `count` ids to the array, and the count and flags to the attribute; both
    // outlive the call, and nothing else refers to them meanwhile.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut attr, size_of::<QueryAttr>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ids[..(attr.count as usize).min(ids.len())].to_vec())
}

#[repr(C)]
struct PinAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// `BPF_OBJ_PIN`.
pub(crate) fn pin(object: impl AsFd, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let attr = PinAttr { path: path.as_ptr() as u64, fd: object.as_fd().as_raw_fd() as u32, flags: 0 };
    bpf(BPF_OBJ_PIN, &attr).map(drop)
}

/// `BPF_OBJ_GET`.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let attr = PinAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    bpf(BPF_OBJ_GET, &attr).map(owned)
}

/// Whether bpf(2) is denied for every command: where it is not denied, a command that no kernel knows fails with
/// EINVAL.
pub(crate) fn bpf_is_denied() -> bool {
    const NO_COMMAND: libc::c_long = 0x7fff_ffff;
    let denied = [libc::EPERM, libc::EACCES, libc::ENOSYS];
    bpf(NO_COMMAND, &0u32).is_err_and(|error| error.raw_os_error().is_some_and(|errno| denied.contains(&errno)))
}

/// Wait until every program that is running now has ended (`MEMBARRIER_CMD_GLOBAL` waits for an RCU grace period).
pub(crate) fn wait_for_running_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;
    // SAFETY: membarrier(2) takes three integers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
}

/// `SO_NETNS_COOKIE` (Linux 5.14): the number of the network namespace a socket is in.
pub(crate) fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option writes at most the 8 bytes that `length` announces into `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
