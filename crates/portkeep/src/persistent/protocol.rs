//! The protocol on the agent's socket: a line of JSON each way, for each request.
//!
//! The socket is a Unix stream socket, `agent.sock` in the agent's runtime folder. A request is a [`Request`], the
//! answer an [`Answer`]. After [`Request::Watch`], each further answer is an [`Event`]. The kernel reports to the agent
//! which user asks (`SO_PEERCRED`), so a request does not say it.

use std::path::{Path, PathBuf};

use portkeep_core::{
    Align, PortList, Transports,
    persistent::{Audience, Declaration, Name},
};
use serde::{Deserialize, Serialize};

use super::{counters, event};
use crate::Info;
pub use counters::{Counters, Latency, QuotaUse};
pub use event::{Event, EventKind};

/// The longest request or answer in bytes, except a list.
pub const LONGEST: usize = 64 * 1024;

/// The agent's runtime folder, if [`RUNTIME_DIR`] names no other.
pub const DEFAULT_RUNTIME_DIR: &str = "/run/portkeep";
/// The environment variable that names another folder.
pub const RUNTIME_DIR: &str = "PORTKEEP_RUNTIME_DIR";

/// Name of the agent's socket in its runtime folder.
pub const SOCKET: &str = "agent.sock";

/// Path of the agent's socket in a runtime folder.
pub fn socket_in(folder: &Path) -> PathBuf {
    folder.join(SOCKET)
}

/// Path of the agent's socket.
pub fn socket_path() -> PathBuf {
    socket_in(&std::env::var_os(RUNTIME_DIR).map_or_else(|| DEFAULT_RUNTIME_DIR.into(), PathBuf::from))
}

/// How long a reservation that a command created stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lifetime {
    /// Until it is deleted.
    #[default]
    #[serde(rename = "persistent")]
    UntilDeleted,
    /// Until it is deleted or the machine reboots: `store=active`.
    #[serde(rename = "active")]
    UntilReboot,
}

/// Which ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Block {
    /// These, host byte order.
    Ports(PortList),
    /// This number of consecutive ports of the pool, chosen once.
    Any {
        /// How many.
        count: u16,
        /// The alignment of the first port.
        #[serde(default)]
        align: Align,
    },
}

/// The reservation to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    /// Its name, unique.
    pub name: Name,
    /// Which ports.
    pub block: Block,
    /// The transports.
    pub transports: Transports,
    /// The audience. Administrators can also use the ports, by association.
    #[serde(default)]
    pub audience: Audience,
    /// Strict: using the ports requires association.
    #[serde(default)]
    pub strict: bool,
    /// Binds to port 0 of its audience draw from it (E6).
    #[serde(default)]
    pub ephemeral: bool,
    /// Sockets of its audience that have a port already keep it.
    #[serde(default)]
    pub around: bool,
    /// It may leave few ephemeral ports (N5).
    #[serde(default)]
    pub force: bool,
    /// For listings.
    #[serde(default)]
    pub description: String,
}

impl Proposal {
    /// These ports (host byte order), for administrators.
    pub fn new(name: Name, ports: impl Into<PortList>, transports: Transports) -> Self {
        Self::of(name, Block::Ports(ports.into()), transports)
    }

    /// Any `count` ports in a row.
    pub fn any(name: Name, count: u16, transports: Transports) -> Self {
        Self::of(name, Block::Any { count, align: Align::ANY }, transports)
    }

    fn of(name: Name, block: Block, transports: Transports) -> Self {
        Self {
            name,
            block,
            transports,
            audience: Audience::Administrators,
            strict: false,
            ephemeral: false,
            around: false,
            force: false,
            description: String::new(),
        }
    }

    /// The audience.
    #[must_use]
    pub fn audience(mut self, audience: Audience) -> Self {
        self.audience = audience;
        self
    }

    /// Strict: using the ports requires association.
    #[must_use]
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// A private ephemeral range. Not for administrators, and not a strict one.
    #[must_use]
    pub fn ephemeral(mut self, ephemeral: bool) -> Self {
        self.ephemeral = ephemeral;
        self
    }

    /// The declaration, for the ports that were chosen.
    pub fn declaration(&self, ports: PortList) -> Declaration {
        Declaration {
            name: self.name.clone(),
            ports,
            transports: self.transports,
            audience: self.audience.clone(),
            strict: self.strict,
            ephemeral: self.ephemeral,
            around: self.around,
            force: self.force,
            description: self.description.clone(),
        }
    }
}

