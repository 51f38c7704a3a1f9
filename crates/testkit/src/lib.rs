//! The base of the tests and benchmarks that need the kernel.
//!
//! Everything happens in a cgroup and in network namespaces of the test's own. Programs are attached to that cgroup and
//! nowhere else, so root can run the tests safely on any workstation. Nothing is left, not even after SIGKILL: programs
//! end with the descriptors of this process, namespaces end with its threads, and a janitor process removes the cgroup
//! afterwards. The exception are machines that are booted only for the tests ([`ATTACH`]).

use std::{
    fs, io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, OnceLock},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use portkeep_kernel::{Loaded, Settings, cgroup};

pub mod agent;
mod attach;
pub mod audit;
mod below;
pub mod bpf;
pub mod crowd;
pub mod driven;
pub mod machine;
mod note;
mod outcome;
pub mod places;
pub mod process;
pub mod random;
pub mod report;
pub mod schema;
pub mod sockets;
pub mod table;
mod world;

pub use attach::{ATTACH, GUEST, at_root};
pub use below::Below;
pub use note::note;
pub use outcome::Outcome;
pub use world::World;

use crate::attach::Needs;

/// Set on machines that must run the kernel tests: there a test that cannot run fails.
pub const REQUIRE: &str = "PORTKEEP_REQUIRE_KERNEL";

/// Why the kernel tests cannot run here; `None` if they can.
pub fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".into());
    }
    if cgroup::root().is_none() {
        return Some("no cgroup v2 hierarchy is mounted".into());
    }
    // At the root there is room for one instance, and it may be the test's own. That machine exists for the tests: what
    // does not work is not checked beforehand, it fails.
    if at_root() {
        return None;
    }
    match process_sandbox() {
        Ok(_) => None,
        Err(reason) => Some(reason.clone()),
    }
}

/// True if the kernel tests can run. If not, it reports this visibly, or panics where they are required.
#[track_caller]
pub fn kernel_or_skip(test: &str) -> bool {
    possible(test, Needs::Nothing)
}

/// The same for a test that needs a cgroup where nothing is enforced, for outsiders without enforcement or for a second
/// instance. If the BPF programs are attached to the root of the hierarchy, it reports that the test belongs to another
/// run ([`ATTACH`]).
#[track_caller]
pub fn outside_or_skip(test: &str) -> bool {
    possible(test, Needs::Outside)
}

#[track_caller]
fn possible(test: &str, needs: Needs) -> bool {
    if !attach::mine(test, needs) {
        return false;
    }
    let Some(reason) = obstacle() else { return true };
    skip(test, &reason, REQUIRE);
    false
}

/// Report visibly that a test cannot run here.
///
/// # Panics
///
/// If the environment variable `required` is set: this machine must run it.
#[track_caller]
pub fn skip(test: &str, reason: &str, required: &str) {
    assert!(std::env::var_os(required).is_none(), "{required} is set, but {test} cannot run: {reason}");
    note(&format!("SKIPPED {test}: {reason}"));
}

/// A cgroup below the root of the v2 hierarchy, removed when this process ends, in any way. If the tests attach to the
/// root ([`at_root`]), the cgroup of the process's sandbox is the root itself.
#[derive(Debug)]
pub struct TestCgroup {
    path: PathBuf,
}

