//! The messages to and from the kernel's sock_diag: requests for sockets, and the fields of the sockets that it lists.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable, NlasIterator,
};
use netlink_sys::{Socket as Netlink, SocketAddr as Address, protocols::NETLINK_SOCK_DIAG};
use portkeep_core::{PortSet, Transport};
use rustix::io::Errno;

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
    match transport {
        Transport::Tcp => {
            let mut request = vec![0; TCP_REQUEST];
            request[52..56].copy_from_slice(&states.to_ne_bytes());
            request.extend(filter.attribute());
            ask(Diag::Request(TCPDIAG_GETSOCK, request), &mut each)
        }
        Transport::Udp => {
            let request = |family| {
                let mut request = vec![0; UDP_REQUEST];
                request[..2].copy_from_slice(&[family, IPPROTO_UDP]);
                request[4..8].copy_from_slice(&states.to_ne_bytes());
                request.extend(filter.attribute());
                Diag::Request(SOCK_DIAG_BY_FAMILY, request)
            };
            ask(request(AF_INET), &mut each)?;
            match ask(request(AF_INET6), &mut each) {
                // The kernel has no IPv6.
                Err(error) if is_missing(&error) => Ok(()),
                other => other,
            }
        }
    }
}

fn ask(request: Diag, each: &mut impl FnMut(&Message)) -> io::Result<()> {
    let mut netlink = Netlink::new(NETLINK_SOCK_DIAG)?;
    netlink.bind_auto()?;
    netlink.connect(&Address::new(0, 0))?;

    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    netlink.send(&bytes, 0)?;

    loop {
        let (bytes, _) = netlink.recv_from_full()?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<Diag>::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::InnerMessage(Diag::Socket(message)) => each(&message),
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            // Messages are aligned to four bytes.
            let length = (message.header.length as usize).next_multiple_of(4).max(4);
            rest = rest.get(length..).unwrap_or_default();
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

/// A request with its type, and the sockets that answer it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Diag {
    Request(u16, Vec<u8>),
    Socket(Message),
    Other,
}

impl NetlinkDeserializable for Diag {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        let Some((message, attributes)) = payload.split_first_chunk::<MESSAGE>() else { return Ok(Self::Other) };
        let mut cgroup = None;
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute?;
            if attribute.kind() == CGROUP_ID {
                cgroup = attribute.value().first_chunk::<8>().map(|bytes| u64::from_ne_bytes(*bytes));
            }
        }
        Ok(Self::Socket(Message { bytes: *message, cgroup }))
    }
}

impl NetlinkSerializable for Diag {
    fn message_type(&self) -> u16 {
        if let Self::Request(kind, _) = self { *kind } else { 0 }
    }

    fn buffer_len(&self) -> usize {
        if let Self::Request(_, bytes) = self { bytes.len() } else { 0 }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        if let Self::Request(_, bytes) = self {
            buffer.copy_from_slice(bytes);
        }
    }
}
