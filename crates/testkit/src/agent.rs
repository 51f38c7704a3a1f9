//! The agent as a process of its own, on the BPF programs of this process's sandbox.

use std::{
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
};

use portkeep::{
    Info, State,
    persistent::{
        Connection,
        protocol::{self, Reloaded},
    },
};
use portkeep_agent::{Agent, Options, Programs};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{Sandbox, World, new_namespace, process::Child};

/// A folder with everything of an agent: drop-ins, configuration, store, socket.
#[derive(Debug)]
pub struct AgentFolder(TempDir);

impl AgentFolder {
    /// A new folder that other users can enter, since the socket is in it.
    ///
    /// # Panics
    ///
    /// If it cannot be made or used; this applies to the other functions here, too.
    #[expect(clippy::new_without_default, reason = "it makes folders")]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("open to all");
        fs::create_dir_all(folder.path().join("root/etc/portkeep/ports.d")).expect("a folder for drop-ins");
        Self(folder)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        protocol::socket_in(self.path())
    }

    /// A connection to the running agent.
    pub fn connect(&self) -> Connection {
        Connection::open_at(&self.socket()).expect("the agent listens")
    }

    fn drop_in_path(&self, name: &str) -> PathBuf {
        self.path().join("root/etc/portkeep/ports.d").join(name)
    }

    /// Write a drop-in. The agent reads it when it starts or reloads.
    pub fn drop_in(&self, name: &str, text: &str) {
        fs::write(self.drop_in_path(name), text).expect("a drop-in");
    }

    /// Remove a drop-in.
    pub fn withdraw(&self, name: &str) {
        fs::remove_file(self.drop_in_path(name)).expect("the drop-in is there");
    }

    /// Write the configuration.
    pub fn configure(&self, text: &str) {
        fs::write(self.path().join("portkeep.toml"), text).expect("a configuration");
    }

    /// Start the agent in the namespace of this thread.
    pub fn agent(&self) -> AgentProcess {
        AgentProcess::start(self.path())
    }

    /// Make the agent read its files again.
    pub fn reload(&self) -> Reloaded {
        self.connect().reload().expect("it reloads")
    }

    /// All declarations.
    pub fn list(&self) -> Vec<Info> {
        self.connect().list().expect("it lists")
    }

    /// The declarations in force, by name.
    pub fn in_force(&self) -> Vec<String> {
        let active = self.list().into_iter().filter(|info| info.state == State::Active);
        active.filter_map(|info| info.name).collect()
    }

    /// The state of one declaration.
    pub fn state(&self, name: &str) -> Option<State> {
        self.named(name).map(|info| info.state)
    }

    /// Why a declaration is in this state.
    #[track_caller]
    pub fn reason(&self, name: &str, state: State) -> String {
        let info = self.named(name).unwrap_or_else(|| panic!("{:?}", self.list()));
        assert_eq!(info.state, state, "{info:?}");
        info.reason.expect("a reason")
    }

    fn named(&self, name: &str) -> Option<Info> {
        self.list().into_iter().find(|info| info.name.as_deref() == Some(name))
    }
}

/// A running agent. When it is dropped, it is killed. It has copies of the descriptors that were open when it was
/// forked, so tests that start one run one at a time ([`World`]).
#[derive(Debug)]
pub struct AgentProcess {
    child: Child,
    stop: UnixStream,
    reload: UnixStream,
}

impl AgentProcess {
    /// Start it in the network namespace of this thread, with everything below `folder`.
    pub fn start(folder: &Path) -> Self {
        Self::start_in(folder, || {})
    }

    /// Start it in a network namespace without any client.
    pub fn start_apart(folder: &Path) -> Self {
        Self::start_in(folder, || {
            new_namespace();
        })
    }

    fn start_in(folder: &Path, prepare: impl FnOnce()) -> Self {
        let (stop, stopped) = UnixStream::pair().expect("a pair of sockets");
        let (reload, reloaded) = UnixStream::pair().expect("a pair of sockets");
        let mut child = Child::fork(|talk| {
            prepare();
            let mut programs = Programs::of_loaded(&mut Sandbox::get().loaded()).expect("kernel enforcement");
            let agent = Agent::start(&mut programs, &Options::below(folder)).expect("the agent starts");
            talk.say(1);
            agent.run(&stopped, &reloaded).expect("the agent runs");
        });
        assert_eq!(child.talk.hear(), 1);
        Self { child, stop, reload }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Send it a signal. After SIGSTOP it still counts as running.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid() as i32).expect("a pid");
        kill_process(pid, signal).expect("our own child");
    }

    /// Send SIGHUP: it reads its files again, some time later.
    pub fn hang_up(&self) {
        (&self.reload).write_all(b"h").expect("it listens");
    }

    /// The largest amount of memory it has used, KiB.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel reports it");
        line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
    }

    /// End it in an orderly way, and fail if it failed.
    #[track_caller]
    pub fn stop(self) {
        (&self.stop).write_all(b"!").expect("it listens");
        self.child.join();
    }

    /// SIGKILL.
    pub fn kill(self) {
        self.child.kill();
    }
}

/// End the persistent reservations that agents left in force.
///
/// # Panics
///
/// If the maps are wrong after that.
pub fn end_all(world: &World) {
    let admin = world.sandbox().loaded().admin().expect("the administrator program");
    let mut maps = world.maps();
    let persistent: Vec<_> = maps.reservations().flatten().filter(|(_, r)| r.is_persistent()).collect();
    for (id, r) in persistent {
        maps.end_persistent(&admin, id, r.token().expect("a token")).expect("it ends");
    }
    maps.sweep_persistent(&admin).expect("nothing is left");
    assert_eq!(maps.places().count(), 0);
    world.assert_consistent();
}
