//! Asking for a reservation.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use portkeep_core::{
    Align, AlignError, Errno, ListMark, PortList, PortRange, PortRangeError, Ports, Scope, Services, Token, Transport,
    Transports,
    defaults::TIMEOUT,
    wire::{self, AcquireRequest},
};
use socket2::Socket;

use crate::{
    AcquireError, Enforcement, MalformedRequest, Pending, QueryError, Require, Reservation, control, held, query,
    reservation::Parts,
    socket::{Kind, new_socket, transport_of},
    sys,
};

/// A request for a reservation, made by [`Reservation::tcp`] or [`Reservation::udp`]. Without further ado: one port,
/// chosen by the system, for this process.
///
/// ```no_run
/// use portkeep::Reservation;
///
/// // An even port and the one behind it, for UDP: what an RTP stream needs.
/// let pair = Reservation::udp().ports(2).align(2).label("call 17").acquire()?;
/// # Ok::<(), portkeep::AcquireError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a request does nothing until acquire or start"]
pub struct Request {
    pub(crate) transport: Transport,
    pub(crate) both: bool,
    /// Named ports; without them `count` ports from `start` on.
    list: Option<Named>,
    pub(crate) start: u16,
    pub(crate) count: u16,
    pub(crate) align: Result<Align, AlignError>,
    pub(crate) scope: Scope,
    pub(crate) strict: bool,
    pub(crate) ephemeral: bool,
    pub(crate) label: String,
    pub(crate) require: Require,
    pub(crate) timeout: Duration,
    pub(crate) wait: Duration,
}

/// The ports that [`Request::ports`] accepts.
#[derive(Clone, Debug)]
pub enum WantedPorts {
    /// So many in a row, chosen by the system unless [`Request::at`] says where they start.
    Count(u16),
    /// These.
    List(PortList),
    /// These, as people write them: `80,443`, `http,8000-8009`. Names are those of /etc/services.
    Text(String),
}

impl From<u16> for WantedPorts {
    fn from(count: u16) -> Self {
        Self::Count(count)
    }
}

impl From<PortRange> for WantedPorts {
    fn from(block: PortRange) -> Self {
        Self::List(block.into())
    }
}

impl From<PortList> for WantedPorts {
    fn from(list: PortList) -> Self {
        Self::List(list)
    }
}

impl From<&str> for WantedPorts {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

#[derive(Clone, Debug)]
enum Named {
    List(PortList),
    Text(String),
}

fn services() -> Services {
    std::fs::read("/etc/services")
        .map_or_else(|_| Services::default(), |text| Services::parse(&String::from_utf8_lossy(&text)))
}

impl Request {
    /// One port of this transport.
    pub fn new(transport: Transport) -> Self {
        Self {
            transport,
            both: false,
            list: None,
            start: 0,
            count: 1,
            align: Ok(Align::ANY),
            scope: Scope::Process,
            strict: false,
            ephemeral: false,
            label: String::new(),
            require: Require::Any,
            timeout: TIMEOUT,
            wait: Duration::ZERO,
        }
    }

    /// How many consecutive ports, or exactly these: a number of ports, a block, or a list.
    ///
    /// A list is all or nothing. Each of its blocks is a reservation in the kernel, and together they are one [`Reservation`].
    ///
    /// ```no_run
    /// use portkeep::Reservation;
    ///
    /// let four = Reservation::tcp().ports(4).acquire()?;
    /// let web = Reservation::tcp().ports("http,443,8000-8009").acquire()?;
    /// # Ok::<(), portkeep::AcquireError>(())
    /// ```
    pub fn ports(mut self, ports: impl Into<WantedPorts>) -> Self {
        match ports.into() {
            WantedPorts::Count(count) => self.count = count,
            WantedPorts::List(list) => self.list = Some(Named::List(list)),
            WantedPorts::Text(text) => self.list = Some(Named::Text(text)),
        }
        self
    }

    /// Exactly the block from this port on (host byte order), or none. 0 is the default: the system chooses.
    ///
    /// Blocks outside the pool have to be confirmed by the agent, which takes a moment; see [`Request::start`].
    pub fn at(mut self, start: u16) -> Self {
        self.start = start;
        self
    }