/// The changes to a reservation that a command created. A member that is `None` changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Change {
    /// Another name.
    pub name: Option<Name>,
    /// Other ports, host byte order.
    pub ports: Option<PortList>,
    /// Other transports.
    pub transports: Option<Transports>,
    /// Another audience.
    pub audience: Option<Audience>,
    /// Strict: using the ports requires association.
    pub strict: Option<bool>,
    /// A private ephemeral range.
    pub ephemeral: Option<bool>,
    /// Sockets of its audience that have one of the new ports already keep it.
    pub around: Option<bool>,
    /// It may leave few ephemeral ports (N5).
    pub force: Option<bool>,
    /// Another description; an empty one is none.
    pub description: Option<String>,
}

impl Change {
    /// Make it equal to this declaration.
    pub fn to(declaration: &Declaration) -> Self {
        let Declaration { name, ports, transports, audience, strict, ephemeral, around, force, description } =
            declaration.clone();
        Self {
            name: Some(name),
            ports: Some(ports),
            transports: Some(transports),
            audience: Some(audience),
            strict: Some(strict),
            ephemeral: Some(ephemeral),
            around: Some(around),
            force: Some(force),
            description: Some(description),
        }
    }

    /// The declaration after the change.
    #[must_use]
    pub fn of(&self, declaration: &Declaration) -> Declaration {
        let was = declaration.clone();
        Declaration {
            name: self.name.clone().unwrap_or(was.name),
            ports: self.ports.clone().unwrap_or(was.ports),
            transports: self.transports.unwrap_or(was.transports),
            audience: self.audience.clone().unwrap_or(was.audience),
            strict: self.strict.unwrap_or(was.strict),
            ephemeral: self.ephemeral.unwrap_or(was.ephemeral),
            around: self.around.unwrap_or(was.around),
            force: self.force.unwrap_or(was.force),
            description: self.description.clone().unwrap_or(was.description),
        }
    }
}

/// Which reservation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Which {
    /// The one of this name.
    Name(Name),
    /// The one with exactly these ports and transports.
    Block {
        /// The ports, host byte order.
        ports: PortList,
        /// The transports.
        transports: Transports,
    },
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum Request {
    /// Create one.
    Create {
        /// The kind.
        proposal: Proposal,
        /// For how long.
        #[serde(default)]
        kept: Lifetime,
    },
    /// Delete one that a command created.
    Delete(Which),
    /// Change one that a command created. Its ports stay reserved all the while.
    Change {
        /// Its name.
        name: Name,
        /// The changes.
        change: Change,
    },
    /// All that is declared.
    List,
    /// Read configuration and drop-ins again.
    Reload,
    /// Follow events. Requires an administrator, or a member of the group `watchers` of the configuration.
    Watch,
    /// The agent's counters. Requires the same.
    Counters,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Answer {
    /// Created and in force.
    Created(Box<Info>),
    /// Deleted: the reservation as it was.
    Deleted(Box<Info>),
    /// Changed: the reservation as it is now.
    Changed(Box<Info>),
    /// All that is declared.
    List(Vec<Info>),
    /// Read again.
    Reloaded(Reloaded),
    /// Events follow.
    Watching,
    /// Something happened.
    Event(Box<Event>),
    /// Its counters.
    Counters(Box<Counters>),
    /// Not done.
    Refused(Refused),
}

/// The result of a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Reservations that came into force.
    pub added: usize,
    /// Reservations of the same name or block that are declared differently now.
    #[serde(default)]
    pub changed: usize,
    /// Reservations that ended.
    pub removed: usize,
    /// Declared and not in force: those that wait and those in conflict, see the list.
    pub waiting: usize,
    /// Mistakes in files, and stores that cannot be read. One sentence each. If there are any, the reload has failed in
    /// part.
    #[serde(default)]
    pub errors: Vec<String>,
    /// Conflicts, and names in the configuration that the machine does not have. One sentence each.
    pub complaints: Vec<String>,
}

/// Why something was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reason {
    /// Not a request, or not a possible one.
    Malformed,
    /// It requires an administrator.
    NotAllowed,
    /// A port is in use or reserved.
    InUse,
    /// There is a reservation of that name already.
    NameTaken,
    /// Too few ephemeral ports would be left (N5).
    Exhausts,
    /// The pool has no such block.
    NoRoom,
    /// There is no such reservation.
    NotFound,
    /// A file declares it.
    FromFile,
    /// It could not be kept on the disk.
    Store,
    /// Kernel enforcement is not up. Only commands report this.
    NotUp,
    /// The agent does not run, or does not answer. Only commands report this.
    NoAgent,
    /// Anything else.
    Failed,
}

/// Not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// Why, for programs.
    pub reason: Reason,
    /// Why, for people: a sentence that names who or what is in the way.
    pub message: String,
}
