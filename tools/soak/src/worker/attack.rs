//! Attacks of a process: to break the promise, or to use up shared resources. None of it may succeed; the attacks on what is
//! shared show up as a leak, as a request that the agent does not answer, or in the agent's memory.

use std::{
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use portkeep::{control, persistent::protocol};
use portkeep_core::{Token, Transport, wire::AcquireRequest};
use portkeep_testkit::{
    new_namespace,
    process::Child,
    sockets::{self, bind, port},
};
use rustix::net::connect_unspec;
use socket2::Socket;

use super::{Operation, Worker, outcome};
use crate::{agent::Place, ledger::now};

/// Connections and flooded sockets that a process leaves open.
const LEFTOVERS: usize = 6;
/// Attackers and victims use these ports. By chance they would hardly ever meet.
pub(super) const HOT: (u16, u16) = (61200, 8);

fn ask(start: u16, count: u16) -> AcquireRequest {
    AcquireRequest { start, count, ..Default::default() }
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

impl Worker {
    pub(super) fn attack(&mut self) {
        match self.random.below(16) {
            0..=3 => self.request_and_close(),
            4 => self.ask_for_privileged(),
            5..=7 => self.rebind_under_way(),
            8..=10 => self.refill(),
            11 => self.leave_connections(),
            12..=13 => self.bind_what_was_granted(),
            14 if self.person.uid != 0 && self.random.one_in(3) => self.flood_agent(),
            15 if self.random.one_in(4) => self.acquire_from_elsewhere(),
            _ => {}
        }
    }

    /// Requests that the agent refuses, and whose answer no process receives.
    fn request_and_close(&mut self) {
        // A socket listens on the port, so the answer is no.
        let listener = sockets::tcp();
        let taken = 5000 + self.random.below(500) as u16;
        let listens = bind(&listener, taken).and_then(|()| listener.listen(1)).is_ok();
        for _ in 0..1 + self.random.below(8) {
            let owner = sockets::tcp();
            let start = if listens { taken } else { 12000 + self.random.below(500) as u16 };
            let result = control::acquire(&owner, &ask(start, 1));
            let possible = [libc::EINPROGRESS, libc::EADDRINUSE, libc::EDQUOT, libc::ENETDOWN];
            self.expect(Operation::Unheard, &start.to_string(), &result, &possible);
            thread::sleep(Duration::from_micros(self.random.below(1500)));
        }
    }

    /// A user's request for privileged ports is refused before anything is entered, so it keeps nobody from them.
    fn ask_for_privileged(&mut self) {
        if self.person.uid == 0 || self.apart {
            return;
        }
        let owner = sockets::tcp();
        for _ in 0..20 {
            let count = 1 + self.random.below(300) as u16;
            let start = 1 + self.random.below(700) as u16;
            let result = control::acquire(&owner, &ask(start, count));
            let what = format!("{start}+{count}");
            if self.expect(Operation::Privileged, &what, &result, &[libc::EACCES, libc::EDQUOT]) {
                self.violation(&format!("uid {} was granted {what}", self.person.uid), &[]);
            }
        }
    }

    /// Another thread takes the socket's port away between the kernel's look at it and the bind of a reserved port.
    fn rebind_under_way(&mut self) {
        let Some((entry, grant)) = self.pick_foreign() else { return };
        if grant.may_bind(&self.person) {
            return;
        }
        let transport = if grant.of(Transport::Udp) { Transport::Udp } else { Transport::Tcp };
        let socket = sockets::socket(socket2::Domain::IPV4, transport);
        let _ = socket.set_nonblocking(true);
        let (done, reserved, before) = (AtomicBool::new(false), grant.start, now());
        let (mut read, mut bound) = (0, 0);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    // Neither call locks the port to the socket, so a connect to AF_UNSPEC takes the port away.
                    let _ = match transport {
                        Transport::Udp => socket.connect(&local(9).into()),
                        Transport::Tcp => socket.listen(1),
                    };
                    let _ = connect_unspec(&socket);
                }
            });
            let sender = sockets::udp();
            let mut bytes = [std::mem::MaybeUninit::uninit(); 16];
            for _ in 0..200 {
                let result = bind(&socket, reserved);
                let possible = [libc::EADDRINUSE, libc::EACCES, libc::EINVAL];
                self.expect(Operation::Rebind, &format!("{reserved}/{transport}"), &result, &possible);
                bound += u32::from(result.is_ok() && port(&socket) == reserved);
                if transport == Transport::Udp {
                    let _ = sender.send_to(b"secret", &local(reserved).into());
                    read += u32::from(socket.recv(&mut bytes).is_ok_and(|length| length == 6));
                }
            }
            done.store(true, SeqCst);
        });
        let all_the_while = self.ledger.is_certain(entry) && grant.since < before;
        if all_the_while && (bound, read) != (0, 0) {
            let text = format!(
                "a rebind got {reserved}/{transport} {bound} times, and {read} datagrams, of {}; {:?}",
                grant.describe(),
                self.person
            );
            self.violation(&text, &[entry.holder()]);
        }
    }

    /// While a thread binds a port of one's own, the reservation ends and its entry is filled with another.
    fn refill(&mut self) {
        let start = HOT.0 + self.random.below(HOT.1.into()) as u16;
        let transport = self.transport();
        for _ in 0..10 {
            let owner = sockets::socket(socket2::Domain::IPV4, transport);
            let result = control::acquire(&owner, &ask(start, 1));
            let possible = [libc::EADDRINUSE, libc::EDQUOT, libc::EINPROGRESS, libc::ENETDOWN];
            if !self.expect(Operation::Refill, &start.to_string(), &result, &possible) {
                return;
            }
            let Some(token) = control::granted(&owner).ok().and_then(|grant| Token::new(grant.token)) else { return };
            let binder = sockets::tcp();
            let next = sockets::udp();
            let pause = Duration::from_nanos(self.random.below(20_000));
            let bound = thread::scope(|scope| {
                let bind = scope.spawn(|| bind(&binder, start));
                let begin = Instant::now();
                while begin.elapsed() < pause {
                    std::hint::spin_loop();
                }
                let _ = control::release(&owner, token);
                let _ = control::acquire(&next, &ask(0, 1));
                bind.join()
            });
            // A port in use is granted to nobody, so whenever the bind began the port is nobody else's.
            if matches!(bound, Ok(Ok(()))) {
                self.check_outsider("a bind with a refilled entry", &binder, Transport::Tcp, u64::MAX, false);
            }
        }
    }

    /// A second listener, a connection of it without SO_REUSEADDR, and then the reservation ends.
    fn leave_connections(&mut self) {
        let made = leftover();
        self.count(Operation::Leftover, outcome(&made));
        let Ok(pair) = made else { return };
        if self.leftovers.len() >= LEFTOVERS {
            let index = self.random.index(self.leftovers.len());
            self.leftovers.swap_remove(index);
        }
        self.leftovers.push(pair);
    }

    /// A granted port can be bound, at the latest when sockets that are being closed are gone. A failure is only
    /// counted, because orphaned connections are not seen when the pool is almost used up.
    fn bind_what_was_granted(&mut self) {
        let owner = sockets::tcp();
        let acquired = sockets::acquire(&owner, &ask(0, 1));
        let Ok(grant) = acquired else { return };
        let socket = sockets::tcp();
        let begin = Instant::now();
        let result = loop {
            let result = bind(&socket, grant.start);
            if result.is_ok() || begin.elapsed() > Duration::from_secs(1) {
                break result;
            }
            thread::sleep(Duration::from_millis(5));
        };
        self.expect(Operation::BindGranted, &grant.start.to_string(), &result, &[libc::EADDRINUSE]);
    }

    /// A user's requests without end by a peer that never reads, and many connections. Places are kept for root.
    fn flood_agent(&mut self) {
        let place = Place { folder: self.post.folder.clone(), portkeep: "portkeep".into() };
        let path = protocol::socket_in(&place.runtime());
        let mut streams = Vec::new();
        let requests = "\"list\"\n".repeat(2000);
        for _ in 0..1 + self.random.below(12) {
            let result = UnixStream::connect(&path).and_then(|mut stream| {
                stream.set_nonblocking(true)?;
                for _ in 0..20 {
                    match stream.write(requests.as_bytes()) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error),
                        Ok(_) => {}
                    }
                }
                Ok(stream)
            });
            self.count(Operation::Flood, outcome(&result));
            streams.extend(result.ok());
        }
        thread::sleep(Duration::from_millis(self.random.below(200)));
    }

    /// Root of another network namespace with a socket of this one: its ports are counted for that namespace.
    fn acquire_from_elsewhere(&mut self) {
        if self.person.uid != 0 || self.apart {
            return;
        }
        let child = Child::fork(|_| {
            let owners = [sockets::tcp(), sockets::tcp(), sockets::tcp()];
            new_namespace();
            for owner in &owners {
                let result = control::acquire(owner, &ask(0, 40));
                self.expect(Operation::Elsewhere, "any 40", &result, &[libc::ENOSPC, libc::EDQUOT]);
            }
        });
        child.join();
    }
}

/// The two ends of a connection to a pool port that was reserved.
fn leftover() -> io::Result<(Socket, Socket)> {
    let owner = sockets::tcp();
    let grant = sockets::acquire(&owner, &ask(0, 1))?;
    let first = sockets::tcp();
    first.bind(&local(grant.start).into())?;
    let listener = sockets::tcp();
    listener.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), grant.start)).into())?;
    listener.listen(1)?;
    let client = sockets::tcp();
    client.connect(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), grant.start)).into())?;
    let (server, _) = listener.accept()?;
    // This may be refused. It matters only that the next holder of the port can bind it.
    let _ = server.set_reuse_address(false);
    Ok((client, server))
}
