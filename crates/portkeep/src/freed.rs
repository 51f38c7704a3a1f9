//! Waiting for ports that another process has.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use portkeep_core::defaults;

use crate::{
    AcquireError, Request, Reservation, query,
    socket::{Kind, new_socket},
    sys,
};

/// No event reports some changes, which are noticed after this: a port that leaves TIME_WAIT, a RELEASE on a socket that stays open.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The same where the kernel reports no events.
const WITHOUT_EVENTS: Duration = Duration::from_millis(100);
/// Between two tries, so that a machine on which many sockets close does not keep a waiting process busy. It doubles with
/// each try in vain.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(64);

/// The sockets of this network namespace whose ends the kernel reports. A reservation ends with its owner socket, and a port
/// comes free with the last socket that is bound to it, so nothing else is worth waiting for.
#[derive(Debug)]
struct Ends {
    /// `None` where the kernel does not report them.
    events: Option<OwnedFd>,
    pause: Duration,
}

impl Ends {
    /// Those from now on. Held ports are found by binding sockets, which end, too: there events are of no use.
    fn new(owner: &OwnedFd) -> Self {
        let events = query::version_of(owner).ok().and_then(|_| sys::ends_of_sockets().ok());
        Self { events, pause: SHORTEST }
    }

    /// Sleep until there was one, or it is time to look again, or for `limit`. False if a signal came.
    fn wait(&mut self, limit: Duration) -> io::Result<bool> {
        let Some(events) = &self.events else { return Ok(sys::sleep(limit.min(WITHOUT_EVENTS))) };
        if !sys::sleep(limit.min(self.pause)) {
            return Ok(false);
        }
        self.pause = (self.pause * 2).min(LONGEST);
        let awake = sys::wait_readable(events.as_raw_fd(), limit.min(LOOK_AGAIN))?;
        // One is as good as many. Later ones are for the next wait.
        sys::drain(events.as_raw_fd());
        Ok(awake)
    }
}

impl Request {
    /// Acquire the reservation, and wait for the agent where it has to confirm (some milliseconds).
    ///
    /// The wait ends with the agent, after [`timeout`](Self::timeout), and with a signal that this thread handles
    /// ([`AcquireError::Interrupted`]); see [`Pending::wait_for`]. With [`wait`](Self::wait) it also waits for ports.
    pub fn acquire(&self) -> Result<Reservation, AcquireError> {
        self.acquire_with(None, |_| false, true)
    }

    /// As [`acquire`](Self::acquire), with an owner socket that exists already if `owner` is one (see
    /// [`start_on`](Self::start_on)), and until `stop` returns true.
    ///
    /// `stop` is asked again and again while this waits, with `None`. Before it begins to wait for ports
    /// ([`wait`](Self::wait)) it is asked with the reason why they cannot be had now, and if it returns true, that is the error.
    /// Otherwise [`AcquireError::Interrupted`] is. A signal ends the wait only if `stop` returns true after it.
    pub fn acquire_unless(
        &self,
        owner: Option<OwnedFd>,
        stop: impl FnMut(Option<&AcquireError>) -> bool,
    ) -> Result<Reservation, AcquireError> {
        self.acquire_with(owner, stop, false)
    }

    fn acquire_with(
        &self,
        owner: Option<OwnedFd>,
        mut stop: impl FnMut(Option<&AcquireError>) -> bool,
        by_signal: bool,
    ) -> Result<Reservation, AcquireError> {
        let failed = |source| AcquireError::SocketCall { source };
        // One for all tries: the end of our own sockets is not worth waking for.
        let owner = match owner {
            Some(owner) => owner,
            None => new_socket(self.transport, Kind::Any).map_err(failed)?.into(),
        };
        let begun = Instant::now();
        let mut ends = None;
        loop {
            let started = self.start_on(owner.try_clone().map_err(failed)?);
            let error = match started.and_then(|pending| pending.wait_with(self.timeout, || stop(None), by_signal)) {
                Ok(reservation) => return Ok(reservation),
                Err(error) => error,
            };
            if begun.elapsed() >= self.wait || !self.can_pass(&error, &owner) || stop(Some(&error)) {
                return Err(error);
            }
            // Ends between the try and now were missed: so the next try comes at once.
            let Some(ends) = &mut ends else {
                ends = Some(Ends::new(&owner));
                continue;
            };
            loop {
                let undisturbed = ends.wait(self.wait.saturating_sub(begun.elapsed())).map_err(failed)?;
                if (!undisturbed && by_signal) || stop(None) {
                    return Err(AcquireError::Interrupted);
                }
                // As long as it is reserved no request is made: the agent would examine and log each.
                if begun.elapsed() >= self.wait || !is_reserved(&error, &owner) {
                    break;
                }
            }
        }
    }

    /// Whether the request can succeed later because other processes give ports up.
    fn can_pass(&self, error: &AcquireError, owner: &OwnedFd) -> bool {
        match error {
            AcquireError::InUse { .. } | AcquireError::OverQuota => true,
            // For particular ports it means that too few others would be left (N5).
            AcquireError::NoRoom { count } => {
                let pool = query::version_of(owner).map_or(Some(defaults::POOL), |version| version.pool);
                !self.names_ports() && pool.is_some_and(|pool| pool.count() >= *count)
            }
            _ => false,
        }
    }
}

/// Whether the ports that could not be had are still those of a reservation.
fn is_reserved(error: &AcquireError, owner: &OwnedFd) -> bool {
    let AcquireError::InUse { ports, transports, by: Some(_) } = error else { return false };
    query::conflict(owner, *ports, *transports).is_some()
}
