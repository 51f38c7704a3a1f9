//! The kernel around the programs, as small as it can be: processes, sockets, and who has which port.
//!
//! The modelled functions, and their sources (Linux 6.x):
//! - `inet_csk_get_port` and `udp_lib_get_port`: two sockets share a port if their addresses differ and neither is the
//!   wildcard, if both have SO_REUSEADDR (TCP: and none listens), or if both have SO_REUSEPORT and the same uid;
//! - a connection in TIME_WAIT is a socket that has nothing but its port and SO_REUSEADDR;
//! - `__udp_disconnect`: connect to AF_UNSPEC gives the port up unless it was bound by number;
//! - `bpf_bind` binds by number and runs no program;
//! - `tcp_check_req`: an accepted connection has the listener's port and options, and no storage; it is made without a bind;
//! - `tcp_connect`, `tcp_set_state`, `__inet_listen_sk`: the sock_ops program, with the socket's lock held; a connection
//!   outlives its last descriptor, and then the port is free when the connection is over, not before;
//! - `mptcp_bind`: the MPTCP socket's lock is held throughout, and the bound one is a TCP socket under it, whose close
//!   passes no program. The two are one socket here, with two storages.

use crate::fault::{Outcome, fault};

pub(crate) const EINVAL: i32 = 22;
pub(crate) const EADDRINUSE: i32 = 98;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Ids from the root down to its own.
    pub(crate) cgroups: Vec<u64>,
    /// Offset of its `task_struct` in the kernel's memory.
    pub(crate) task: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// As the programs know it: a set of one.
    pub(crate) const fn bit(self) -> u8 {
        match self {
            Self::Tcp => 1,
            Self::Udp => 2,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Socket {
    pub(crate) name: String,
    pub(crate) process: usize,
    pub(crate) transport: Transport,
    pub(crate) netns: u64,
    pub(crate) open: bool,
    /// Which CPU holds its lock.
    pub(crate) locked: Option<usize>,
    /// System calls under way on it: its last close waits for them.
    pub(crate) users: u8,
    pub(crate) port: u16,
    /// 0: the wildcard.
    pub(crate) address: u32,
    pub(crate) reuse_address: bool,
    pub(crate) reuse_port: bool,
    pub(crate) bound_by_number: bool,
    pub(crate) listens: bool,
    /// An MPTCP socket with its TCP socket.
    pub(crate) mptcp: bool,
    /// It was accepted, never bound.
    pub(crate) accepted: bool,
    /// It has a TCP connection, or is about to have one.
    pub(crate) connected: bool,
    /// A program wants to know when its state changes.
    pub(crate) watched: bool,
    /// It has been closed, and its connection goes on.
    pub(crate) orphan: bool,
}

impl Socket {
    /// A field of `struct bpf_sock`, by its offset.
    pub(crate) fn field(&self, at: usize) -> Outcome<u64> {
        Ok(match at {
            0 => 0,
            4 => 2,
            8 => match self.transport {
                Transport::Tcp => 1,
                Transport::Udp => 2,
            },
            12 => match self.transport {
                Transport::Tcp => 6,
                Transport::Udp => 17,
            },
            24 => u64::from(self.address),
            44 => u64::from(self.port),
            72 if self.listens => 10,
            72 => 7,
            other => return fault(format!("struct bpf_sock at {other} is not modelled")),
        })
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    pub(crate) processes: std::rc::Rc<Vec<Process>>,
    pub(crate) sockets: Vec<Socket>,
}

impl Kernel {
    /// Binds the socket, or says why it cannot be bound.
    pub(crate) fn take_port(&mut self, socket: usize, port: u16, address: u32) -> Result<(), i32> {
        let asks = &self.sockets[socket];
        if asks.port != 0 {
            return Err(EINVAL);
        }
        if self.sockets.iter().enumerate().any(|(n, other)| n != socket && self.conflict(asks, other, port, address)) {
            return Err(EADDRINUSE);
        }
        let asks = &mut self.sockets[socket];
        asks.port = port;
        asks.address = address;
        Ok(())
    }

    /// Gives a connection to the listener its socket. False: the listener is gone.
    pub(crate) fn establish(&mut self, listener: usize, socket: usize) -> bool {
        let of = self.sockets[listener].clone();
        if !of.listens {
            return false;
        }
        let new = &mut self.sockets[socket];
        (new.port, new.address) = (of.port, of.address);
        (new.reuse_address, new.reuse_port) = (of.reuse_address, of.reuse_port);
        (new.accepted, new.connected) = (true, true);
        true
    }

    fn conflict(&self, asks: &Socket, has: &Socket, port: u16, address: u32) -> bool {
        let same = has.port == port && has.netns == asks.netns && has.transport == asks.transport;
        let overlap = has.address == 0 || address == 0 || has.address == address;
        let uid = |s: &Socket| self.processes[s.process].uid;
        let both_reuse_address = asks.reuse_address && has.reuse_address && !has.listens;
        let both_reuse_port = asks.reuse_port && has.reuse_port && uid(asks) == uid(has);
        same && overlap && !both_reuse_address && !both_reuse_port
    }

    pub(crate) fn give_port_up(&mut self, socket: usize) {
        let socket = &mut self.sockets[socket];
        socket.port = 0;
        socket.address = 0;
        socket.listens = false;
    }
}
