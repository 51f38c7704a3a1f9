//! The code that runs inside a driven process.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    thread,
};

use portkeep::control;
use rustix::thread::{
    CapabilitySet, LinkNameSpaceType, capabilities, move_into_link_name_space, set_capabilities, set_thread_res_uid,
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::channel::Channel;

/// The variable that makes the test binary a driven process.
pub(super) const ENTRY: &str = "PORTKEEP_TEST_WORKER";

/// A command for a process. Descriptors are numbers that the driver chooses.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are the arguments of the calls")]
pub enum Command {
    /// Fork; the child answers on the descriptor that comes with the message. Answer: its process number.
    Fork,
    /// End without closing anything by hand.
    Exit,
    /// Give up CAP_NET_BIND_SERVICE.
    DropPrivilege,
    /// Change the real uid only, so that the process keeps its other rights.
    SetUid(u32),
    /// A socket in the namespace behind a path.
    Socket { new: u32, namespace: String, tcp: bool, v6: bool, reuse_address: bool, reuse_port: bool },
    /// `dup`.
    Duplicate { from: u32, new: u32 },
    /// `close`.
    Close(u32),
    /// The descriptor comes with the answer.
    Send(u32),
    /// The descriptor comes with the message.
    Receive { new: u32 },
    /// A control code.
    Set { on: u32, option: i32, value: Vec<u8>, thread: bool },
    /// A query; answers the bytes.
    Get { on: u32, option: i32, size: usize },
    /// `bind`; answers the port.
    Bind { on: u32, to: SocketAddr, thread: bool },
    /// `connect`; answers the local port.
    Connect { on: u32, to: SocketAddr },
    /// `listen`; answers the port.
    Listen(u32),
}

/// The answer of a process if the call succeeded.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// A port, or a process number.
    pub number: u32,
    /// The result of a query.
    pub bytes: Vec<u8>,
    /// SO_REUSEADDR afterwards.
    pub reuse_address: bool,
}

/// The hidden entry: call it from a test that is ignored and named `worker`. Does nothing unless a driver started it.
pub fn entry() {
    if std::env::var_os(ENTRY).is_none() {
        return;
    }
    // The driver passes the channel as standard input.
    let end = io::stdin().as_fd().try_clone_to_owned().expect("a channel");
    Worker { channel: Channel::new(end), sockets: BTreeMap::new() }.run()
}

struct Worker {
    channel: Channel,
    sockets: BTreeMap<u32, OwnedFd>,
}

impl Worker {
    fn run(mut self) -> ! {
        // SAFETY: ignoring a signal installs no handler. The kernel reaps the children, and nobody waits for them.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        while let Ok((command, descriptor)) = self.channel.receive() {
            let mut passed = None;
            let result = match command {
                Command::Exit => break,
                Command::Fork => self.fork(descriptor),
                Command::Send(from) => self.sockets[&from].try_clone().map(|copy| {
                    passed = Some(copy);
                    Answer::default()
                }),
                Command::Receive { new } => {
                    self.sockets.insert(new, descriptor.expect("a descriptor"));
                    Ok(Answer::default())
                }
                other => self.obey(other),
            };
            let result = result.map_err(|error| error.raw_os_error().unwrap_or(-1));
            if self.channel.send(&result, passed.as_ref().map(AsFd::as_fd)).is_err() {
                break;
            }
        }
        // SAFETY: ends the process here and now, as a crash would: no destructor closes the sockets one by one.
        unsafe { libc::_exit(0) }
    }

    /// The child keeps copies of all descriptors and uses the new channel as its own.
    fn fork(&mut self, channel: Option<OwnedFd>) -> io::Result<Answer> {
        let channel = Channel::new(channel.expect("a channel for the child"));
        // SAFETY: this process has one thread (the others are joined before the next command), so the child finds
        // every lock in order.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                self.channel = channel;
                Ok(Answer::default())
            }
            child => Ok(Answer { number: child as u32, ..Answer::default() }),
        }
    }

    fn obey(&mut self, command: Command) -> io::Result<Answer> {
        match command {
            Command::Fork | Command::Exit | Command::Send(_) | Command::Receive { .. } => {
                unreachable!("handled before")
            }
            Command::DropPrivilege => {
                let mut sets = capabilities(None)?;
                sets.effective.remove(CapabilitySet::NET_BIND_SERVICE);
                set_capabilities(None, sets)?;
            }
            Command::SetUid(uid) => {
                set_thread_res_uid(
                    rustix::process::Uid::from_raw(uid),
                    rustix::process::Uid::ROOT,
                    rustix::process::Uid::ROOT,
                )?;
            }
            Command::Socket { new, namespace, tcp, v6, reuse_address, reuse_port } => {
                move_into_link_name_space(File::open(namespace)?.as_fd(), Some(LinkNameSpaceType::Network))?;
                let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
                let (kind, protocol) = if tcp { (Type::STREAM, Protocol::TCP) } else { (Type::DGRAM, Protocol::UDP) };
                let socket = Socket::new(domain, kind, Some(protocol))?;
                socket.set_reuse_address(reuse_address)?;
                socket.set_reuse_port(reuse_port)?;
                if tcp {
                    // Connections are reset at close: other tests check whether TIME_WAIT blocks a port.
                    socket.set_linger(Some(std::time::Duration::ZERO))?;
                }
                self.sockets.insert(new, socket.into());
            }
            Command::Duplicate { from, new } => {
                let copy = self.sockets[&from].try_clone()?;
                self.sockets.insert(new, copy);
            }
            Command::Close(which) => {
                self.sockets.remove(&which);
            }
            Command::Set { on, option, value, thread } => {
                let socket = self.sockets[&on].as_fd();
                maybe_on_a_thread(thread, || control::set(socket, option, &value))?;
            }
            Command::Get { on, option, size } => {
                let mut bytes = vec![0; size];
                let length = control::get(&self.sockets[&on], option, &mut bytes)?;
                bytes.truncate(length);
                return Ok(Answer { bytes, ..Answer::default() });
            }
            Command::Bind { on, to, thread } => {
                let socket = SockRef::from(&self.sockets[&on]);
                maybe_on_a_thread(thread, || socket.bind(&to.into()))?;
                return self.look(on);
            }
            Command::Connect { on, to } => {
                SockRef::from(&self.sockets[&on]).connect(&to.into())?;
                return self.look(on);
            }
            Command::Listen(on) => {
                SockRef::from(&self.sockets[&on]).listen(1)?;
                return self.look(on);
            }
        }
        Ok(Answer::default())
    }

    fn look(&self, on: u32) -> io::Result<Answer> {
        let socket = SockRef::from(&self.sockets[&on]);
        let port = socket.local_addr()?.as_socket().map_or(0, |address| address.port());
        Ok(Answer { number: port.into(), reuse_address: socket.reuse_address()?, ..Answer::default() })
    }
}

/// All threads belong to the process: the answers must be the same on each of them.
fn maybe_on_a_thread<T: Send>(on_a_thread: bool, work: impl FnOnce() -> T + Send) -> T {
    if !on_a_thread {
        return work();
    }
    thread::scope(|scope| scope.spawn(work).join().expect("the thread ends well"))
}
