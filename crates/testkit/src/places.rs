//! Two places to measure in: a cgroup with Portkeep's BPF programs attached, and one without them, with network
//! namespaces of this process. All of them end with the process.

use std::{
    cell::Cell,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Sandbox, TestCgroup, kernel_or_skip, new_namespace};

/// Both cgroups.
#[derive(Debug)]
pub struct Places {
    with: &'static Sandbox,
    without: TestCgroup,
    /// How many cgroups below them were made so far.
    subgroups: Cell<u32>,
}

impl Places {
    /// Make both cgroups and move this process into the one with the programs. `None`, after a message, where the
    /// kernel tests cannot run. Fetch everything from the network before the first
    /// [`fresh_network`](Self::fresh_network).
    pub fn make(task: &str) -> io::Result<Option<Self>> {
        if !kernel_or_skip(task) {
            return Ok(None);
        }
        let without = TestCgroup::new("without")?;
        let places = Self { with: Sandbox::get(), without, subgroups: Cell::new(0) };
        Ok(Some(places))
    }

    /// Make a network namespace for this thread and the processes that it starts from now on.
    pub fn fresh_network() {
        new_namespace();
    }

    /// The cgroup with the programs, or the one without.
    pub fn cgroup(&self, with: bool) -> &TestCgroup {
        if with { self.with.cgroup() } else { &self.without }
    }

    /// A new cgroup below that one.
    pub fn subgroup(&self, with: bool) -> io::Result<PathBuf> {
        let number = self.subgroups.get() + 1;
        self.subgroups.set(number);
        self.cgroup(with).child(&number.to_string())
    }
}

/// A program that moves into a cgroup before it starts: all its sockets belong to that cgroup.
pub fn inside(cgroup: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", r#"echo 0 >"$0/cgroup.procs" && exec "$@""#]).arg(cgroup).arg(program);
    command
}

/// The same for a command that is complete except for its input and output.
pub fn moved(cgroup: &Path, command: &Command) -> Command {
    let mut inside = inside(cgroup, command.get_program());
    inside.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => inside.env(name, value),
            None => inside.env_remove(name),
        };
    }
    inside
}