    /// Start at a multiple of this power of two: `align(2)` gives an even port first.
    pub fn align(mut self, align: u16) -> Self {
        self.align = Align::new(align);
        self
    }

    /// The same numbers for TCP and UDP, with one token for both. The owner socket is of the transport the request
    /// began with.
    pub fn both(mut self) -> Self {
        self.both = true;
        self
    }

    /// The processes that may consume the reservation; by default this process only. For children, use [`Scope::User`] or
    /// [`Scope::Cgroup`]. Only kernel enforcement can do this.
    ///
    /// A service, a group or administrators are audiences, which only a [persistent](crate::persistent) reservation has:
    ///
    /// ```compile_fail,E0308
    /// use portkeep::{Reservation, persistent::Audience};
    ///
    /// let request = Reservation::tcp().scope(Audience::<u32>::Unit("nginx.service".into()));
    /// ```
    pub fn scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// Let only associated sockets have the ports. By default any socket of the scope may bind them by number, so
    /// that unmodified servers work.
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// A private ephemeral range: a socket of the scope that is not associated and binds to port 0 gets a port of the
    /// block, in rotation. Programs that choose a free port, close it and bind it later then cannot lose it to an
    /// outsider. Only kernel enforcement can do this, and each scope can have one for each transport.
    ///
    /// ```no_run
    /// use portkeep::{Reservation, Scope};
    ///
    /// let range = Reservation::tcp().ports(100).both().scope(Scope::User).ephemeral().acquire()?;
    /// let server = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// assert!(range.ports().contains(server.local_addr()?.port()));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn ephemeral(mut self) -> Self {
        self.ephemeral = true;
        self
    }

    /// The label in listings and in other people's error messages; at most 24 bytes.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// The enforcement that the reservation requires; by default any.
    pub fn require(mut self, require: Require) -> Self {
        self.require = require;
        self
    }

    /// How long [`acquire`](Self::acquire) waits for the agent at most, where it has to confirm; 30 seconds by default.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Let [`acquire`](Self::acquire) wait, at most so long, until ports that others have can be had; by default it fails at
    /// once. [`Duration::MAX`] is no limit.
    ///
    /// The ends of sockets wake it, which the kernel reports to every process. No event reports a port that leaves TIME_WAIT, or a
    /// RELEASE on a socket that stays open; they are noticed within a second. A request that no other process stands in the way
    /// of is an error at once: a block larger than the pool, privileged ports.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use portkeep::Reservation;
    ///
    /// // The instance that is about to end still has the port.
    /// let port = Reservation::tcp().at(61004).wait(Duration::from_secs(30)).acquire()?;
    /// # Ok::<(), portkeep::AcquireError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// After `limit` that of the last try, such as [`AcquireError::InUse`].
    pub fn wait(mut self, limit: Duration) -> Self {
        self.wait = limit;
        self
    }

    /// Whether particular ports are asked for.
    pub(crate) fn names_ports(&self) -> bool {
        self.list.is_some() || self.start != 0
    }

    /// The transports asked for.
    pub fn transports(&self) -> Transports {
        if self.both { Transports::Both } else { self.transport.into() }
    }

    /// Acquire the reservation, and wait for the agent where it has to confirm (some milliseconds).
    ///
    /// The wait ends with the agent, after [`timeout`](Self::timeout), and with a signal that this thread handles
    /// ([`AcquireError::Interrupted`]); see [`Pending::wait_for`]. With [`wait`](Self::wait) it also waits for ports.
    pub fn acquire(&self) -> Result<Reservation, AcquireError> {
        self.acquire_unless(None, |_| false)
    }

    /// Claim the block without waiting for the agent.
    ///
    /// Most requests are decided at once, and so is the [`Pending`] they give. For the others, nobody new can bind
    /// the ports any more, but somebody may have before.
    pub fn start(&self) -> Result<Pending, AcquireError> {
        let blocks = self.blocks()?;
        let owner = new_socket(self.transport, Kind::Any).map_err(|source| AcquireError::SocketCall { source })?;
        Self::start_all(&blocks, owner)
    }

