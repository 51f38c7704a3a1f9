//! A server of another project, in a cgroup, for as long as it is needed.

use std::{
    env,
    net::{Ipv4Addr, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Whether these files are there: programs in `PATH`, or anything by its path. Reports what is missing.
pub(super) fn installed(what: &str, programs: &[&str], packages: &str) -> bool {
    let folders: Vec<_> = env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    let missing = programs.iter().find(|program| !folders.iter().any(|folder| folder.join(program).is_file()));
    if let Some(program) = missing {
        println!("SKIPPED {what}: {program} is missing; apt-get install {packages}");
    }
    missing.is_none()
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
            if begun.elapsed() > Duration::from_secs(60) {
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
