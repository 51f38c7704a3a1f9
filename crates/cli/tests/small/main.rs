//! Portkeep on small machines: without rights, in containers, without cgroup v2, with a read-only `/sys`, without an
//! agent, with few descriptors, with a full disk. The real command in each of these worlds, made for real, and the
//! library where it matters.
//!
//! Each needs: a message that names the thing and what to do, the documented exit status, held mode where that
//! is a sensible fallback and never where enforcement was asked for, and nothing half-done left behind.
//! `docs/guides/small-machines.md` is the table of it.

#[allow(dead_code)]
#[path = "../bed/mod.rs"]
mod bed;

mod cgroup1;
mod container;
mod descriptors;
mod disk;
mod docs;
mod helper;
mod no_agent;
mod sys;
mod user;

use std::process::{Child, Command, Stdio};

use bed::{Bed, Said, eventually};

/// A bed, or leave the test where the kernel tests cannot run.
macro_rules! machine {
    ($name:literal) => {
        $crate::machine!($name, $crate::bed::Bed::with_network($name))
    };
    ($name:literal, $bed:expr) => {
        match portkeep_testkit::kernel_or_skip(concat!("small::", $name)) {
            true => $bed,
            false => return,
        }
    };
}
pub(crate) use machine;

/// A message that helps nobody: an error number without a remedy.
fn is_bare(line: &str) -> bool {
    let line = line.strip_prefix("error: ").unwrap_or(line);
    std::io::Error::from_raw_os_error(number_in(line)).to_string() == line
}

/// The number in "... (os error 13)", or one that no error has.
fn number_in(line: &str) -> i32 {
    line.rsplit_once("(os error ").and_then(|(_, end)| end.trim_end_matches(')').parse().ok()).unwrap_or(0)
}

impl Said {
    /// It failed with this status, for a reason that has these words in it and is more than an error number.
    #[track_caller]
    fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.tells(words)
    }

    /// On standard error, each of these, and nothing bare.
    #[track_caller]
    fn tells(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in {self:?}");
        }
        assert!(!self.err.contains("panicked") && !self.err.lines().any(is_bare), "{self:?}");
        self
    }
}

impl Bed {
    /// Nothing pinned, no lock, no cgroup below ours, no BPF file system of ours left mounted.
    #[track_caller]
    fn is_clean(&self) {
        let list = self.program(&["ls", "-A", self.folder.path().join("bpf").to_str().unwrap()]).output().unwrap();
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        assert!(list.lines().all(|name| name.ends_with(".debug")), "{list}");
        assert_eq!(self.subgroups(), Vec::<String>::new());
    }

    /// That what went wrong before has done no lasting harm.
    #[track_caller]
    fn works(&self) {
        self.portkeep(&["up"]).ok();
        let said = self.portkeep(&["run", "--", "sh", "-c", "echo $PORTKEEP_ENFORCEMENT"]).ok();
        assert_eq!((said.out.as_str(), said.err.as_str()), ("kernel\n", ""));
        self.portkeep(&["down"]).ok();
        self.is_clean();
    }

    /// `sh -c`, in the namespaces.
    #[track_caller]
    fn shell(&self, script: &str) -> Said {
        self.program(&["sh", "-c", script, self.folder.path().to_str().unwrap()]).output().unwrap().into()
    }

    /// Where the agent's log goes.
    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("agent.log")).unwrap_or_default()
    }

    /// The agent, started by this command and running.
    fn agent(&self, mut command: Command) -> Agent {
        let log = std::fs::File::create(self.folder.path().join("agent.log")).unwrap();
        let agent = Agent(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        eventually(|| self.portkeep(&["status", "--json"]).ok().json()["agent"] == true);
        agent
    }
}

/// Killed when dropped.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Started by the other tests in the place of somebody else.
#[test]
#[ignore = "plays somebody else for the other tests"]
fn helper_binds() {
    bed::help();
}

#[test]
fn bare_messages_are_recognised() {
    assert!(is_bare("error: Permission denied (os error 13)"));
    assert!(is_bare("Too many open files (os error 24)"));
    assert!(!is_bare("error: reading /etc/x: Permission denied (os error 13)"));
    assert!(!is_bare("note: was not up"));
}
