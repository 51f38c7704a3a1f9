//! `portserver`: reservations for programs that ask a port server, as Python's portpicker and chromedriver do.
//!
//! The protocol is that of portpicker's `portserver.py`: a client connects to a Unix stream socket and writes the number
//! of a process and a newline. The answer is a port and a newline, or nothing if there is none.
//!
//! * [`server`]: one user's requests and reservations. Run by an ordinary user, this is all there is.
//! * [`workers`]: root's server gives each user's connections to a process of that user. So the reservations are that
//!   user's and count against its quota, and no user can use up what others need.
//! * [`client`]: the process that a request is for.

mod client;
mod request;
mod server;
mod signals;
mod workers;

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
};

use anyhow::{Context, bail};
use rustix::{
    fs::{Mode, chmod},
    process::{PidfdFlags, PidfdGetfdFlags, Resource, geteuid, getpid, getrlimit, pidfd_getfd, pidfd_open, setrlimit},
};

use crate::{DONE, Io};

const AFTER_HELP: &str = "\
A program that asks gets one port that is reserved for TCP and UDP until the process that it named ends. The programs \
of the same user can bind it; outsiders cannot. A program that gets no answer chooses a port by itself, as without a \
server. SIGUSR1 prints statistics.

Run as root it serves every user, each within its own quota. Run by another user it serves that user alone.

Examples:
  portkeep portserver &
  PORTSERVER_ADDRESS=@portkeep pytest        every use of portpicker gets reserved ports
  chromedriver --port-server=@portkeep";

/// Serve ports to programs that use a port server
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Unix socket to listen on; `@` at the beginning stands for the abstract namespace
    #[arg(long, value_name = "ADDRESS", default_value = "@portkeep")]
    address: String,
    /// Serve the connections that come over standard input: the part of root's server that runs as another user
    #[arg(long, hide = true)]
    worker: bool,
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    if args.worker {
        // The kernel notes the name of the thread that reserves.
        rustix::thread::set_name(c"portkeep")?;
        server::Server::new(server::Source::Channel(rustix::stdio::stdin().try_clone_to_owned()?.into()))?.run(io)?;
        return Ok(DONE);
    }
    portkeep::version().context("a port server needs kernel enforcement (`portkeep up`)")?;
    let listener = activated()?.map_or_else(|| listen(&args.address), Ok)?;
    io.note(format_args!("serving ports on {}; set PORTSERVER_ADDRESS to it", args.address));
    if geteuid().is_root() {
        workers::serve(listener, io)?;
    } else {
        server::Server::new(server::Source::Listener(listener))?.run(io)?;
    }
    Ok(DONE)
}

/// The socket that systemd listens on for this process.
fn activated() -> anyhow::Result<Option<UnixListener>> {
    let mut passed = sd_notify::listen_fds().context("reading LISTEN_FDS")?;
    let Some(number) = passed.next() else { return Ok(None) };
    if passed.next().is_some() {
        bail!("systemd passed more than one socket; give the .socket unit one ListenStream=");
    }
    let ourselves = pidfd_open(getpid(), PidfdFlags::empty())?;
    let socket = pidfd_getfd(ourselves, number, PidfdGetfdFlags::empty()).context("the socket that systemd passed")?;
    Ok(Some(socket.into()))
}

fn listen(address: &str) -> anyhow::Result<UnixListener> {
    if let Some(name) = address.strip_prefix('@') {
        let abstract_address = SocketAddr::from_abstract_name(name)?;
        return UnixListener::bind_addr(&abstract_address)
            .with_context(|| format!("{address} cannot be listened on; does another port server run?"));
    }
    let listener = match UnixListener::bind(address) {
        // Left behind by a server that was killed.
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && UnixStream::connect(address).is_err() => {
            std::fs::remove_file(address)?;
            UnixListener::bind(address)
        }
        bound => bound,
    };
    let listener = listener.with_context(|| format!("{address} cannot be listened on"))?;
    // Every user may ask. The server checks who the user is.
    chmod(address, Mode::from_raw_mode(0o666))?;
    Ok(listener)
}
