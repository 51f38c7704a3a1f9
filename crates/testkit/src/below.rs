use std::{
    fs,
    path::{Path, PathBuf},
};

use portkeep_kernel::cgroup;

use crate::{World, process::Child};

/// A cgroup below the sandbox's cgroup. When it is dropped, it is removed.
#[derive(Debug)]
pub struct Below(PathBuf);

impl Below {
    /// Make it at this path below the sandbox's cgroup, with the cgroups in between.
    ///
    /// # Panics
    ///
    /// If it cannot be made or used; this applies to the other functions here, too.
    pub fn new(world: &World, path: &str) -> Self {
        let path = world.sandbox().cgroup().path().join(path);
        fs::create_dir_all(&path).expect("the cgroup can be made");
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Its id in the kernel.
    pub fn id(&self) -> u64 {
        cgroup::id(&self.0).expect("the cgroup is there")
    }

    /// The path below the hierarchy's root, as `/a/b`.
    pub fn name(&self) -> String {
        let root = cgroup::root().expect("a cgroup v2 hierarchy");
        format!("/{}", self.0.strip_prefix(root).expect("it is below the root").display())
    }

    /// The answer of a process in this cgroup.
    pub fn ask(&self, work: impl FnOnce() -> u64) -> u64 {
        let procs = self.0.join("cgroup.procs");
        let mut child = Child::fork(move |talk| {
            fs::write(&procs, "0").expect("a process can enter the cgroup");
            talk.say(work());
        });
        let answer = child.talk.hear();
        child.join();
        answer
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
