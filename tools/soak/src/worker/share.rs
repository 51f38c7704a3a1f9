//! dup, fork and descriptor passing do not change a reservation (R6).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    time::Duration,
};

use portkeep::control;
use portkeep_core::{Transport, wire};
use portkeep_testkit::{process::Child, sockets};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use socket2::Socket;

use super::{Held, Operation, Worker, mailbox};

fn by_token(token: u64) -> wire::SelectRequest {
    wire::SelectRequest { by: wire::BY_TOKEN, token, ..Default::default() }
}

impl Worker {
    pub(super) fn duplicate(&mut self) {
        let Some(i) = self.pick(|held| !held.shared) else { return };
        let Ok(copy) = self.held[i].socket.try_clone() else { return };
        drop(std::mem::replace(&mut self.held[i].socket, copy));
        let owned = self.held[i].owns.clone();
        self.crew.step(&format!("dup and close: owns {}", owned.len()));
        self.count(Operation::Dup, 0);
        for (_, grant) in owned {
            if control::state(&self.held[i].socket, &by_token(grant.token)).is_err() {
                self.violation(&format!("{} ended with one of two descriptors", grant.describe()), &[]);
            }
        }
    }

    /// The parent closes the owner socket, a child has it still; then the child is killed.
    pub(super) fn fork_holds(&mut self) {
        let Some(i) = self.pick(|held| !held.owns.is_empty() && !held.shared) else { return };
        let child = Child::fork(|talk| _ = talk.try_hear());
        let held = self.held.swap_remove(i);
        if let Some(drawn) = &held.drawn {
            self.ledger.undraw(drawn);
        }
        self.crew.step(&format!("fork and close the owner: owns {}", held.owns.len()));
        drop(held.socket);
        std::thread::sleep(Duration::from_micros(self.random.below(3000)));
        let expect = sockets::socket(socket2::Domain::IPV4, held.transport);
        for (entry, grant) in &held.owns {
            if control::state(&expect, &by_token(grant.token)).is_err() {
                self.violation(&format!("{} ended while a child holds its owner", grant.describe()), &[]);
            }
            self.ledger.cross_out(*entry, grant);
        }
        child.kill();
        self.crew.step("the child that held the owner is killed");
        self.count(Operation::Fork, 0);
        for (_, grant) in &held.owns {
            let passed = control::state(&expect, &by_token(grant.token));
            if passed.is_ok() {
                self.violation(&format!("{} outlives all who had its owner", grant.describe()), &[]);
            }
        }
    }

    /// Pass a socket to another process. It may be associated, bound or an owner socket.
    pub(super) fn pass(&mut self) {
        let Some(i) = self.pick(|held| held.pending.is_none()) else { return };
        let to = self.random.index(self.post.crew - 1);
        let result = send(&self.mail, mailbox(&self.post.folder, to), &self.held[i].socket);
        let possible = [libc::EAGAIN, libc::ECONNREFUSED, libc::ENOENT, libc::ETOOMANYREFS, libc::EPIPE, libc::EACCES];
        if self.expect(Operation::Pass, &format!("to {to}, owns {}", self.held[i].owns.len()), &result, &possible) {
            self.held[i].shared = true;
            if self.random.one_in(2) {
                self.close_one(i);
            }
        }
    }

    pub(super) fn take(&mut self) {
        let socket = match receive(&self.mail) {
            Ok(Some(descriptor)) => Socket::from(descriptor),
            Ok(None) => return,
            Err(error) => return self.count(Operation::Take, error.raw_os_error().unwrap_or(libc::EIO)),
        };
        self.count(Operation::Take, 0);
        let Ok(kind) = socket.r#type() else { return };
        let transport = if kind == socket2::Type::STREAM { Transport::Tcp } else { Transport::Udp };
        if self.random.one_in(2) {
            self.bind_taken(&socket, transport);
        }
        if self.held.len() < super::SOCKETS && !self.random.one_in(3) {
            let mut held = Held::new(socket, transport);
            (held.shared, held.bound) = (true, true);
            self.held.push(held);
        }
    }

    /// An associated socket carries its right with it (A2): into its block, and nowhere else.
    fn bind_taken(&mut self, socket: &Socket, transport: Transport) {
        let result = sockets::bind(socket, 0);
        let possible = [libc::EINVAL, libc::EADDRINUSE, libc::EACCES];
        if !self.expect(Operation::BindTaken, &transport.to_string(), &result, &possible) {
            return;
        }
        // Once the socket is bound, its association does not change any more.
        let select = wire::SelectRequest { by: wire::BY_ASSOCIATED, ..Default::default() };
        let Ok(state) = control::state(socket.as_fd(), &select) else { return };
        let port = sockets::port(socket);
        if port != 0 && (port < state.start || port - state.start >= state.count) {
            self.violation(&format!("a socket that was passed drew {port}, and is of {state:?}"), &[]);
        }
    }
}

fn send(mail: &UnixDatagram, to: std::path::PathBuf, socket: &Socket) -> io::Result<()> {
    // Each is sent from a socket of its own, so that a receiver that is gone is noticed.
    let _ = mail;
    let out = UnixDatagram::unbound()?;
    out.set_nonblocking(true)?;
    out.connect(to)?;
    let descriptors = [socket.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(sendmsg(&out, &[IoSlice::new(b"d")], &mut control, flags).map(drop)?)
}

fn receive(mail: &UnixDatagram) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    match recvmsg(mail, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)
    {
        Err(rustix::io::Errno::AGAIN) => return Ok(None),
        received => received?,
    };
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}
