//! `release`: an administrator ends the reservation of any process.

use std::io::Write;

use anyhow::{Context, bail};
use portkeep::{Errno, Info, Ports, State, Token, persistent::Origin};
use portkeep_kernel::{Admin, Maps, Reservation, netns};

use crate::{
    DONE, Io, NOTHING,
    args::{pins::Pins, ports::ports},
    reservations::{self, Kept},
    survey, waiting,
};

const AFTER_HELP: &str = "\
Ends the reservation of any owner, all of its ports. Requires root. Sockets bound from it keep running, and each of their ports \
becomes free when its last socket is gone. A program ends its own reservation by closing the socket it made it on. To \
end a persistent reservation use `portkeep persist delete`, or remove the file that declares it.

Examples:
  portkeep release 61004/tcp           the reservation in this network namespace that has the port
  portkeep release 6f1d03b2a94c7e58    the one with this token, in whatever namespace

Exit status: 3 if there is no such reservation";

/// End a reservation of any process
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    /// A token (16 hexadecimal digits), or ports as 61004/tcp or 80,443
    #[arg(value_name = "TOKEN|PORTS[/TRANSPORT]")]
    which: Which,
    /// One JSON array of what was released
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pins: Pins,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Which {
    Token(Token),
    Ports(Ports),
}

impl std::str::FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Tokens are always printed with all their digits, so no text is both a token and ports.
        let digits = text.strip_prefix("0x").unwrap_or(text);
        match digits.parse::<Token>() {
            Ok(token) if digits.len() == 16 => Ok(Self::Token(token)),
            _ if digits.len() == 16 => Err(format!("{text:?} is no token: a token has 16 hexadecimal digits")),
            _ => ports(text).map(Self::Ports),
        }
    }
}

impl Which {
    fn means(&self, reservation: &Reservation, own_netns: u64) -> bool {
        match self {
            Self::Token(token) => reservation.token() == Some(*token),
            Self::Ports(wanted) => {
                reservation.netns == own_netns
                    && reservation.ports().is_some_and(|ports| wanted.list.overlaps(&ports.into()))
                    && reservation
                        .transports()
                        .is_some_and(|all| wanted.transports.is_none_or(|each| all.overlaps(each)))
            }
        }
    }

    /// A sentence about the part of it that no reservation has.
    fn missing(&self, found: &[Kept]) -> Option<String> {
        match self {
            Self::Token(token) => found.is_empty().then(|| format!("no reservation has the token {token}")),
            Self::Ports(wanted) => {
                let has =
                    |port: &u16| found.iter().any(|each| each.1.ports().is_some_and(|ports| ports.contains(*port)));
                let port = wanted.list.iter().find(|port| !has(port))?;
                let slash = wanted.transports.map_or_else(String::new, |transports| format!("/{transports}"));
                Some(format!("no reservation of this network namespace has port {port}{slash}"))
            }
        }
    }
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let instance = args.pins.open()?;
    let (maps, admin) = (instance.maps()?, instance.admin()?);
    let found = find(&maps, &args.which)?;
    if let Some(missing) = args.which.missing(&found) {
        if args.json {
            io.json(&[(); 0])?;
        }
        io.error(missing);
        return Ok(NOTHING);
    }
    let mut released = end(&maps, &admin, found)?;
    survey::complete(&mut released)?;
    if args.json {
        io.json(&released)?;
    } else {
        for each in &released {
            writeln!(io.out, "released {}/{} of {}", each.ports, each.transports, reservations::owner(each))?;
        }
    }
    if released.is_empty() {
        io.error("the reservation has ended by itself meanwhile");
        return Ok(NOTHING);
    }
    Ok(DONE)
}

/// The reservations that are meant, with all blocks of their lists.
fn find(maps: &Maps, which: &Which) -> anyhow::Result<Vec<Kept>> {
    let own = netns::current_cookie().context("finding out which network namespace this is")?;
    reservations::find(maps, |each| which.means(each, own))
}

fn end(maps: &Maps, admin: &Admin, found: Vec<Kept>) -> anyhow::Result<Vec<Info>> {
    let mut released = Vec::new();
    for (id, reservation) in found {
        let Some(mut info) = Info::from_wire(&maps.state(&reservation)?, &maps.also(&reservation)?) else { continue };
        let Some(token) = info.token else { continue };
        if info.persistent {
            refuse(&info)?;
        }
        match admin.end(id, token) {
            Ok(()) => {
                (info.state, info.enforcement) = (State::Ended, None);
                released.push(info);
            }
            // The owner has ended it meanwhile.
            Err(error) if error.errno() == Some(Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Info::join(released))
}

/// The agent would put a persistent reservation in force again, so this is an error. It says how to end the
/// reservation.
fn refuse(info: &Info) -> anyhow::Result<()> {
    let heard = waiting::ask();
    let found = heard.declared().iter().find(|each| each.token == info.token).unwrap_or(info);
    let (ports, transports, name) = (&info.ports, info.transports, found.name.as_deref().unwrap_or_default());
    match &found.origin {
        Some(Origin::File { path, .. }) => bail!(
            "{ports}/{transports} is the persistent reservation {name}, declared by {}: remove or mask the file, and \
             `portkeep reload`",
            path.display()
        ),
        _ => bail!("{ports}/{transports} is the persistent reservation {name}; use `portkeep persist delete {name}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_all_its_digits_and_everything_else_is_a_port() {
        assert!(matches!("00000000000000ff".parse(), Ok(Which::Token(_))));
        assert!(matches!("61004".parse(), Ok(Which::Ports(ports)) if ports.to_string() == "61004"));
        assert!(matches!("80,443/udp".parse(), Ok(Which::Ports(ports)) if ports.to_string() == "80,443/udp"));
        assert!("6f1d03b2".parse::<Which>().is_err());
    }
}
