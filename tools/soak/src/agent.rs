//! The agent as users run it: the command `portkeep agent`, with everything of its own below one folder.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use portkeep::{control, persistent::Connection};
use portkeep_testkit::{machine::keep_below, sockets::tcp};
use rustix::process::{Pid, Signal, kill_process};

use super::worker::die_with_parent;

/// Where everything of a run is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) folder: PathBuf,
    pub(super) portkeep: PathBuf,
}

impl Place {
    pub(super) fn bpffs(&self) -> PathBuf {
        self.folder.join("bpf")
    }

    pub(super) fn pins(&self) -> PathBuf {
        self.bpffs().join("portkeep")
    }

    pub(super) fn runtime(&self) -> PathBuf {
        self.folder.join("run")
    }

    pub(super) fn drop_ins(&self) -> PathBuf {
        self.folder.join("root/etc/portkeep/ports.d")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    pub(super) fn connect(&self) -> Result<Connection, portkeep::persistent::PersistentError> {
        Connection::open_at(&portkeep::persistent::protocol::socket_in(&self.runtime()))
    }

    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.portkeep);
        keep_below(&self.folder, command.args(words));
        command.env("PORTKEEP_CONFIG", self.folder.join("portkeep.toml")).env("PORTKEEP_LOG", "info");
        command.env_remove("PORTKEEP_ENFORCE").env_remove("PORTKEEP_SERVE").stdin(Stdio::null());
        // SAFETY: the new process does one system call, prctl, before it becomes another program.
        unsafe {
            command.pre_exec(|| {
                die_with_parent();
                Ok(())
            });
        }
        command
    }

    /// The end of the agent's log.
    pub(super) fn log_tail(&self) -> String {
        let text = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// Whether an agent runs, according to the BPF programs.
fn is_served() -> bool {
    control::version(tcp()).is_ok_and(|version| version.agent == 1)
}

/// An agent, running or about to.
#[derive(Debug)]
pub(super) struct Agent {
    child: Child,
    serves: bool,
}

impl Agent {
    /// Start it. Only one may run.
    pub(super) fn start(place: &Place) -> Result<Self> {
        let log = File::options().create(true).append(true).open(place.log()).context("opening the agent's log")?;
        let child =
            place.command(&["agent"]).stdout(Stdio::null()).stderr(log).spawn().context("starting the agent")?;
        Ok(Self { child, serves: false })
    }

    /// Whether it has served at some time.
    pub(super) fn serves(&mut self) -> bool {
        self.serves = self.serves || is_served();
        self.serves
    }

    pub(super) fn wait_until_it_serves(&mut self) -> Result<()> {
        let begin = Instant::now();
        while !self.serves() {
            if let Some(status) = self.ended()? {
                bail!("the agent did not start ({status})");
            }
            ensure!(begin.elapsed() < Duration::from_secs(300), "the agent does not come to serve");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id() as i32).context("a pid")?;
        Ok(kill_process(pid, signal)?)
    }

    pub(super) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM; it must end well.
    pub(super) fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "asked to stop, the agent ended with {status}");
        Ok(())
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// The sysctl that the agent keeps up to date, of this namespace.
pub(super) fn reserved_ports() -> Result<String> {
    // In one read: a second one finds nothing.
    let mut text = vec![0; 1 << 18];
    let length = File::open(RESERVED).and_then(|mut file| file.read(&mut text)).context(RESERVED)?;
    Ok(String::from_utf8_lossy(&text[..length]).trim().to_owned())
}

pub(super) const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// The same as a set.
pub(super) fn reserved_set(text: &str) -> std::collections::BTreeSet<u16> {
    let blocks = text.split(',').filter(|part| !part.is_empty());
    blocks.filter_map(|block| block.parse::<portkeep_core::PortRange>().ok()).flatten().collect()
}

/// Whether a folder can be read and has no entries.
pub(super) fn is_empty_folder(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}
