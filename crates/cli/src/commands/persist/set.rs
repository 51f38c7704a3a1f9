//! `persist set`.

use std::io::Write;

use portkeep::{
    Ports,
    persistent::{Change, Name},
};

use super::{
    agent::{changed, connect},
    audience::{For, advise, description},
};
use crate::{
    DONE, Io,
    args::ports::{self, ExactPorts},
    reservations,
};

const AFTER_HELP: &str = "\
For a reservation that a command created. Its other properties stay as they are. Outsiders cannot bind the ports meanwhile: \
new ports are in force before the former ones are free, and everything else is changed in place. If a change is \
refused, the reservation stays as it is. Blocks that are in both lists stay in force; other new blocks must not overlap the \
former ones. So a block cannot grow by its neighbour: reserve that under another name.

Sockets bound from it keep running, also those of the former audience.

Examples:
  portkeep persist set tomcat --unit tomcat10.service
  portkeep persist set web 80,443
  portkeep persist set rtp --udp 20000-20099 --description 'media, new range'

Exit status: 3 if there is no such reservation";

/// Change a persistent reservation
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP, override_usage = "portkeep persist set <NAME> [PORTS] [OPTIONS]")]
#[command(group = clap::ArgGroup::new("what").multiple(true).required(true)
    .args(["ports", "tcp", "udp", "both", "user", "group", "unit", "cgroup", "administrators", "strict", "ephemeral", "description"]))]
pub(crate) struct Args {
    /// Its name
    #[arg(hide_short_help = true)]
    name: Name,
    /// Its new ports, as for `persist add`; without /tcp, /udp or /tcp+udp its transports stay
    #[arg(group = "exact-ports", value_parser = ports::ports, help_heading = "Ports")]
    ports: Option<Ports>,

    #[command(flatten)]
    exact: ExactPorts,
    #[command(flatten)]
    audience: For,

    /// true: only sockets that are associated with it may bind its ports
    #[arg(long, value_name = "BOOL", hide_possible_values = true)]
    strict: Option<bool>,
    /// true: binds to port 0 draw from it
    #[arg(long, value_name = "BOOL", hide_possible_values = true)]
    ephemeral: Option<bool>,
    /// Sockets of its audience may have the new ports already
    #[arg(long, requires = "exact-ports")]
    around: bool,
    /// Accept that few ephemeral ports are left: outgoing connections may fail
    #[arg(long, requires = "exact-ports")]
    force: bool,
    /// One line about it, for `who` and `persist show`; empty for none
    #[arg(long, value_name = "TEXT", value_parser = description)]
    description: Option<String>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    fn change(&self) -> Result<Change, String> {
        let (ports, transports) = match &self.ports {
            Some(Ports { list, transports }) => (Some(list.clone()), *transports),
            None => self.exact.named().unzip(),
        };
        Ok(Change {
            name: None,
            ports,
            transports,
            audience: self.audience.audience()?,
            strict: self.strict,
            ephemeral: self.ephemeral,
            around: self.around.then_some(true),
            force: self.force.then_some(true),
            description: self.description.clone(),
        })
    }
}

pub(super) fn run(args: &Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let change = match args.change() {
        Ok(change) => change,
        Err(wrong) => return Ok(io.usage(wrong)),
    };
    let info = changed(&mut connect(None)?, &args.name, &change)?;
    advise(info.audience.as_ref(), io);
    if args.json {
        io.json(&info)?;
        return Ok(DONE);
    }
    let (ports, transports, whom) = (&info.ports, info.transports, reservations::owner(&info));
    let terms = reservations::terms(&info);
    match &info.reason {
        None => writeln!(io.out, "{ports}/{transports} is reserved as {} for {whom}{terms}", args.name)?,
        Some(reason) => writeln!(io.out, "{} is changed, and waits: {reason}", args.name)?,
    }
    Ok(DONE)
}
