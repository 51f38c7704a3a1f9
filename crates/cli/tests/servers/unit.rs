//! A cgroup with processes in it, as a service manager makes one for a service.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File},
    io::Read,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
};

use nix::unistd::User;
use portkeep_kernel::cgroup;
use portkeep_testkit::eventually_or;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// An ordinary user of the machine.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    pub(crate) fn named(name: &str) -> Option<Self> {
        let user = User::from_name(name).ok()??;
        Some(Self { uid: user.uid.as_raw(), gid: user.gid.as_raw() })
    }
}

/// A cgroup, a folder and a user for one service. When it is dropped, all its processes are ended.
pub(crate) struct Unit {
    cgroup: PathBuf,
    folder: PathBuf,
    account: Account,
    seen: usize,
}

impl Unit {
    /// `cgroup` and `folder` are made.
    pub(crate) fn new(cgroup: PathBuf, folder: PathBuf, account: Account) -> Self {
        fs::create_dir_all(&cgroup).unwrap();
        fs::create_dir_all(&folder).unwrap();
        // The server may write into the log itself.
        File::create(folder.join("log")).unwrap();
        for path in [&folder, &folder.join("log")] {
            chown(path, Some(account.uid), Some(account.gid)).unwrap();
        }
        Self { cgroup, folder, account, seen: 0 }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    /// Its cgroup below the root of the hierarchy.
    pub(crate) fn cgroup(&self) -> String {
        format!("/{}", self.cgroup.strip_prefix(cgroup::root().unwrap()).unwrap().display())
    }

    /// A command in the cgroup, as the user and without any capability, with an IPC namespace of its own: System V
    /// memory of a killed server ends with the namespace. Its output is in the log.
    fn command(&self, program: &Path, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let log = File::options().append(true).open(self.folder.join("log")).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo 0 >\"$0\" && exec \"$@\""]).arg(self.cgroup.join("cgroup.procs"));
        command.args(["unshare", "--ipc", "--setgid", &self.account.gid.to_string()]);
        command.args(["--setuid", &self.account.uid.to_string(), "--"]).arg(program).args(arguments);
        command.current_dir(&self.folder).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command
    }

    /// Run to the end.
    pub(crate) fn run(&self, program: &Path, arguments: &[&str]) -> ExitStatus {
        self.command(program, arguments).status().unwrap()
    }

    /// Start, and leave it running.
    pub(crate) fn spawn(&self, program: &Path, arguments: &[&str]) {
        // The process is waited for together with all others in the cgroup.
        drop(self.command(program, arguments).spawn().unwrap());
    }

    /// New lines in the log since the last time.
    pub(crate) fn news(&mut self) -> String {
        let mut text = String::new();
        File::open(self.folder.join("log")).unwrap().read_to_string(&mut text).unwrap();
        let news = text.split_off(self.seen);
        self.seen += news.len();
        news
    }

    /// The server's log says that it got all its ports at the first try.
    #[track_caller]
    pub(crate) fn assert_not_refused(&mut self, when: &str) {
        let news = self.news();
        for refusal in ["bind()", "could not bind", "in use", "[emerg]", "Could not create server"] {
            assert!(!news.contains(refusal), "refused its own port after {when}:\n{news}");
        }
    }

    /// Its processes.
    pub(crate) fn processes(&self) -> BTreeSet<i32> {
        let text = fs::read_to_string(self.cgroup.join("cgroup.procs")).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    pub(crate) fn signal(&self, pid: i32, signal: Signal) {
        assert!(self.processes().contains(&pid), "{pid} is not of {}", self.cgroup());
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Wait until none of these is left. They are our children: the ones we started, and the orphans.
    pub(crate) fn await_end(&self, pids: &BTreeSet<i32>) {
        for pid in pids {
            let pid = Pid::from_raw(*pid).unwrap();
            eventually_or(
                || format!("the end of {pid:?} of {}", self.cgroup()),
                || {
                    let _ = waitpid(Some(pid), WaitOptions::NOHANG);
                    rustix::process::test_kill_process(pid).is_err()
                },
            );
        }
    }

    /// Send a signal that ends them all, and wait until it has.
    pub(crate) fn end(&self, main: i32, signal: Signal) {
        // Listed before the signal: processes that have ended must be waited for, and are not listed.
        let pids = self.processes();
        self.signal(main, signal);
        self.await_end(&pids);
        self.await_all();
    }

    /// Wait until all have ended.
    fn await_all(&self) {
        self.await_end(&self.processes());
        eventually_or(|| format!("an empty {}", self.cgroup()), || self.processes().is_empty());
    }

    /// SIGKILL for all at once.
    pub(crate) fn crash(&self) {
        let pids = self.processes();
        fs::write(self.cgroup.join("cgroup.kill"), "1").unwrap();
        self.await_end(&pids);
        self.await_all();
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // Listed before the kill: processes that have ended are not listed.
        let pids = self.processes();
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        for pid in pids {
            let _ = waitpid(Pid::from_raw(pid), WaitOptions::empty());
        }
        if thread::panicking() {
            let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("end of the log of {}:", self.cgroup());
            last.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        let _ = fs::remove_dir(&self.cgroup);
    }
}
