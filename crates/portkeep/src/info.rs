//! Facts about a reservation and about kernel enforcement.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use portkeep_core::{Errno, PortRange, Scope, Token, Transport, Transports, wire};

use crate::sys;

/// Where a reservation is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Claimed: no newcomer can bind the ports, and the agent is checking whether somebody already has.
    Pending,
    /// In force.
    Active,
    /// Taken back by the agent.
    Refused,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Refused => "refused",
        })
    }
}

/// One reservation, as it was at the moment of the question.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// The token, shown only to those who may consume the reservation; that of a persistent one to everybody.
    pub token: Option<Token>,
    /// The block, host byte order.
    pub ports: PortRange,
    /// Its transports.
    pub transports: Transports,
    /// Where it is in its life.
    pub state: State,
    /// The scope: the processes that may consume it.
    pub scope: Scope,
    /// Whether it is consumed by association only.
    pub strict: bool,
    /// Whether it is a private ephemeral range: binds to port 0 of its scope draw from it.
    pub ephemeral: bool,
    /// Whether an administrator made it, for good: then it has no owner process.
    pub persistent: bool,
    /// The owner process, as the first pid namespace numbers it (in a container: not as `getpid` there does); 0 for a
    /// persistent one.
    pub pid: u32,
    /// The real uid of the owner process when it acquired. Of a persistent one with [`Scope::User`]: whom it is for.
    pub uid: u32,
    /// The command name of the owner process then, at most 15 bytes; empty for a persistent one.
    pub command: String,
    /// The label of the request, empty if it had none.
    pub label: String,
    /// When it was acquired, on `CLOCK_MONOTONIC`; see [`Info::age`] and [`Info::acquired_at`].
    pub since: Duration,
    /// Ports with at least one bound socket; of a reservation for both transports, TCP and UDP count apart.
    pub bound: u32,
    /// The cookie of its network namespace (`SO_NETNS_COOKIE`); 0 for a held one.
    pub netns: u64,
    /// Id of the scope's cgroup, or of the one the owner process was in; 0 for a held one.
    pub cgroup: u64,
    /// Why it was refused, with [`State::Refused`].
    pub refused: Option<Errno>,
}

impl Info {
    /// `None` for an answer that makes no sense, which BPF programs of this ABI do not give.
    pub(crate) fn from_wire(state: &wire::State) -> Option<Self> {
        Some(Self {
            token: Token::new(state.token),
            ports: PortRange::new(state.start, state.count).ok()?,
            transports: Transports::from_bits(state.transports)?,
            state: match state.state {
                wire::PENDING => State::Pending,
                wire::ACTIVE => State::Active,
                _ => State::Refused,
            },
            scope: Scope::from_wire(state.scope, state.cgroup, state.gid),
            strict: u32::from(state.flags) & wire::STRICT != 0,
            ephemeral: u32::from(state.flags) & wire::EPHEMERAL != 0,
            persistent: u32::from(state.flags) & wire::PERSISTENT != 0,
            pid: state.pid,
            uid: state.uid,
            command: wire::text(&state.comm),
            label: wire::text(&state.label),
            since: Duration::from_nanos(state.since),
            bound: state.bound,
            netns: state.netns,
            cgroup: state.cgroup,
            refused: (state.error != 0).then_some(Errno(i32::from(state.error))),
        })
    }

    /// How long ago it was acquired (time asleep does not count).
    pub fn age(&self) -> Duration {
        sys::monotonic().saturating_sub(self.since)
    }

    /// When it was acquired, on the wall clock as it stands now.
    pub fn acquired_at(&self) -> SystemTime {
        SystemTime::now().checked_sub(self.age()).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// The first port and transport that this reservation shares with a block.
    pub(crate) fn overlap(&self, ports: PortRange, transports: Transports) -> Option<(u16, Transport)> {
        let transport = transports.iter().find(|transport| self.transports.contains(*transport))?;
        self.ports.overlaps(ports).then(|| (self.ports.start().max(ports.start()), transport))
    }
}

/// "61004-61007/tcp, pid 812 (nginx), reserved 3 min ago".
impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}, {}", self.ports, self.transports, Owner(self))
    }
}

/// The owner part of a sentence about a reservation.
pub(crate) struct Owner<'a>(pub(crate) &'a Info);

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(info) = self;
        if info.persistent {
            return write!(f, "the persistent reservation {:?}", info.label);
        }
        write!(f, "pid {} ({})", info.pid, info.command)?;
        if !info.label.is_empty() {
            write!(f, " as {:?}", info.label)?;
        }
        write!(f, ", reserved {} ago", Age(info.age()))
    }
}

/// A duration in its largest whole unit.
struct Age(Duration);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            s @ 0..60 => write!(f, "{s} s"),
            s @ 60..3600 => write!(f, "{} min", s / 60),
            s @ 3600..172_800 => write!(f, "{} h", s / 3600),
            s => write!(f, "{} days", s / 86_400),
        }
    }
}

/// The kernel enforcement that serves this process.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Version {
    /// The version of the control codes; this library speaks [`wire::ABI`](portkeep_core::wire::ABI).
    pub abi: u32,
    /// Whether an agent runs: without one, blocks outside the pool cannot be confirmed.
    pub agent: bool,
    /// The pool, if there is one.
    pub pool: Option<PortRange>,
    /// Reservations on the whole machine.
    pub reservations: u32,
    /// Ports in them.
    pub ports: u64,
    /// When kernel enforcement was brought up, on `CLOCK_MONOTONIC`.
    pub since: Duration,
}

impl Version {
    pub(crate) fn from_wire(version: &wire::Version) -> Self {
        Self {
            abi: version.abi,
            agent: version.agent != 0,
            pool: PortRange::inclusive(version.pool_first, version.pool_last).ok(),
            reservations: version.reservations,
            ports: version.ports,
            since: Duration::from_nanos(version.since),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_like_speech() {
        let say = |s| Age(Duration::from_secs(s)).to_string();
        assert_eq!([say(0), say(59), say(180), say(7300), say(172_800)], ["0 s", "59 s", "3 min", "2 h", "2 days"]);
    }
}
