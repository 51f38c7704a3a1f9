//! Fork a process directly into a cgroup.
//!
//! A process that moves into a cgroup waits until all CPUs have passed a quiescent state. This takes some milliseconds
//! on a machine where no other process moved lately. A process that starts in the cgroup does not wait.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use rustix::process::Pid;

/// `CLONE_INTO_CGROUP` of `include/uapi/linux/sched.h`, Linux 5.7.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Fork this process. The child starts in the cgroup of this folder, or, if there is none, in the cgroup of this
/// process. Returns the child's number, and in the child `None`.
///
/// # Errors
///
/// Those of clone3(2) and fork(2): ENOSYS where a seccomp filter denies clone3. `ErrorKind::Unsupported` in a process
/// with more than one thread: the child has only the calling thread, so locks of the other threads would stay locked.
pub fn fork(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<Pid>> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "a process with threads cannot be forked"));
    }
    let pid = match cgroup {
        Some(folder) => clone_into(folder),
        // SAFETY: this process has one thread, so the child has a whole copy of it.
        None => unsafe { libc::fork() }.into(),
    };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(Pid::from_raw(pid as i32)) }
}

fn clone_into(cgroup: impl AsFd) -> libc::c_long {
    let args = libc::clone_args {
        flags: CLONE_INTO_CGROUP,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.as_fd().as_raw_fd() as u64,
    };
    // SAFETY: the kernel reads `args`, of the size that it gets. Memory is not shared, and this process has one thread,
    // so the child continues with a whole copy of it, on a copy of this stack. libc does not notice the fork and keeps
    // the former thread number for itself, which only its error-checking mutexes use.
    unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) }
}
