//! Asking for a reservation.

use std::time::Duration;

use portkeep_core::{
    Align, AlignError, ListMark, PortList, PortRange, PortRangeError, Ports, Scope, Services, Transport, Transports,
    defaults::TIMEOUT,
    persistent::{Audience, Others},
    wire::{self, AcquireRequest},
};

use crate::{MalformedRequest, Require, sys};

/// A request for a reservation, made by [`Reservation::tcp`](crate::Reservation::tcp) or
/// [`Reservation::udp`](crate::Reservation::udp). By default: one port,
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
    pub(crate) also: Vec<Audience<u32>>,
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
    /// This number of consecutive ports. The system chooses them, unless [`Request::at`] says where they start.
    Count(u16),
    /// These.
    List(PortList),
    /// These, as text: `80,443`, `http,8000-8009`. Names are those of /etc/services.
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
            also: Vec::new(),
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
    /// A list is all or nothing. Each of its blocks is a reservation in the kernel, and together they are one
    /// [`Reservation`](crate::Reservation).
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
    /// The agent has to confirm blocks outside the pool. That lasts some milliseconds; see [`Request::start`].
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

    /// The processes that may use the reservation; by default this process only. For children, use [`Scope::User`] or
    /// [`Scope::Cgroup`]. Only kernel enforcement can do this.
    ///
    /// Units, groups and administrators can be the audience of a [persistent](crate::persistent) reservation. A runtime
    /// reservation has a scope instead. It can admit units, groups and users [in addition](Self::also) to its scope. So
    /// this does not compile:
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

    /// Admit others in addition to the scope, at most four: users, groups and systemd units. They may bind the ports,
    /// by number or by association, and nothing else: binds to port 0 draw from a private ephemeral range for the scope
    /// only. A cgroup cannot be admitted: the kernel compares users, groups and names of units. Only kernel enforcement
    /// can do this.
    ///
    /// ```no_run
    /// use portkeep::{Reservation, persistent::Audience};
    ///
    /// // The port that Docker publishes for a container.
    /// let port = Reservation::tcp().also(Audience::Unit("docker.service".into())).acquire()?;
    /// # Ok::<(), portkeep::AcquireError>(())
    /// ```
    pub fn also(mut self, other: Audience<u32>) -> Self {
        self.also.push(other);
        self
    }

    /// Let only associated sockets bind the ports. By default any socket of the scope may bind them by number, so
    /// that unmodified servers work.
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// A private ephemeral range: a socket of the scope that is not associated and binds to port 0 gets a port of the
    /// block, in rotation. If a program chooses a free port, closes it and binds it later, it cannot lose it to an
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

    /// The label in listings and in the error messages of other processes; at most 24 bytes.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// The enforcement that the reservation requires; by default any.
    pub fn require(mut self, require: Require) -> Self {
        self.require = require;
        self
    }

    /// How long [`acquire`](Self::acquire) waits at most if the agent has to confirm; 30 seconds by default.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// If another process has the ports, let [`acquire`](Self::acquire) wait for them, but no longer than `limit`. By
    /// default it fails at once. [`Duration::MAX`] is no limit.
    ///
    /// The kernel reports the ends of sockets to every process, and they wake it. No event reports a port that leaves
    /// TIME_WAIT, or a RELEASE on a socket that stays open. They are noticed within a second. If the request cannot
    /// succeed later, it fails at once: a block larger than the pool, privileged ports.
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
    /// After `limit`, the error of the last try, such as [`AcquireError::InUse`](crate::AcquireError::InUse).
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

    /// The block that is asked for by number.
    pub(crate) fn block(&self) -> Result<PortRange, MalformedRequest> {
        Ok(PortRange::new(self.start, self.count)?)
    }

    /// A request for each block, checked.
    pub(crate) fn blocks(&self) -> Result<Vec<Self>, MalformedRequest> {
        let list = match &self.list {
            None => {
                self.check_label()?;
                self.check()?;
                return Ok(vec![self.clone()]);
            }
            Some(Named::List(list)) => list.clone(),
            Some(Named::Text(text)) => Ports::resolve(text, Some(self.transports()), &services())?.0,
        };
        // Check the label before it is cut to make room for the mark.
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

    fn check(&self) -> Result<(), MalformedRequest> {
        if self.count == 0 {
            return Err(PortRangeError::Empty.into());
        }
        if self.start != 0 {
            self.block()?;
        }
        self.align?.check(self.start)?;
        Others::new(self.also.iter().cloned())?;
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

    pub(crate) fn to_wire(&self) -> AcquireRequest {
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
}
