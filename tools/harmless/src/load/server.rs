//! A server of somebody's, in a cgroup, for as long as it is needed.

use std::{
    net::{Ipv4Addr, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Whether all of these can be started; says what cannot.
pub(super) fn installed(what: &str, programs: &[&str], packages: &str) -> bool {
    for program in programs {
        if let Err(error) = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status()
        {
            println!("SKIPPED {what} under load: {program}: {error}; apt-get install {packages}");
            return false;
        }
    }
    true
}

/// Killed when dropped.
pub(super) struct Server(Child);

impl Server {
    /// Start it and wait until it listens.
    pub(super) fn start(mut command: Command, port: u16) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut server = Self(command.spawn().with_context(|| format!("starting {command:?}"))?);
        let begun = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Some(status) = server.0.try_wait()? {
                bail!("{command:?} ended ({status})");
            }
            if begun.elapsed() > Duration::from_secs(20) {
                bail!("{command:?} does not listen on {port}");
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
