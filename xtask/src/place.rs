//! Where things are measured: a cgroup with the kernel part and one without,
//! and a network namespace of our own. Nothing of it outlives this process.

use std::{
    cell::Cell,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use portkeep_testkit::{Sandbox, TestCgroup, kernel_or_skip, new_namespace};

pub(crate) struct Places {
    with: &'static Sandbox,
    without: TestCgroup,
    /// Made so far.
    subgroups: Cell<u32>,
}

impl Places {
    /// Make the cgroups, and move into the one with the kernel part. `None`, with a word to the user, where that cannot
    /// be. What is to be fetched from elsewhere has to be fetched before the first [`fresh_network`](Self::fresh_network).
    pub(crate) fn make(task: &str) -> Result<Option<Self>> {
        if !kernel_or_skip(task) {
            return Ok(None);
        }
        let without = TestCgroup::new("without").context("a cgroup of our own")?;
        let places = Self { with: Sandbox::get(), without, subgroups: Cell::new(0) };
        Ok(Some(places))
    }

    /// Another network namespace for this thread and what it starts from now on.
    pub(crate) fn fresh_network() {
        new_namespace();
    }

    /// The cgroup with the kernel part, or the one without.
    pub(crate) fn cgroup(&self, with: bool) -> &TestCgroup {
        if with { self.with.cgroup() } else { &self.without }
    }

    /// A new cgroup below it.
    pub(crate) fn subgroup(&self, with: bool) -> Result<PathBuf> {
        let number = self.subgroups.get() + 1;
        self.subgroups.set(number);
        self.cgroup(with).child(&number.to_string()).context("a cgroup of our own")
    }
}

/// A program that moves into a cgroup before it begins: all its sockets belong there.
pub(crate) fn inside(cgroup: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", r#"echo 0 >"$0/cgroup.procs" && exec "$@""#]).arg(cgroup).arg(program);
    command
}

/// The same for a command that is ready to be started but for its input and output.
pub(crate) fn moved(cgroup: &Path, command: &Command) -> Command {
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
