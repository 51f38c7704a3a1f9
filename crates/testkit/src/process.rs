//! Other processes: forked, so that they start with this thread's descriptors and namespace, and can run a part of the
//! test that is written in place.
//!
//! A child has copies of ALL descriptors of the test binary, those of other tests included, and would keep their
//! sockets open. So tests that fork run one at a time ([`crate::World`] ensures this), and a [`Child`] is never left
//! behind.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        recvmsg, sendmsg,
    },
    process::{Pid, Signal, WaitOptions, kill_process, waitpid},
};

/// A conversation between a test and its child: numbers, and descriptors.
#[derive(Debug)]
pub struct Talk(UnixStream);

impl Talk {
    /// Send a number.
    ///
    /// # Panics
    ///
    /// If the other side has ended; this applies to the other functions here, too.
    pub fn say(&mut self, number: u64) {
        self.0.write_all(&number.to_ne_bytes()).expect("the other process listens");
    }

    /// Wait for a number.
    pub fn hear(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact(&mut bytes).expect("the other process speaks");
        u64::from_ne_bytes(bytes)
    }

    /// Wait for a number, `None` if the other side has ended.
    pub fn try_hear(&mut self) -> Option<u64> {
        let mut bytes = [0; 8];
        self.0.read_exact(&mut bytes).ok()?;
        Some(u64::from_ne_bytes(bytes))
    }

    /// Pass a descriptor.
    pub fn pass(&mut self, descriptor: impl AsFd) {
        send(&self.0, b"d", Some(descriptor.as_fd())).expect("passing a descriptor");
    }

    /// Take a descriptor.
    pub fn take(&mut self) -> OwnedFd {
        let (_, descriptor) = receive(&self.0, &mut [0]).expect("taking a descriptor");
        descriptor.expect("a descriptor")
    }
}

/// Send bytes over a Unix socket, and a descriptor with them.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receive bytes, and the descriptor that came with them. 0 bytes: the other end is closed.
pub(crate) fn receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((message.bytes, descriptor))
}

static IN_CHILD: AtomicBool = AtomicBool::new(false);
static HOOK: Once = Once::new();

/// Print a child's panic directly: the harness would keep it for another test than the child's. The hook is set before
/// any fork. Otherwise a child could wait for ever for the hook's lock, if another thread that panics has it at the
/// fork.
fn tell_panics_of_children() {
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if IN_CHILD.load(Ordering::Relaxed) {
            let _ = rustix::io::write(rustix::stdio::stderr(), format!("in a child: {info}\n").as_bytes());
        } else {
            others(info);
        }
    }));
}

/// A forked process. Dropping it kills it and waits until nothing of it is left.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    /// To talk with it.
    pub talk: Talk,
    waited: bool,
}

impl Child {
    /// Fork, and run `work` in the child. The child ends when `work` returns, or when this thread ends.
    ///
    /// # Panics
    ///
    /// If fork fails.
    pub fn fork(work: impl FnOnce(&mut Talk)) -> Self {
        HOOK.call_once(tell_panics_of_children);
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let parent = rustix::process::getpid();
        // SAFETY: the child has one thread, this one's copy. It may allocate (the C library makes its allocator's locks
        // usable after a fork) and otherwise does system calls; it ends by _exit and returns to no caller.
        match unsafe { libc::fork() } {
            -1 => panic!("fork: {}", io::Error::last_os_error()),
            0 => {
                drop(ours);
                let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
                if rustix::process::getppid() != Some(parent) {
                    // SAFETY: ends the process; nothing of it is used again.
                    unsafe { libc::_exit(1) };
                }
                IN_CHILD.store(true, Ordering::Relaxed);
                let mut talk = Talk(theirs);
                let failed = catch_unwind(AssertUnwindSafe(|| work(&mut talk))).is_err();
                // SAFETY: as above. Destructors of what the parent owns must not run here, so this is not exit().
                unsafe { libc::_exit(i32::from(failed)) }
            }
            pid => Self { pid: Pid::from_raw(pid).expect("a pid"), talk: Talk(ours), waited: false },
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Wait for its end.
    ///
    /// # Panics
    ///
    /// If it panicked or was killed.
    #[track_caller]
    pub fn join(mut self) {
        let (_, status) = waitpid(Some(self.pid), WaitOptions::empty()).expect("wait").expect("its status");
        self.waited = true;
        assert_eq!(status.exit_status(), Some(0), "the child failed, see above");
    }

    /// SIGKILL, and wait until nothing is left.
    pub fn kill(self) {}
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.waited {
            let _ = kill_process(self.pid, Signal::KILL);
            let _ = waitpid(Some(self.pid), WaitOptions::empty());
        }
    }
}

/// Run `work` in a forked child and wait for its end.
///
/// # Panics
///
/// If it fails.
#[track_caller]
pub fn in_child(work: impl FnOnce()) {
    Child::fork(|_| work()).join();
}

/// Whether `check` is true in a child with uid 65533 and these groups as its real, effective and supplementary gids.
///
/// # Panics
///
/// If this process is not root, or if `check` panics.
#[track_caller]
pub fn in_groups(real: u32, effective: u32, groups: &[u32], check: impl FnOnce() -> bool) -> bool {
    const UID: u32 = 65533;
    let mut child = Child::fork(|talk| {
        // SAFETY: these change this child's credentials only.
        let done = unsafe {
            libc::setgroups(groups.len(), groups.as_ptr()) == 0
                && libc::setresgid(real, effective, effective) == 0
                && libc::setresuid(UID, UID, UID) == 0
        };
        assert!(done, "{}", io::Error::last_os_error());
        talk.say(check().into());
    });
    let holds = child.talk.hear() == 1;
    child.join();
    holds
}

/// Become an ordinary user for ever, without any capability. Only for children: the whole process changes.
///
/// # Panics
///
/// If this process is not root.
pub fn become_user(uid: u32) {
    // SAFETY: these change credentials only.
    let done = unsafe {
        libc::setgroups(0, std::ptr::null()) == 0
            && libc::setresgid(uid, uid, uid) == 0
            && libc::setresuid(uid, uid, uid) == 0
    };
    assert!(done, "becoming user {uid}: {}", io::Error::last_os_error());
    // A change of credentials resets this in the kernel.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
}
