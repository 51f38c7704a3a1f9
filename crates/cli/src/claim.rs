//! A reservation made by a command, at either level of enforcement.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::mpsc,
    thread,
    time::Duration,
};

use portkeep::{
    AcquireError, Enforcement, Info, PortList, QueryError, Request, Require, Reservation, Scope, Token, Transport,
    Transports,
};
use portkeep_core::time;

use crate::{
    Io,
    args::{ask::Ask, sources::ConfigFile},
    render::conflict,
    signals::Ended,
    survey,
};

/// Ports that are ours until this is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) ports: PortList,
    pub(crate) transports: Transports,
    /// The token of each block. Only kernel enforcement gives tokens.
    pub(crate) tokens: Vec<Token>,
    reservation: Reservation,
}

/// The kind of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    /// For associated sockets only.
    Strict,
    /// A private ephemeral range.
    Ephemeral,
}

/// The time between two checks whether a reservation still exists.
const LOOK: Duration = Duration::from_secs(1);

/// The ports that a request was granted.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Grant {
    pub(crate) ports: String,
    pub(crate) transports: Transports,
    /// The token of each block. Only kernel enforcement gives tokens.
    pub(crate) tokens: Vec<Token>,
}

impl Grant {
    /// Call `ended` with the reason when another process ends the reservation. The watch ends when it is dropped.
    pub(crate) fn watch(&self, ended: impl FnOnce(String) + Send + 'static) -> Watch {
        let (stop, stopped) = mpsc::channel();
        if !self.tokens.is_empty() {
            let Self { ports, transports, tokens } = self.clone();
            thread::spawn(move || {
                // A look-up costs only some microseconds, so polling is enough.
                while stopped.recv_timeout(LOOK) == Err(mpsc::RecvTimeoutError::Timeout) {
                    // If one block has ended, the whole list has ended.
                    let reason = tokens.iter().find_map(|token| match portkeep::lookup(*token) {
                        Ok(None) => Some("was released by an administrator"),
                        Err(QueryError::KernelAbsent) => Some("has ended, because kernel enforcement was taken down"),
                        _ => None,
                    });
                    let Some(reason) = reason else { continue };
                    return ended(format!(
                        "the reservation of {ports}/{transports} {reason}; other programs can bind these ports now"
                    ));
                }
            });
        }
        Watch(stop)
    }
}

/// Watches for the end of a reservation.
#[derive(Debug)]
pub(crate) struct Watch(#[expect(dead_code, reason = "its end ends the watch")] mpsc::Sender<()>);

impl Claim {
    /// Have kernel enforcement reserve the ports of `ask`. `label` is for a request without a label. If there is an
    /// `owner`, it is the owner socket, and the reservation ends with it. If `signal` reports a signal, the wait for
    /// the agent ends.
    pub(crate) fn kernel(
        ask: &Ask,
        config: &ConfigFile,
        label: &str,
        scope: Scope,
        kind: Kind,
        owner: Option<OwnedFd>,
        signal: impl FnMut() -> Option<i32>,
    ) -> anyhow::Result<Self> {
        let mut request =
            request(ask)?.label(ask.label.as_deref().unwrap_or(label)).scope(scope).require(Require::Kernel);
        request = ask.also()?.iter().cloned().fold(request, Request::also);
        match kind {
            Kind::Plain => {}
            Kind::Strict => request = request.strict(),
            Kind::Ephemeral => request = request.ephemeral(),
        }
        let reservation = acquire(&request, ask, config, owner, signal)?;
        let tokens = reservation.blocks().map(|(_, token)| token).collect();
        Ok(Self { tokens, ..Self::of(reservation) })
    }

    /// Hold the ports with bound sockets, without kernel enforcement. Programs that set SO_REUSEADDR can bind the TCP
    /// ports.
    pub(crate) fn held(ask: &Ask, config: &ConfigFile, signal: impl FnMut() -> Option<i32>) -> anyhow::Result<Self> {
        let label = ask.label.as_deref().unwrap_or_default();
        let request = request(ask)?.label(label).require(Require::Held);
        let reservation = acquire(&request, ask, config, None, signal)?;
        reservation.open_held(Transports::Tcp)?;
        Ok(Self::of(reservation))
    }

    fn of(reservation: Reservation) -> Self {
        let (ports, transports) = (reservation.ports().clone(), reservation.transports());
        Self { ports, transports, tokens: Vec::new(), reservation }
    }

    pub(crate) fn enforcement(&self) -> Enforcement {
        self.reservation.enforcement()
    }

    /// Another descriptor of the owner socket. It keeps the reservation as this claim does. `None` in held mode.
    pub(crate) fn owner(&self) -> io::Result<Option<OwnedFd>> {
        match self.enforcement() {
            Enforcement::Kernel => self.reservation.as_fd().try_clone_to_owned().map(Some),
            _ => Ok(None),
        }
    }

    /// The grant, for a process that waits for its end.
    pub(crate) fn grant(&self) -> Grant {
        Grant { ports: self.ports.to_string(), transports: self.transports, tokens: self.tokens.clone() }
    }

    /// Called before the command starts: release the held ports that the command could not bind otherwise.
    pub(crate) fn make_way(&self) -> anyhow::Result<()> {
        Ok(self.reservation.open_held(Transports::Both)?)
    }

    /// The reservation, as listings show it.
    pub(crate) fn info(&self) -> anyhow::Result<Info> {
        let mut info = self.reservation.state()?;
        // The tokens of held ports are of no use to other processes.
        info.set_tokens(self.tokens.iter().copied().map(Some).chain(std::iter::repeat(None)));
        survey::complete(std::slice::from_mut(&mut info))?;
        Ok(info)
    }
}

/// The block that is asked for, as a request.
fn request(ask: &Ask) -> anyhow::Result<Request> {
    let (list, transports) = ask.wanted.ports()?;
    let first = transports.iter().next().unwrap_or(Transport::Tcp);
    let request = Request::new(first).ports(ask.wanted.count()).align(ask.wanted.align.get());
    let request = request.timeout(ask.timeout).wait(ask.wait.unwrap_or_default());
    let request = if transports == Transports::Both { request.both() } else { request };
    Ok(match list {
        Some(list) => request.ports(list),
        None => request,
    })
}

/// Make the request, and wait as long as `ask` says. A signal that `signal` reports ends the wait.
fn acquire(
    request: &Request,
    ask: &Ask,
    config: &ConfigFile,
    owner: Option<OwnedFd>,
    mut signal: impl FnMut() -> Option<i32>,
) -> anyhow::Result<Reservation> {
    let (mut ended_by, mut waits) = (None, false);
    let granted = request.acquire_unless(owner, |why| {
        ended_by = signal();
        match why {
            Some(AcquireError::OverQuota) if conflict::never_allowed(ask, config) => return true,
            Some(why) if !waits => {
                waits = true;
                Io::standard().note(format_args!("waiting: {}", conflict::explain(ask, config, why)));
            }
            _ => {}
        }
        ended_by.is_some()
    });
    granted.map_err(|error| match ended_by.or_else(signal) {
        Some(signal) if waits || matches!(error, AcquireError::Interrupted) => Ended { signal, waits }.into(),
        _ => {
            let why = conflict::explain(ask, config, &error);
            match ask.wait.filter(|_| waits) {
                Some(limit) => why.context(format!("waited {}", time::in_words(limit))),
                None => why,
            }
        }
    })
}
