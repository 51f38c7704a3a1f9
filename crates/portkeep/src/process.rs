//! Processes and their sockets, as listings name them.

use std::fmt;

use portkeep_core::{Time, Transport};
use serde::{Deserialize, Serialize};

/// A process as listings name it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Process {
    /// Its number. The number of an owner process is that of the first pid namespace. In a container, `getpid` returns
    /// another one.
    pub pid: u32,
    /// Its command name, at most 15 bytes.
    pub comm: String,
    /// Its command line, if it still runs and can be seen.
    pub command: Option<String>,
    /// Its real uid, if it can be seen. Of an owner process: its uid when it called ACQUIRE.
    pub uid: Option<u32>,
    /// The name of that user, if it has one and was looked up.
    pub user: Option<String>,
    /// Its systemd unit, or else its cgroup, if it still runs and can be seen.
    pub unit: Option<String>,
    /// When it began, if it still runs and can be seen.
    pub started: Option<Time>,
}

/// "pid 812 (nginx)".
impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} ({})", self.pid, self.comm)
    }
}

/// A socket on a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BoundSocket {
    /// The port, host byte order.
    pub port: u16,
    /// Its transport.
    pub transport: Transport,
    /// Its state: "listening", "bound", "connected", "connecting", "closing" or "TIME-WAIT", if it was looked up.
    pub state: Option<String>,
    /// Its own address and port, if they were looked up.
    pub local: Option<String>,
    /// The address and port at the other end, if it is connected and they were looked up.
    pub peer: Option<String>,
    /// The process that has it open; `None` if none has, or none that can be seen.
    pub process: Option<Process>,
    /// Whether it is the kernel's own: no process has it open.
    #[serde(default)]
    pub kernel: bool,
    /// The user that made it, if a process has it open.
    pub uid: Option<u32>,
    /// The name of that user, if it has one.
    pub user: Option<String>,
    /// The systemd unit, or else the cgroup, of its process. If no process has it open: the one that it was made in.
    pub unit: Option<String>,
    /// The seconds until the kernel ends it, if it is in TIME_WAIT.
    pub remaining: Option<u64>,
}
