//! A client that asks a port server until it gets no more.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixStream},
    },
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

pub(super) fn run(address: &str) -> Result<()> {
    let name = address.strip_prefix('@').context("an abstract address")?;
    let address = SocketAddr::from_abstract_name(name)?;
    let mut given = 0;
    // As portpicker asks: a connection for each port.
    while ask(&address)? {
        given += 1;
    }
    println!("{given}");
    // The ports are its own until it ends.
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn ask(address: &SocketAddr) -> Result<bool> {
    let mut server = UnixStream::connect_addr(address)?;
    // In one write: servers look once.
    server.write_all(format!("{}\n", std::process::id()).as_bytes())?;
    let mut answer = String::new();
    server.read_to_string(&mut answer)?;
    Ok(!answer.is_empty())
}

/// A client that has all the ports it was given. Dropped, it ends.
pub(crate) struct Exhausted {
    child: Child,
    pub(crate) given: usize,
}

impl Exhausted {
    /// The client that `command` starts.
    pub(crate) fn by(mut command: Command, address: &str) -> Result<Self> {
        command.arg(address).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting a client")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
        let given = line.trim().parse().with_context(|| format!("a client says {line:?}"))?;
        Ok(Self { child, given })
    }
}

impl Drop for Exhausted {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
