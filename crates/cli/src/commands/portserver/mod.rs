//! `portserver`: reservations for programs that ask a port server, as Python's portpicker and chromedriver do.
//!
//! The protocol is that of portpicker's `portserver.py`: a client connects to a Unix stream socket and writes the number
//! of a process and a newline. The answer is a port and a newline, or nothing if there is none.
//!
//! * [`server`]: one user's requests and reservations. Run by an ordinary user, this is all there is.
//! * [`workers`]: root's server gives each user's connections to a process of that user. So the reservations are that
//!   user's and count against its quota, and no user can use up what others need.
//! * [`client`]: the process that a request is for.
//! * [`complaints`]: why requests got no answer.

mod client;
mod complaints;
mod request;
mod server;
mod signals;
mod workers;

use std::{
    fs, io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::{FileTypeExt, MetadataExt},
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use rustix::{
    fs::{Mode, chmod},
    net::{
        AddressFamily,
        sockopt::{socket_acceptconn, socket_domain},
    },
    process::{Resource, geteuid, getrlimit, setrlimit},
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
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    // Before the socket, so that a signal never leaves its file behind.
    let signals = signals::SignalPipe::new()?;
    if std::env::var_os(workers::WORKER).is_some() {
        // The kernel notes the name of the thread that reserves.
        rustix::thread::set_name(c"portkeep")?;
        let channel = server::Source::Channel(rustix::stdio::stdin().try_clone_to_owned()?.into());
        server::Server::new(channel, signals)?.run(io)?;
        return Ok(DONE);
    }
    portkeep::version().context("a port server needs kernel enforcement (`portkeep up`)")?;
    let (listener, _file) = match activated()? {
        Some(listener) => (listener, None),
        None => listen(&args.address)?,
    };
    io.note(format_args!("serving ports on {}; set PORTSERVER_ADDRESS to it", args.address));
    if geteuid().is_root() {
        workers::serve(listener, &signals, io)?;
    } else {
        server::Server::new(server::Source::Listener(listener), signals)?.run(io)?;
    }
    Ok(DONE)
}

/// The socket that systemd listens on for this process: its standard input (`StandardInput=socket`).
fn activated() -> anyhow::Result<Option<UnixListener>> {
    let input = rustix::stdio::stdin();
    let listens = socket_acceptconn(input).unwrap_or(false) && socket_domain(input) == Ok(AddressFamily::UNIX);
    Ok(if listens { Some(input.try_clone_to_owned()?.into()) } else { None })
}

/// A socket file that this server has made. It goes with the server.
struct SocketFile {
    path: PathBuf,
    /// Device and inode: another server may have put its own file there.
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if id_of(&self.path).is_ok_and(|id| id == self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn id_of(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|about| (about.dev(), about.ino()))
}

fn listen(address: &str) -> anyhow::Result<(UnixListener, Option<SocketFile>)> {
    let name = address.strip_prefix('@');
    if name.unwrap_or(address).is_empty() {
        bail!("--address {address:?} names no socket: write a path, or `@` and a name");
    }
    let target = match name {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(address),
    };
    let target = target.with_context(|| format!("--address {address:?} is too long; 107 bytes are possible"))?;
    let listener = match UnixListener::bind_addr(&target) {
        // Left behind by a server that was killed.
        Err(error) if name.is_none() && error.kind() == io::ErrorKind::AddrInUse && is_left_behind(address) => {
            fs::remove_file(address)
                .with_context(|| format!("removing {address}, which another server left behind"))?;
            UnixListener::bind_addr(&target)
        }
        bound => bound,
    };
    let listener =
        listener.with_context(|| format!("{address} cannot be listened on; does another port server run?"))?;
    if name.is_some() {
        return Ok((listener, None));
    }
    // Every user may ask. The server checks who the user is.
    chmod(address, Mode::from_raw_mode(0o666))?;
    let path = PathBuf::from(address);
    let id = id_of(&path).with_context(|| format!("looking at {address}"))?;
    Ok((listener, Some(SocketFile { path, id })))
}

/// A socket file without a server. Other files stay.
fn is_left_behind(path: &str) -> bool {
    fs::symlink_metadata(path).is_ok_and(|about| about.file_type().is_socket())
        && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
