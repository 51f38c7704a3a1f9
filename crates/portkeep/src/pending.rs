//! A request that waits for the agent.

use std::{
    io,
    task::Poll,
    time::{Duration, Instant},
};

use portkeep_core::{
    Errno, PortList, PortRange, Token, Transport,
    defaults::TIMEOUT,
    wire::{self, SelectRequest},
};

use crate::{AcquireError, Info, QueryError, Request, Reservation, State, query, sys};

/// A request that may still be pending. Dropping it cancels the request.
#[derive(Debug)]
#[must_use = "dropping it cancels the request"]
pub struct Pending {
    /// `None` after the outcome was reported.
    reservation: Option<Reservation>,
    /// The blocks that the agent still has to confirm.
    undecided: Vec<(PortRange, Token)>,
}

impl Pending {
    pub(crate) fn decided(reservation: Reservation) -> Self {
        Self { reservation: Some(reservation), undecided: Vec::new() }
    }

    /// Another block of the same list.
    pub(crate) fn add(&mut self, mut other: Self) {
        self.undecided.append(&mut other.undecided);
        let more = other.reservation.take().expect("nobody has polled it");
        self.reservation.as_mut().expect("nobody has polled it").add(more);
    }

    /// A claim for which the BPF programs have already reported `grant`. If the agent was quick, that may be a refusal.
    /// A refusal is reported only once, so it is handled here.
    pub(crate) fn granted(reservation: Reservation, grant: &wire::Grant) -> Result<Self, AcquireError> {
        match (grant.state, grant.error) {
            (wire::REFUSED, error) if error != 0 => {
                Err(refused(reservation.ports().first(), &reservation, Errno(i32::from(error))))
            }
            (wire::ACTIVE, _) => Ok(Self::decided(reservation)),
            _ => Ok(Self { undecided: reservation.blocks().collect(), reservation: Some(reservation) }),
        }
    }

    /// The token the reservation has, or will have.
    ///
    /// # Panics
    ///
    /// After [`poll`](Self::poll) was ready.
    pub fn token(&self) -> Token {
        self.claimed().token()
    }

    /// The ports claimed.
    ///
    /// # Panics
    ///
    /// After [`poll`](Self::poll) was ready.
    pub fn ports(&self) -> &PortList {
        self.claimed().ports()
    }

    fn claimed(&self) -> &Reservation {
        self.reservation.as_ref().expect("the outcome has been reported already")
    }

    /// Check whether it is decided. Never blocks.
    ///
    /// No event wakes the caller: poll again after some 50 microseconds, then at growing intervals.
    ///
    /// # Panics
    ///
    /// After it was ready.
    pub fn poll(&mut self) -> Poll<Result<Reservation, AcquireError>> {
        let mut undecided = std::mem::take(&mut self.undecided);
        let mut outcome = Ok(());
        // If one block is refused, all are.
        undecided.retain(|(block, token)| match outcome_of(self.claimed(), *block, *token) {
            None => true,
            Some(decided) => {
                if outcome.is_ok() {
                    outcome = decided;
                }
                false
            }
        });
        self.undecided = undecided;
        if outcome.is_ok() && !self.undecided.is_empty() {
            return Poll::Pending;
        }
        let reservation = self.reservation.take().expect("claimed() has seen it");
        // On an error the guard is dropped, which ends the other blocks.
        Poll::Ready(outcome.map(|()| reservation))
    }

    /// Wait until it is decided, 30 seconds at most; see [`wait_for`](Self::wait_for).
    pub fn wait(self) -> Result<Reservation, AcquireError> {
        self.wait_for(TIMEOUT, || false)
    }

    /// Wait until it is decided, but no longer than `limit` ([`AcquireError::AgentSilent`]). The wait also ends at a
    /// signal that this thread handles, and if `stop` returns true ([`AcquireError::Interrupted`]). After an error,
    /// nothing stays reserved.
    ///
    /// A signal can come while this thread does not sleep, or to another thread. Such a signal does not end the wait. A
    /// program that must notice every signal records it in its handler, and then returns true from `stop`.
    pub fn wait_for(self, limit: Duration, stop: impl FnMut() -> bool) -> Result<Reservation, AcquireError> {
        self.wait_with(limit, stop, true)
    }

    /// The same. A signal ends the wait if `by_signal`, otherwise only if `stop` returns true after it.
    pub(crate) fn wait_with(
        mut self,
        limit: Duration,
        mut stop: impl FnMut() -> bool,
        by_signal: bool,
    ) -> Result<Reservation, AcquireError> {
        const LONGEST: Duration = Duration::from_millis(2);
        let begun = Instant::now();
        let mut pause = Duration::from_micros(50);
        loop {
            if let Poll::Ready(outcome) = self.poll() {
                return outcome;
            }
            if stop() {
                return Err(AcquireError::Interrupted);
            }
            if begun.elapsed() >= limit {
                return Err(AcquireError::AgentSilent { limit });
            }
            if !sys::sleep(pause) && by_signal {
                return Err(AcquireError::Interrupted);
            }
            pause = (pause * 2).min(LONGEST);
        }
    }

    /// Cancel the request: the same as dropping it.
    pub fn cancel(self) {}
}

/// The outcome for a block, `None` while the agent is still checking.
fn outcome_of(claimed: &Reservation, block: PortRange, token: Token) -> Option<Result<(), AcquireError>> {
    let info = match state_of(claimed, token) {
        Ok(Some(info)) => info,
        // It does not exist any more: an administrator ended it.
        Ok(None) => return Some(Err(AcquireError::Cancelled)),
        Err(error) => return Some(Err(AcquireError::AcquireCall { source: error.into() })),
    };
    match (info.state, info.refused) {
        (State::Active, _) => Some(Ok(())),
        // The reason is written after the state, so there may be none yet.
        (State::Refused, None) => None,
        (State::Refused, Some(reason)) => Some(Err(refused(block, claimed, reason))),
        // No query reports these.
        (State::Waiting | State::Conflict | State::Ended, _) => Some(Err(AcquireError::Cancelled)),
        (State::Pending, _) => match query::version_of(claimed) {
            Ok(version) if version.agent => None,
            _ => Some(Err(AcquireError::AgentAbsent)),
        },
    }
}

/// The meaning of the error number that the agent gave.
fn refused(block: PortRange, claimed: &Reservation, error: Errno) -> AcquireError {
    let request = Request::new(Transport::Tcp).at(block.start()).ports(block.count());
    match request.refusal(io::Error::from_raw_os_error(error.0), claimed) {
        AcquireError::InUse { ports, by, .. } => AcquireError::InUse { ports, transports: claimed.transports(), by },
        error => error,
    }
}

/// Asks by the block's own token. GRANTED would answer for the last request of the owner socket, and would report the
/// refusal of that request to the wrong caller.
fn state_of(claimed: &Reservation, token: Token) -> Result<Option<Info>, QueryError> {
    let select = SelectRequest { by: wire::BY_TOKEN, token: token.get(), ..Default::default() };
    query::ask(claimed, &select)
}
