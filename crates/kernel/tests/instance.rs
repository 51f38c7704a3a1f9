//! The pinned instance: brought up, adopted, of another version, upgraded, taken down.

use std::{
    fs, io,
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use portkeep::control;
use portkeep_core::{
    Errno, Token,
    wire::{self, AcquireRequest},
};
use portkeep_kernel::{BUILD, Instance, InstanceError, UpOptions, bpffs};
use portkeep_testkit::{TestCgroup, at_root, kernel_or_skip, new_namespace, private_mounts, sockets::tcp};

/// A BPF file system that only this thread sees, and a cgroup that this process is in. There is one at a time.
struct Ground {
    _alone: MutexGuard<'static, ()>,
    folder: PathBuf,
    cgroup: TestCgroup,
    mounted: tempfile::TempDir,
}

impl Ground {
    fn new() -> Self {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        private_mounts();
        new_namespace();
        let mounted = tempfile::tempdir().unwrap();
        assert!(bpffs::ensure(mounted.path()).unwrap());
        let cgroup = TestCgroup::new("instance").unwrap();
        cgroup.enter(std::process::id()).unwrap();
        Self { _alone: alone, folder: mounted.path().join("portkeep"), cgroup, mounted }
    }

    fn options(&self) -> UpOptions {
        let mut options = UpOptions::default();
        options.folder = Some(self.folder.clone());
        options.enforce = (!at_root()).then(|| self.cgroup.path().to_owned());
        options
    }
}

fn bind_errno(port: u16) -> Option<Errno> {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let error = tcp().bind(&address.into()).err()?;
    error.raw_os_error().map(Errno)
}

/// A script that runs `down` and then starts a server on one of its ports must not be refused.
#[test]
fn nothing_is_enforced_any_more_when_down_returns() {
    if !kernel_or_skip("nothing_is_enforced_any_more_when_down_returns") {
        return;
    }
    let ground = Ground::new();
    for _ in 0..5 {
        Instance::up(&ground.options()).unwrap();
        // Strict: this process requires association, so its bind is refused, too.
        let owner = tcp();
        let strict = AcquireRequest { start: 61000, count: 1, flags: wire::STRICT, ..Default::default() };
        control::acquire(&owner, &strict).unwrap();
        assert_eq!(bind_errno(61000), Some(Errno::EADDRINUSE));
        Instance::down(&ground.folder).unwrap();
        assert_eq!(bind_errno(61000), None);
    }
}

#[test]
fn another_version_is_refused_by_name_and_an_upgrade_does_not_blink() {
    if !kernel_or_skip("another_version_is_refused_by_name_and_an_upgrade_does_not_blink") {
        return;
    }
    let ground = Ground::new();
    assert!(matches!(Instance::open(&ground.folder), Err(InstanceError::NotUp(_))));
    let instance = Instance::up(&ground.options()).unwrap();
    assert!(instance.is_newly_up());
    assert!(!Instance::up(&ground.options()).unwrap().is_newly_up());

    let owner = tcp();
    let request = AcquireRequest { count: 2, flags: portkeep_core::wire::STRICT, ..Default::default() };
    control::acquire(&owner, &request).unwrap();
    let grant = control::granted(&owner).unwrap();

    instance.pretend_build(BUILD ^ 1).unwrap();
    let skew = Instance::up(&ground.options()).unwrap_err();
    assert!(matches!(skew, InstanceError::Skew { .. }));
    let text = skew.to_string();
    assert!(text.contains(&format!("{:016x}", BUILD ^ 1)) && text.contains(&format!("{BUILD:016x}")), "{text}");

    let done = AtomicBool::new(false);
    let netns = fs::File::open("/proc/thread-self/ns/net").unwrap();
    thread::scope(|scope| {
        let outsider = scope.spawn(|| {
            portkeep_kernel::netns::within(&netns, || {
                let mut tried = 0;
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(bind_errno(grant.start), Some(Errno::EADDRINUSE));
                    tried += 1;
                }
                tried
            })
        });
        for _ in 0..5 {
            instance.pretend_build(BUILD ^ 1).unwrap();
            assert!(Instance::upgrade(&ground.folder).unwrap());
            assert!(!Instance::upgrade(&ground.folder).unwrap());
        }
        done.store(true, Ordering::Relaxed);
        assert!(outsider.join().unwrap().unwrap() > 0);
    });

    // Earlier reservations are still in force, and the new programs know them.
    Instance::open(&ground.folder).unwrap();
    assert_eq!(control::granted(&owner).unwrap(), grant);
    control::release(&owner, Token::new(grant.token).unwrap()).unwrap();

    control::acquire(&owner, &request).unwrap();
    assert_eq!(Instance::down(&ground.folder).unwrap().reservations, 1);
    assert_eq!(control::granted(&owner).unwrap_err().kind(), io::ErrorKind::Unsupported);
    assert_eq!(bind_errno(grant.start), None);
    assert!(!bpffs::is_bpffs(ground.mounted.path()), "what up mounted, down unmounts");
    assert_eq!(fs::read_dir(ground.mounted.path()).unwrap().count(), 0);
}