    /// As [`start`](Self::start), with a socket that exists already as the owner socket.
    ///
    /// The reservation lives as long as this socket, so pass a duplicate to keep your own descriptor. One socket can
    /// own 128 reservations, and each block of a list is one. Several requests on it may be under way at once, in any threads of one process.
    pub fn start_on(&self, owner: OwnedFd) -> Result<Pending, AcquireError> {
        let blocks = self.blocks()?;
        let owner = Socket::from(owner);
        match transport_of(&owner) {
            Ok(Some(transport)) if self.transports().contains(transport) => {
                // A request is two calls, ACQUIRE and GRANTED: no other request on this socket may come between them.
                static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
                let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
                Self::start_all(&blocks, owner)
            }
            Ok(_) => Err(AcquireError::WrongSocket),
            Err(source) => Err(AcquireError::SocketCall { source }),
        }
    }

    /// A request for each block, checked.
    fn blocks(&self) -> Result<Vec<Self>, MalformedRequest> {
        let list = match &self.list {
            None => {
                self.check_label()?;
                self.check()?;
                return Ok(vec![self.clone()]);
            }
            Some(Named::List(list)) => list.clone(),
            Some(Named::Text(text)) => Ports::resolve(text, Some(self.transports()), &services())?.0,
        };
        // Checked before it is cut to make room for the mark.
        self.check_label()?;
        if self.ephemeral && list.as_block().is_none() {
            return Err(MalformedRequest::RangeOfBlocks);
        }
        let id = sys::random_token().map_or(std::process::id(), |token| token.get() as u32);
        let label = match ListMark::new(list.blocks().len(), id) {
            Some(mark) => mark.label(&self.label),
            None => self.label.clone(),
        };
        let of = |block: &PortRange| {
            let label = label.clone();
            let request = Self { list: None, start: block.start(), count: block.count(), label, ..self.clone() };
            request.check().map(|()| request)
        };
        list.blocks().iter().map(of).collect()
    }

    /// Claim each block, or give back those that were claimed.
    fn start_all(blocks: &[Self], owner: Socket) -> Result<Pending, AcquireError> {
        let (first, others) = blocks.split_first().expect("a list has a block");
        if !others.is_empty() {
            // Check first which blocks are reserved, so that others do not see a list come and go.
            blocks.iter().try_for_each(|block| block.check_reserved(&owner))?;
        }
        // Each of the others has a descriptor of the owner socket until they are one.
        let copy = || owner.try_clone().map_err(|source| AcquireError::SocketCall { source });
        let copies: Vec<Socket> = others.iter().map(|_| copy()).collect::<Result<_, _>>()?;
        let mut pending = first.start_one(owner)?;
        for (block, owner) in others.iter().zip(copies) {
            pending.add(block.start_one(owner)?);
        }
        Ok(pending)
    }

    fn check_reserved(&self, owner: &Socket) -> Result<(), AcquireError> {
        let ports = PortRange::new(self.start, self.count).map_err(MalformedRequest::from)?;
        let transports = self.transports();
        match query::conflict(owner, ports, transports) {
            Some(by) if self.require != Require::Held => Err(AcquireError::InUse { ports, transports, by: Some(by) }),
            _ => Ok(()),
        }
    }

