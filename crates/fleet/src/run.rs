//! `run`: a command with the same ports on several hosts.

use std::{ffi::OsString, io, os::unix::process::ExitStatusExt, process::Command};

use anyhow::Context;
use portkeep::{Enforcement, PortList};
use portkeep_cli::{
    Exit,
    command::{Forwarder, environment, exit_code, fill_in},
};

use crate::{ask::Ask, complain, config::Config};

const AFTER_HELP: &str = "\
The command has the variables of `portkeep run`: PORT (the first), PORT0, PORT1, ... and PORTS; {PORT} and the like in \
its arguments are replaced. MASTER_ADDR is the first host and MASTER_PORT the first port, as torchrun reads them. \
PORTKEEP_FLEET_HOSTS has the hosts, with commas, and PORTKEEP_FLEET_NAME the name of the job.

The command starts when the kernel of each host enforces the block. The ports belong to one user (or unit) on each \
host; start the processes there by your own means: srun, ssh, mpirun. The job ends with the command. If this process \
is killed, or its host lost, the job ends some seconds later (`lease` in fleet.toml). Each host keeps outsiders off \
the block as long as one of its ports is bound.

If etcd or the network fails, the hosts keep the ports, and nothing happens to the command.

Examples:
  portkeep-fleet run --hosts a,b,c --count 8 -- srun ./train
  portkeep-fleet run --hosts a,b --name train42 -- torchrun --nnodes 2 --rdzv-endpoint a:{PORT} train.py

Exit status:
  that of the command; 128+N if signal N ended it";

/// Run a command with the same ports on several hosts
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    ask: Ask,
    /// Do not replace {PORT} in the arguments
    #[arg(long)]
    no_substitute: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(crate) fn run(args: Args, config: &Config) -> anyhow::Result<u8> {
    let forwarder = Forwarder::new().context("catching signals")?;
    let held = args.ask.acquire(config, || ())?;
    let job = &held.job;

    let ports = PortList::from(job.ports);
    let mut words = args.command.iter();
    let program = words.next().context("no command")?;
    let mut command = Command::new(program);
    let fill = |word: &OsString| if args.no_substitute { Ok(word.clone()) } else { fill_in(word, Some(&ports)) };
    let words = words.map(fill).collect::<anyhow::Result<Vec<_>>>();
    let words = match words {
        Ok(words) => words,
        Err(error) => {
            held.end()?;
            return Err(error);
        }
    };
    command.args(words).envs(environment(&ports, args.ask.label()));
    command.env("PORTKEEP_ENFORCEMENT", Enforcement::Kernel.name());
    command.env("MASTER_ADDR", &job.hosts[0]).env("MASTER_PORT", ports.start().to_string());
    command.env("PORTKEEP_FLEET_HOSTS", job.hosts.join(",")).env("PORTKEEP_FLEET_NAME", &job.name);

    let ended = forwarder.run(&mut command);
    if let Err(error) = held.end() {
        complain("warning", format_args!("the job ends with its lease: {error}"));
    }
    match ended {
        Ok(status) => Ok(exit_code(status.code(), status.signal())),
        Err(error) => {
            complain("error", format_args!("{}: {error}", program.display()));
            let missing = error.kind() == io::ErrorKind::NotFound;
            Ok(if missing { Exit::NotFound } else { Exit::NotExecutable }.code())
        }
    }
}
