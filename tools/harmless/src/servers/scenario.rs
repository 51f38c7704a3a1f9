//! A server and what its clients do with it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use portkeep::{Require, Reservation};
use portkeep_testkit::places::{Places, inside};
use tempfile::TempDir;

use crate::{
    server::Server,
    suite::{Outcomes, PASSED, Unit},
};

pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// Its programs and those of its clients.
    pub(super) programs: &'static [&'static str],
    /// The packages with these.
    pub(super) packages: &'static str,
    pub(super) play: fn(&Surroundings) -> Result<Outcomes>,
}

impl Unit for Scenario {
    fn suite(&self) -> &str {
        self.name
    }

    fn name(&self) -> String {
        self.name.into()
    }

    fn run(&self, cgroup: &Path) -> Result<Outcomes> {
        let surroundings = Surroundings::below(cgroup)?;
        let play = || {
            Places::fresh_network();
            // A neighbour, so that the namespace is not an empty one. No server here uses these ports.
            let neighbour = Reservation::tcp().at(65000).ports(64).require(Require::Kernel).acquire()?;
            let outcomes = (self.play)(&surroundings);
            neighbour.release()?;
            outcomes
        };
        let played = thread::scope(|scope| scope.spawn(play).join());
        played.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).with_context(|| self.name)
    }
}

/// A cgroup and a folder of the server's own. Its network namespace is that of the thread.
pub(super) struct Surroundings {
    cgroup: PathBuf,
    folder: TempDir,
}

impl Surroundings {
    fn below(cgroup: &Path) -> Result<Self> {
        let folder = tempfile::tempdir().context("a temporary folder")?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let cgroup = cgroup.join(folder.path().file_name().context("its name")?);
        fs::create_dir(&cgroup).context("a cgroup of the server's own")?;
        Ok(Self { cgroup, folder })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Make a folder for a server that gives up root.
    pub(super) fn open_folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        Ok(path)
    }

    /// Write a configuration, in which FOLDER is the surroundings's.
    pub(super) fn configure(&self, name: &str, text: &str) -> Result<PathBuf> {
        let file = self.path(name);
        fs::write(&file, text.replace("FOLDER", &self.folder.path().to_string_lossy()))?;
        Ok(file)
    }

    /// A program in the server's cgroup.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = inside(&self.cgroup, program);
        command.current_dir(self.folder.path());
        command
    }

    /// Start a server in the foreground, and wait until it listens on a TCP port.
    pub(super) fn serve(&self, mut command: Command, port: u16) -> Result<Server> {
        let log = self.path(&format!("{port}.log"));
        command.stderr(fs::File::create(&log)?);
        Server::start(command, port).with_context(|| fs::read_to_string(log).unwrap_or_default())
    }
}

impl Drop for Surroundings {
    fn drop(&mut self) {
        // The server has ended; processes that it started end here.
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        for _ in 0..100 {
            if fs::remove_dir(&self.cgroup).is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// An outcome as the comparison has it: what is wrong, if anything.
pub(super) fn outcome(result: Result<()>) -> String {
    result.map_or_else(|error| format!("{error:#}"), |()| PASSED.into())
}