    fn start_one(&self, owner: Socket) -> Result<Pending, AcquireError> {
        let kernel = match self.require {
            Require::Held => false,
            Require::Any | Require::Kernel => match query::version_of(&owner) {
                Ok(_) => true,
                Err(QueryError::KernelAbsent) if self.require == Require::Any => false,
                Err(QueryError::KernelAbsent) => return Err(AcquireError::KernelAbsent),
                Err(QueryError::OtherAbi { found, expected }) => {
                    return Err(AcquireError::OtherAbi { found, expected });
                }
                Err(QueryError::QueryCall { source }) => return Err(AcquireError::AcquireCall { source }),
                Err(QueryError::NotTcpOrUdp | QueryError::Ended) => return Err(AcquireError::WrongSocket),
            },
        };
        let transports = self.transports();
        if !kernel {
            let (token, ports) = held::acquire(self, query::version().ok().and_then(|version| version.pool))?;
            let enforcement = Enforcement::Held;
            let (tokens, ports) = (vec![token], ports.into());
            let parts = Parts { tokens, owner: owner.into(), ports, transports, enforcement };
            return Ok(Pending::decided(Reservation::from_parts(parts)));
        }
        let wait = match control::acquire(&owner, &self.to_wire()) {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS.0) => true,
            Err(error) => return Err(self.name(error, Some(&owner))),
        };
        let grant = control::granted(&owner).map_err(|source| AcquireError::AcquireCall { source })?;
        let (Some(token), Ok(ports)) = (Token::new(grant.token), PortRange::new(grant.start, grant.count)) else {
            return Err(AcquireError::Cancelled);
        };
        let enforcement = Enforcement::Kernel;
        let (tokens, ports) = (vec![token], ports.into());
        let reservation =
            Reservation::from_parts(Parts { tokens, owner: owner.into(), ports, transports, enforcement });
        if wait { Pending::told(reservation, &grant) } else { Ok(Pending::decided(reservation)) }
    }

    fn check(&self) -> Result<(), MalformedRequest> {
        if self.count == 0 {
            return Err(PortRangeError::Empty.into());
        }
        if self.start != 0 {
            PortRange::new(self.start, self.count)?;
        }
        self.align?.check(self.start)?;
        if self.strict && self.ephemeral {
            return Err(MalformedRequest::StrictRange);
        }
        Ok(())
    }

    fn check_label(&self) -> Result<(), MalformedRequest> {
        match self.label.len() > AcquireRequest::default().label.len() || self.label.contains('\0') {
            true => Err(MalformedRequest::Label(self.label.clone())),
            false => Ok(()),
        }
    }

    fn to_wire(&self) -> AcquireRequest {
        let (scope, cgroup) = self.scope.to_wire();
        let mut request = AcquireRequest {
            start: self.start,
            count: self.count,
            flags: [(self.both, wire::BOTH), (self.strict, wire::STRICT), (self.ephemeral, wire::EPHEMERAL)]
                .iter()
                .fold(0, |flags, (wanted, flag)| if *wanted { flags | flag } else { flags }),
            scope,
            align: self.align.unwrap_or_default().to_wire(),
            cgroup,
            ..Default::default()
        };
        request.label[..self.label.len()].copy_from_slice(self.label.as_bytes());
        request
    }

    /// The meaning of the error number of an ACQUIRE of this request on `owner`.
    pub(crate) fn name(&self, source: std::io::Error, owner: Option<impl AsFd>) -> AcquireError {
        match source.raw_os_error().map(Errno) {
            Some(Errno::EADDRINUSE) => match PortRange::new(self.start, self.count) {
                Ok(ports) => {
                    let transports = self.transports();
                    AcquireError::InUse {
                        ports,
                        transports,
                        by: owner.and_then(|owner| query::conflict(owner, ports, transports)),
                    }
                }
                Err(_) => AcquireError::NoRoom { count: self.count },
            },
            Some(Errno::EINVAL) if matches!(self.scope, Scope::Cgroup(_)) => AcquireError::ForeignCgroup,
            Some(Errno::ENOSPC) => AcquireError::NoRoom { count: self.count },
            Some(Errno::EDQUOT) => AcquireError::OverQuota,
            Some(Errno::EEXIST) => AcquireError::SecondRange,
            Some(Errno::EACCES) => AcquireError::Privileged,
            Some(Errno::ENETDOWN) if query::version().is_ok_and(|version| version.agent) => AcquireError::AgentFailed,
            Some(Errno::ENETDOWN) => AcquireError::AgentAbsent,
            Some(Errno::ECANCELED) => AcquireError::Cancelled,
            Some(Errno::EOPNOTSUPP) => AcquireError::WrongSocket,
            Some(Errno::ENOPROTOOPT) => AcquireError::KernelAbsent,
            _ => AcquireError::AcquireCall { source },
        }
    }
}
