//! The agent, in the namespace of the test, with a folder of its own.

use std::{
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
};

use portkeep::{
    State,
    persistent::{
        Connection,
        protocol::{self, Reloaded},
    },
};
use portkeep_agent::{Agent, KernelPart, Options};
use portkeep_testkit::{Sandbox, process::Child};

/// Everything below one folder.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Servers that run as other users have their folders in it.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(folder.path().join("root/etc/portkeep/ports.d")).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join("root/etc/portkeep/ports.d").join(name)
    }

    pub(crate) fn drop_in(&self, name: &str, text: &str) {
        fs::write(self.file(name), text).unwrap();
    }

    pub(crate) fn withdraw(&self, name: &str) {
        fs::remove_file(self.file(name)).unwrap();
    }

    pub(crate) fn reload(&self) -> Reloaded {
        self.connect().reload().unwrap()
    }

    fn connect(&self) -> Connection {
        Connection::open_at(&protocol::socket_in(self.path())).unwrap()
    }

    /// The declarations in force, by name.
    pub(crate) fn in_force(&self) -> Vec<String> {
        let active = self.connect().list().unwrap().into_iter().filter(|info| info.state == State::Active);
        active.map(|info| info.name.unwrap()).collect()
    }

    /// Start it.
    pub(crate) fn agent(&self) -> AgentProcess {
        let (stop, told) = UnixStream::pair().unwrap();
        let (hup, again) = UnixStream::pair().unwrap();
        let mut child = Child::fork(|talk| {
            let mut kernel = KernelPart::of_loaded(&mut Sandbox::get().loaded()).unwrap();
            let agent = Agent::start(&mut kernel, &Options::below(self.path())).unwrap();
            talk.say(1);
            agent.run(&told, &again).unwrap();
        });
        assert_eq!(child.talk.hear(), 1);
        AgentProcess { child, stop, hup }
    }
}

/// A running agent; dropped, it is killed.
pub(crate) struct AgentProcess {
    child: Child,
    stop: UnixStream,
    hup: UnixStream,
}

impl AgentProcess {
    /// The effect of SIGHUP; done when it pleases.
    pub(crate) fn hang_up(&self) {
        (&self.hup).write_all(b"h").unwrap();
    }

    pub(crate) fn stop(self) {
        (&self.stop).write_all(b"!").unwrap();
        self.child.join();
    }

    /// SIGKILL.
    pub(crate) fn kill(self) {
        self.child.kill();
    }
}
