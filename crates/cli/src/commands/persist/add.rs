//! `persist add`.

use std::{io::Write, path::PathBuf};

use anyhow::Context;
use portkeep::{
    Align, Transports,
    persistent::{Audience, Block, Declaration, Lifetime, Name, Proposal},
};

use super::{
    agent::{INSTEAD, connect},
    audience::{For, advise, description},
    import,
    show::environment,
};
use crate::{
    DONE, Io,
    args::{
        pins::Pins,
        ports::{self, OfTransport},
    },
    reservations,
    whole_file::{check_writable, write_whole},
};

const AFTER_HELP: &str = "\
PORTS is a comma list of ports, ranges and names of /etc/services, with the transport behind it (80,443/tcp) or as an \
option; the default is TCP. All of its ports are reserved, or none. Without --user, --group, --unit or --cgroup the \
reservation is for administrators; they may use every reservation, by its token. Then processes of root may bind the ports \
by number; with --strict they may not.

When this returns the reservation is in force and on the disk. With --any the agent chooses once, from the pool, and \
keeps the numbers. --env-file writes the ports as variables (PORT, PORTS, ...; see `portkeep persist show --help`), for \
EnvironmentFile= of a unit. --dry-run shows whether the reservation would be created, as far as that can be known before.

Examples:
  portkeep persist add 80,443 --name web --unit nginx.service
  portkeep persist add --name tomcat --tcp 8443 --unit tomcat.service
  portkeep persist add --name dns --both domain --user bind --around
  portkeep persist add --name rtp --any 20 --udp --align 2 --group voice
  portkeep persist add --name later --tcp 9000-9009 --strict --description 'for the new gateway'";

/// Create a persistent reservation
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP, override_usage = "portkeep persist add [PORTS] --name <NAME> [OPTIONS]")]
#[command(group = clap::ArgGroup::new("block").args(["ports", "listed", "any"]).required(true))]
pub(crate) struct Args {
    /// The ports: 8443, 5000-5019, 80,443/tcp, domain/tcp+udp
    #[arg(help_heading = "Ports", value_parser = ports::text)]
    ports: Option<String>,
    /// The ports, as `run` and `acquire` name them
    #[arg(short = 'p', long = "ports", value_name = "PORTS", value_parser = ports::text, hide = true)]
    listed: Option<String>,
    /// Its name: letters, digits and . _ @ : + -
    #[arg(long)]
    name: Name,

    #[command(flatten, next_help_heading = "Ports")]
    transports: OfTransport,
    /// Any COUNT ports in a row, chosen now and kept
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Ports")]
    any: Option<u16>,
    /// With --any: make the first port a multiple of N, a power of two
    #[arg(long, value_name = "N", conflicts_with_all = ["ports", "listed"], help_heading = "Ports")]
    align: Option<Align>,

    #[command(flatten)]
    audience: For,

    /// Only associated sockets may bind its ports; binding the number is not enough
    #[arg(long)]
    strict: bool,
    /// A private ephemeral range: binds to port 0 draw from it
    #[arg(long)]
    ephemeral: bool,
    /// Sockets of its audience may have the ports already
    #[arg(long)]
    around: bool,
    /// Accept that few ephemeral ports are left: outgoing connections may fail
    #[arg(long)]
    force: bool,
    /// One line about it, for `who` and `persist show`
    #[arg(long, value_name = "TEXT", value_parser = description)]
    description: Option<String>,
    /// Write its ports into this file, as variables for EnvironmentFile= of a unit
    #[arg(long, value_name = "PATH")]
    env_file: Option<PathBuf>,
    /// Keep it until the next reboot only
    #[arg(long)]
    until_reboot: bool,
    /// Show what would be done
    #[arg(short = 'n', long, conflicts_with_all = ["any", "json", "env_file"], hide_short_help = true)]
    dry_run: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pins: Pins,
}

impl Args {
    fn proposal(&self) -> Result<Proposal, String> {
        let option = self.transports.named();
        let (block, transports) = match self.ports.as_ref().or(self.listed.as_ref()) {
            Some(text) => {
                let (list, transports) = ports::resolve(text, option)?;
                (Block::Ports(list), transports)
            }
            None => {
                let (count, align) = (self.any.unwrap_or(1), self.align.unwrap_or_default());
                (Block::Any { count, align }, option.unwrap_or(Transports::Tcp))
            }
        };
        let list = match &block {
            Block::Ports(list) => Some(list),
            Block::Any { .. } => None,
        };
        let audience = self.audience.audience()?.unwrap_or_default();
        if self.ephemeral
            && let Some(why) = Declaration::no_range(list, &audience, self.strict)
        {
            return Err(format!("a private ephemeral range {why}"));
        }
        Ok(Proposal {
            name: self.name.clone(),
            block,
            transports,
            audience,
            strict: self.strict,
            ephemeral: self.ephemeral,
            around: self.around,
            force: self.force,
            description: self.description.clone().unwrap_or_default(),
        })
    }
}

impl Args {
    fn advise(&self, audience: Option<&Audience>, io: &mut Io<'_>) {
        advise(audience, io);
        if matches!(self.audience.audience(), Ok(None)) && !self.strict {
            io.note("processes of root may bind these ports by number; with --strict they may not");
        }
    }
}

pub(super) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let proposal = match args.proposal() {
        Ok(proposal) => proposal,
        Err(wrong) => return Ok(io.usage(wrong)),
    };
    let kept = if args.until_reboot { Lifetime::UntilReboot } else { Lifetime::UntilDeleted };
    if let Some(path) = &args.env_file {
        check_writable(path).with_context(|| format!("nothing is reserved: {} cannot be written", path.display()))?;
    }
    let mut agent = connect(Some(INSTEAD))?;
    if let (true, Block::Ports(ports)) = (args.dry_run, &proposal.block) {
        let text = import::rehearse(proposal.declaration(ports.clone()), &agent.list()?, &args.pins)?;
        args.advise(Some(&proposal.audience), io);
        writeln!(io.out, "{text}")?;
        return Ok(DONE);
    }
    let created = agent.create(&proposal, kept)?;
    args.advise(created.audience.as_ref(), io);
    if let Some(path) = &args.env_file {
        write_whole(path, &environment(&created)).with_context(|| {
            format!("{} is reserved, and its variables cannot be written: {}", proposal.name, path.display())
        })?;
    }
    if args.json {
        io.json(&created)?;
        return Ok(DONE);
    }
    let until = if args.until_reboot { ", until the next reboot" } else { "" };
    let (ports, transports, whom) = (&created.ports, created.transports, reservations::owner(&created));
    let chosen = match proposal.block {
        Block::Any { .. } => format!(": start {}, count {}", ports.start(), ports.count()),
        Block::Ports(_) => String::new(),
    };
    writeln!(io.out, "{ports}/{transports} is reserved as {} for {whom}{until}{chosen}", proposal.name)?;
    Ok(DONE)
}
