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

/// No event reports a port that leaves TIME_WAIT, or a RELEASE on a socket that stays open. So look again after this
/// time.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The same, if the kernel reports no events.
const WITHOUT_EVENTS: Duration = Duration::from_millis(100);
/// The pause between two tries, which doubles after each try that an event caused and that failed. Without it, a
/// waiting process would be busy on a machine on which many sockets close.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(64);

/// The ends of sockets in this network namespace, which the kernel reports. A reservation ends with its owner socket,
/// and a port becomes free with the last socket that is bound to it. So other events do not matter.
///
/// If a socket has a port, only ends of sockets with the ports matter. The agent may have to look at the ports in each
/// try, and its sockets end, too. Where one of these had a port of the block, the pause grows to [`LOOK_AGAIN`].
#[derive(Debug)]
struct Ends {
    /// `None` where the kernel does not report them.
    events: Option<OwnedFd>,
    pause: Duration,
}

impl Ends {
    /// The ends from now on. Held mode does not use events: each of its tries binds and closes sockets, so it would
    /// wake itself.
    fn new(owner: &OwnedFd) -> Self {
        let events = query::version_of(owner).ok().and_then(|_| sys::ends_of_sockets().ok());
        Self { events, pause: SHORTEST }
    }

    /// Sleep until a socket ends that may have caused `error`, until it is time to look again, or for `limit`. False if
    /// a signal came.
    fn wait(&mut self, limit: Duration, error: &AcquireError) -> io::Result<bool> {
        let Some(events) = &self.events else { return Ok(sys::sleep(limit.min(WITHOUT_EVENTS))) };
        let begun = Instant::now();
        let limit = limit.min(LOOK_AGAIN);
        let (ports, longest) = match error {
            AcquireError::InUse { ports, by: None, .. } => (Some(*ports), LOOK_AGAIN),
            _ => (None, LONGEST),
        };
        if !sys::sleep(limit.min(self.pause)) {
            return Ok(false);
        }
        // One event is enough for a try. Later events are for the next wait.
        while !sys::has_ended(events.as_raw_fd(), ports) {
            let left = limit.saturating_sub(begun.elapsed());
            if left.is_zero() {
                self.pause = SHORTEST;
                return Ok(true);
            }
            if !sys::wait_readable(events.as_raw_fd(), left)? {
                return Ok(false);
            }
        }
        self.pause = (self.pause * 2).min(longest);
        Ok(true)
    }
}

impl Request {
    /// Acquire the reservation, and wait for the agent where it has to confirm (some milliseconds).
    ///
    /// The wait ends if the agent ends, after [`timeout`](Self::timeout), and at a signal that this thread handles
    /// ([`AcquireError::Interrupted`]); see `Pending::wait_for`. With [`wait`](Self::wait) it also waits for ports.
    pub fn acquire(&self) -> Result<Reservation, AcquireError> {
        self.acquire_with(None, |_| false, true)
    }

    /// As [`acquire`](Self::acquire), but `stop` can end the wait. If `owner` is a socket, it becomes the owner socket
    /// (see [`start_on`](Self::start_on)).
    ///
    /// While this waits, it calls `stop` again and again with `None`. If `stop` returns true, the error is
    /// [`AcquireError::Interrupted`]. Before this waits for ports ([`wait`](Self::wait)), it calls `stop` with the
    /// reason why they cannot be reserved now. If `stop` returns true, that reason is the error. A signal ends the wait
    /// only if `stop` returns true after it.
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
        // One owner socket for all tries: otherwise the end of each try would wake us.
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
            // Sockets that ended between the try and now were not reported, so try again at once.
            let Some(ends) = &mut ends else {
                ends = Some(Ends::new(&owner));
                continue;
            };
            loop {
                let undisturbed = ends.wait(self.wait.saturating_sub(begun.elapsed()), &error).map_err(failed)?;
                if (!undisturbed && by_signal) || stop(None) {
                    return Err(AcquireError::Interrupted);
                }
                // While the ports are reserved, make no request: the agent would check and log each one.
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
            // For particular ports it means that too few ephemeral ports would be left (N5).
            AcquireError::NoRoom { count } => {
                let pool = query::version_of(owner).map_or(Some(defaults::POOL), |version| version.pool);
                !self.names_ports() && pool.is_some_and(|pool| pool.count() >= *count)
            }
            _ => false,
        }
    }
}

/// Whether a reservation still has the ports that the request did not get.
fn is_reserved(error: &AcquireError, owner: &OwnedFd) -> bool {
    let AcquireError::InUse { ports, transports, by: Some(_) } = error else { return false };
    query::conflict(owner, *ports, *transports).is_some()
}
