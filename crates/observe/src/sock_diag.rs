//! The messages to and from the kernel's sock_diag: requests for sockets, and the fields of the sockets that it lists.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use portkeep_core::{PortSet, Transport};
use rustix::io::Errno;

use crate::netlink;

/// The types of requests, of `include/uapi/linux/inet_diag.h` and `sock_diag.h`. The first lists the TCP sockets of
/// both families while the kernel reads its tables once. These are long on a machine with much memory.
const TCPDIAG_GETSOCK: u16 = 18;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_UDP: u8 = 17;
/// `INET_DIAG_REQ_BYTECODE` of `include/uapi/linux/inet_diag.h`.
const BYTECODE: u16 = 1;
/// `INET_DIAG_CGROUP_ID` of the same, Linux 5.9.
const CGROUP_ID: u16 = 21;
/// The lengths of `struct inet_diag_req`, `struct inet_diag_req_v2` and `struct inet_diag_msg`.
const TCP_REQUEST: usize = 60;
const UDP_REQUEST: usize = 56;
const MESSAGE: usize = 72;

/// The kernel has no sock_diag, or has none for this family.
pub(crate) fn is_missing(error: &io::Error) -> bool {
    [Errno::NOENT, Errno::OPNOTSUPP].iter().any(|missing| error.raw_os_error() == Some(missing.raw_os_error()))
}

/// A program for `INET_DIAG_REQ_BYTECODE` that accepts the sockets on some ports. An empty program accepts all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter(Vec<u8>);

impl Filter {
    pub(crate) const NONE: Self = Self(Vec::new());
    /// The largest number of runs of ports: the length of a program is limited. With more runs it accepts all.
    const RUNS: usize = 1000;

    /// Each step is a `struct inet_diag_bc_op`: a code, the distance to the next step if it holds, and the distance if
    /// not, both in bytes. A comparison has two steps, and the second contains the port. A jump to the end accepts; a
    /// jump to one step beyond the end refuses.
    pub(crate) fn of(ports: &PortSet) -> Self {
        const JUMP: u8 = 1;
        const AT_LEAST: u8 = 2;
        const AT_MOST: u8 = 3;
        const STEP: u16 = 4;
        const COMPARISON: u8 = 8;
        /// Two comparisons and a jump.
        const RUN: u16 = 5 * STEP;
        let runs: Vec<(u16, u16)> = ports.spans().take(Self::RUNS + 1).collect();
        if runs.len() > Self::RUNS {
            return Self::NONE;
        }
        let mut program = Vec::new();
        let mut step = |code: u8, yes: u8, no: u16| {
            program.extend([code, yes]);
            program.extend(no.to_ne_bytes());
        };
        for (left, (first, last)) in (0..runs.len() as u16).rev().zip(&runs) {
            // To the next run. The last run has no jump, and goes beyond the end.
            step(AT_LEAST, COMPARISON, RUN);
            step(0, 0, *first);
            step(AT_MOST, COMPARISON, RUN - 2 * STEP);
            step(0, 0, *last);
            if left > 0 {
                step(JUMP, STEP as u8, left * RUN);
            }
        }
        Self(program)
    }

    /// The attribute of a request.
    fn attribute(&self) -> Vec<u8> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let length = (4 + self.0.len()) as u16;
        [&length.to_ne_bytes()[..], &BYTECODE.to_ne_bytes(), &self.0].concat()
    }
}

/// List the sockets of both families that are in these states.
///
/// # Errors
///
/// If the kernel does not answer, or this process may open no more files.
pub(crate) fn dump(
    transport: Transport,
    states: u32,
    filter: &Filter,
    mut each: impl FnMut(&Message),
) -> io::Result<()> {
    let mut ask = |kind, request| {
        netlink::list(NETLINK_SOCK_DIAG, kind, request, |answer| {
            if let Some(message) = Message::of(answer) {
                each(&message);
            }
        })
    };
    match transport {
        Transport::Tcp => {
            let mut request = vec![0; TCP_REQUEST];
            request[52..56].copy_from_slice(&states.to_ne_bytes());
            request.extend(filter.attribute());
            ask(TCPDIAG_GETSOCK, request)
        }
        Transport::Udp => {
            let request = |family| {
                let mut request = vec![0; UDP_REQUEST];
                request[..2].copy_from_slice(&[family, IPPROTO_UDP]);
                request[4..8].copy_from_slice(&states.to_ne_bytes());
                request.extend(filter.attribute());
                request
            };
            ask(SOCK_DIAG_BY_FAMILY, request(AF_INET))?;
            match ask(SOCK_DIAG_BY_FAMILY, request(AF_INET6)) {
                // The kernel has no IPv6.
                Err(error) if is_missing(&error) => Ok(()),
                other => other,
            }
        }
    }
}

/// A `struct inet_diag_msg` and the one attribute that matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    bytes: [u8; MESSAGE],
    /// Id of the cgroup in which the socket was made, on Linux 5.9 and later.
    pub(crate) cgroup: Option<u64>,
}

impl Message {
    /// `None` if these bytes are no such message.
    fn of(bytes: &[u8]) -> Option<Self> {
        let (bytes, attributes) = bytes.split_first_chunk::<MESSAGE>()?;
        let cgroup =
            NlasIterator::new(attributes).map_while(Result::ok).find(|attribute| attribute.kind() == CGROUP_ID);
        let cgroup = cgroup.and_then(|attribute| attribute.value().first_chunk::<8>().copied());
        Some(Self { bytes: *bytes, cgroup: cgroup.map(u64::from_ne_bytes) })
    }

    pub(crate) fn state(&self) -> u8 {
        self.bytes[1]
    }

    pub(crate) fn timer(&self) -> u8 {
        self.bytes[2]
    }

    pub(crate) fn local(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.address(8)?, self.port(4)))
    }

    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.address(24)?, self.port(6)))
    }

    /// When the timer ends, in milliseconds.
    pub(crate) fn expires(&self) -> u32 {
        self.number(52)
    }

    pub(crate) fn uid(&self) -> u32 {
        self.number(64)
    }

    /// 0: no process has it open.
    pub(crate) fn inode(&self) -> u32 {
        self.number(68)
    }

    fn port(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn number(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"))
    }

    fn address(&self, at: usize) -> Option<IpAddr> {
        let sixteen: [u8; 16] = self.bytes[at..at + 16].try_into().expect("sixteen bytes");
        match self.bytes[0] {
            AF_INET => Some(Ipv4Addr::new(sixteen[0], sixteen[1], sixteen[2], sixteen[3]).into()),
            AF_INET6 => Some(Ipv6Addr::from(sixteen).into()),
            _ => None,
        }
    }
}
