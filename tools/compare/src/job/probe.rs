//! An outsider tries to get ports that were taken for others.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use portkeep::{AcquireError, Require, Reservation};
use socket2::{Domain, Socket, Type};

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Way {
    /// Without any option
    Plain,
    /// With SO_REUSEADDR
    Reuse,
    /// With a reservation of its own, of all of them or none
    Reservation,
}

pub(super) fn run(way: Way, ports: &[u16]) -> Result<()> {
    let had = match way {
        Way::Reservation => reserved(ports)?,
        Way::Plain | Way::Reuse => ports.iter().filter(|port| had(way, **port).is_ok()).count(),
    };
    println!("{had}");
    Ok(())
}

fn had(way: Way, port: u16) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(matches!(way, Way::Reuse))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    socket.listen(1)
}

fn reserved(ports: &[u16]) -> Result<usize> {
    let (first, count) = (*ports.first().context("no ports")?, u16::try_from(ports.len())?);
    match Reservation::tcp().at(first).ports(count).require(Require::Kernel).acquire() {
        Ok(reservation) => {
            reservation.release()?;
            Ok(ports.len())
        }
        Err(AcquireError::InUse { .. }) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// How many of the ports an outsider started by `command` can have.
pub(crate) fn probe(mut command: Command, way: Way, ports: &[u16]) -> Result<usize> {
    command.arg(clap::ValueEnum::to_possible_value(&way).context("a way")?.get_name());
    let output = command.args(ports.iter().map(u16::to_string)).output().context("starting an outsider")?;
    ensure!(output.status.success(), "the outsider failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)?.trim().parse().context("a number")
}
