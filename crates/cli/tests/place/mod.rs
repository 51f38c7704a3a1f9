//! An agent of the test's own, with its folders.
#![allow(dead_code, reason = "each test binary needs a part")]

use std::{
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
};

use portkeep::{
    Info, State,
    persistent::{Connection, protocol},
};
use portkeep_agent::{Agent, KernelPart, Options};
use portkeep_testkit::{Sandbox, World, process::Child};

/// A folder with everything of an agent: drop-ins, configuration, store, socket.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Other users have to get to the socket.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        protocol::socket_in(self.path())
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open_at(&self.socket()).unwrap()
    }

    pub(crate) fn drop_in(&self, name: &str, text: &str) {
        let folder = self.path().join("root/etc/portkeep/ports.d");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), text).unwrap();
    }

    pub(crate) fn configure(&self, text: &str) {
        fs::write(self.path().join("portkeep.toml"), text).unwrap();
    }

    pub(crate) fn agent(&self) -> AgentProcess {
        AgentProcess::start(self.path())
    }

    pub(crate) fn list(&self) -> Vec<Info> {
        self.connect().list().unwrap()
    }

    pub(crate) fn state(&self, name: &str) -> Option<State> {
        self.named(name).map(|info| info.state)
    }

    /// Why it is in this state.
    pub(crate) fn reason(&self, name: &str, state: State) -> String {
        let info = self.named(name).unwrap_or_else(|| panic!("{:?}", self.list()));
        assert_eq!(info.state, state, "{info:?}");
        info.reason.unwrap()
    }

    fn named(&self, name: &str) -> Option<Info> {
        self.list().into_iter().find(|info| info.name.as_deref() == Some(name))
    }
}

/// A running agent in the namespace of the test; dropped, it is killed.
pub(crate) struct AgentProcess {
    pub(crate) child: Child,
    stop: UnixStream,
    reload: UnixStream,
}

impl AgentProcess {
    pub(crate) fn start(folder: &Path) -> Self {
        let (stop, told) = UnixStream::pair().unwrap();
        let (reload, again) = UnixStream::pair().unwrap();
        let mut child = Child::fork(|talk| {
            let mut kernel = KernelPart::of_loaded(&mut Sandbox::get().loaded()).unwrap();
            let agent = Agent::start(&mut kernel, &Options::below(folder)).unwrap();
            talk.say(1);
            agent.run(&told, &again).unwrap();
        });
        assert_eq!(child.talk.hear(), 1);
        Self { child, stop, reload }
    }

    pub(crate) fn stop(self) {
        (&self.stop).write_all(b"!").unwrap();
        self.child.join();
    }

    /// As SIGHUP: it reads its files again.
    pub(crate) fn hang_up(&self) {
        (&self.reload).write_all(b"h").unwrap();
    }

    pub(crate) fn kill(self) {
        self.child.kill();
    }
}

/// Reservations that the agents of this test left in force end here.
pub(crate) fn end_all(world: &World) {
    let admin = world.sandbox().loaded().admin().unwrap();
    let mut maps = world.maps();
    let persistent: Vec<_> = maps.reservations().flatten().filter(|(_, r)| r.is_persistent()).collect();
    for (id, r) in persistent {
        maps.end_persistent(&admin, id, r.token().unwrap()).unwrap();
    }
    maps.sweep_persistent(&admin).unwrap();
    assert_eq!(maps.places().count(), 0);
    world.assert_consistent();
}
