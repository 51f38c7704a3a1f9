//! Mumble's server on its default port, which lies in the pool.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::scenario::{Scenario, Surroundings, outcome};
use crate::suite::Outcomes;

pub(super) const MUMBLE: Scenario =
    Scenario { name: "Mumble on 64738", programs: &["murmurd"], packages: "mumble-server", play };

fn play(surroundings: &Surroundings) -> Result<Outcomes> {
    let configuration = "database=FOLDER/data/murmur.sqlite\nlogfile=FOLDER/data/murmur.log\nbonjour=false\n";
    surroundings.open_folder("data")?;
    let mut murmurd = surroundings.command("murmurd");
    murmurd.args(["-fg", "-ini"]).arg(surroundings.configure("murmur.ini", configuration)?);
    // Its control connection.
    let _server = surroundings.serve(murmurd, 64738)?;
    Ok([("TCP listens".into(), outcome(Ok(()))), ("UDP answers".into(), outcome(ping()))].into())
}

/// Four zero bytes and an identifier, which comes back behind the version. The server hears it some time after TCP.
fn ping() -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(250)))?;
    let mut reply = [0; 64];
    let answer = (0..120).find_map(|_| {
        socket.send_to(b"\0\0\0\0harmless", (Ipv4Addr::LOCALHOST, 64738)).ok()?;
        socket.recv(&mut reply).ok()
    });
    let reply = &reply[..answer.context("no answer in half a minute")?];
    ensure!(reply.len() == 24 && reply[4..].starts_with(b"harmless"), "the answer is {reply:?}");
    Ok(())
}