impl TestCgroup {
    /// Make one. `name` only helps to recognise it.
    pub fn new(name: &str) -> io::Result<Self> {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let root = cgroup::root().ok_or(io::ErrorKind::Unsupported)?;
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = root.join(format!("portkeep-test-{name}-{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        // The janitor waits for the end of its input, which comes when this process ends. Sub-cgroups are removed first.
        // Children that outlive us have twenty seconds, and are then killed. The janitor moves out of the cgroup that
        // it was started in: that can be another test cgroup, whose janitor would kill it. It is in a process group of
        // its own, so a test runner that kills ours does not kill it.
        let janitor = "echo $$ >\"$0/../cgroup.procs\"; cat >/dev/null; \
                       i=0; while [ $i -lt 150 ]; do i=$((i+1)); \
                       [ $i = 100 ] && echo 1 >\"$0/cgroup.kill\"; \
                       find \"$0\" -depth -type d -exec rmdir {} + 2>/dev/null; [ -d \"$0\" ] || exit 0; sleep 0.2; done";
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(janitor)
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        // Kept open until the process ends. It is close-on-exec, so no child makes the janitor wait longer.
        std::mem::forget(child.stdin.take());
        Ok(Self { path })
    }

    /// The root, which is not removed.
    fn root() -> io::Result<Self> {
        assert!(at_root());
        Ok(Self { path: cgroup::root().ok_or(io::ErrorKind::Unsupported)? })
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Move a process in: the sockets that it makes from now on belong to this cgroup.
    pub fn enter(&self, pid: u32) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
    }

    /// A cgroup below this one.
    pub fn child(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir(&path)?;
        Ok(path)
    }
}

/// The BPF programs, attached to a cgroup that this process lives in.
#[derive(Debug)]
pub struct Sandbox {
    cgroup: TestCgroup,
    loaded: Mutex<Loaded>,
}

fn process_sandbox() -> &'static Result<Sandbox, String> {
    static SANDBOX: OnceLock<Result<Sandbox, String>> = OnceLock::new();
    SANDBOX.get_or_init(|| make_sandbox().map_err(|error| format!("{error:#}")))
}

fn make_sandbox() -> anyhow::Result<Sandbox> {
    let cgroup = if at_root() { TestCgroup::root() } else { TestCgroup::new("sandbox") };
    let cgroup = cgroup.context("no cgroup of our own")?;
    let mut loaded = Loaded::load()?;
    loaded.attach(&Settings::default(), cgroup.path(), cgroup.path())?;
    cgroup.enter(std::process::id()).with_context(|| format!("moving into {:?}", cgroup.path()))?;
    Ok(Sandbox { cgroup, loaded: Mutex::new(loaded) })
}

impl Sandbox {
    /// A second instance, with its own maps, attached to an empty cgroup. To be under it, a process moves in with
    /// [`TestCgroup::enter`]. Only for tests with an outside ([`outside_or_skip`]).
    ///
    /// # Panics
    ///
    /// If it cannot be brought up.
    pub fn beside(name: &str, settings: &Settings) -> Self {
        Self::beside_with(name, settings, Loaded::load().expect("the BPF programs load"))
    }

    /// The same with programs that were loaded in a special way.
    ///
    /// # Panics
    ///
    /// If it cannot be attached.
    pub fn beside_with(name: &str, settings: &Settings, mut loaded: Loaded) -> Self {
        assert!(!at_root(), "two instances would answer: this test needs an outside");
        let cgroup = TestCgroup::new(name).expect("a cgroup of our own");
        loaded.attach(settings, cgroup.path(), cgroup.path()).expect("the BPF programs attach");
        Self { cgroup, loaded: Mutex::new(loaded) }
    }

    /// The sandbox of this process. The first call makes it and moves the process into it.
    ///
    /// # Panics
    ///
    /// If there cannot be one; call [`kernel_or_skip`] first.
    pub fn get() -> &'static Self {
        process_sandbox().as_ref().unwrap_or_else(|reason| panic!("no sandbox: {reason}"))
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &TestCgroup {
        &self.cgroup
    }

    /// The loaded BPF programs.
    pub fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Wait for an action of another process.
///
/// # Panics
///
/// If it does not happen within a time that is enough on every machine.
#[track_caller]
pub fn eventually(condition: impl FnMut() -> bool) {
    eventually_or(|| "it did not happen".into(), condition);
}

/// The same, with the message for a failure.
///
/// # Panics
///
/// As [`eventually`].
#[track_caller]
pub fn eventually_or(failure: impl Fn() -> String, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{}", failure());
        thread::sleep(Duration::from_millis(5));
    }
}

/// Put the calling thread into a new network namespace with loopback up, and return its cookie. The namespace ends with
/// the thread and the sockets made in it.
///
/// # Panics
///
/// Without CAP_SYS_ADMIN.
pub fn new_namespace() -> u64 {
    // SAFETY: CLONE_NEWNET changes only which network namespace this thread is in; descriptors and memory stay shared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.expect("a network namespace");
    loopback_up().expect("loopback up");
    portkeep_kernel::netns::current_cookie().expect("the namespace's cookie")
}

/// Put the calling thread into a mount namespace of its own: nobody else sees its mounts, and they end with the thread.
///
/// # Panics
///
/// Without CAP_SYS_ADMIN.
pub fn private_mounts() {
    use rustix::mount::{MountPropagationFlags, mount_change};
    // SAFETY: CLONE_NEWNS changes only this thread's mounts and (CLONE_FS, implied) working directory and root, which
    // no code here relies on being shared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.expect("a mount namespace");
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("private mounts");
}

/// `ip link set lo up` for the calling thread's namespace, without the program `ip`.
pub fn loopback_up() -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, and `request` is one with name and flags filled in.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
