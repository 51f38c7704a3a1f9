//! Requests for particular ports, granted or refused.

use std::time::{Duration, Instant};

use portkeep::persistent::protocol::Latency;
use portkeep_core::{Errno, wire};
use portkeep_kernel::Reservation;
use rustix::time::{ClockId, clock_gettime};

use super::{
    Agent, SLICE, Waiting,
    examine::{Examiner, Refusal},
};

/// Bounds of the distribution of waiting times, in seconds.
const BOUNDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// No request has been handled yet.
pub(super) fn no_latency() -> Latency {
    Latency::with_bounds(&BOUNDS)
}

/// How long ago a reservation was acquired.
fn waited(reservation: &Reservation) -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let now = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32);
    now.saturating_sub(Duration::from_nanos(reservation.since))
}

impl Agent<'_> {
    /// A request waits, one of `hints` asked.
    pub(super) fn queue_pending(&mut self, id: u32, hints: Vec<u32>) -> anyhow::Result<()> {
        if let Some(reservation) = self.kernel.maps.reservation(id)? {
            self.queue(id, &reservation, hints);
        }
        Ok(())
    }

    /// Everything that waits, also if its event was lost.
    pub(super) fn queue_all_pending(&mut self) -> anyhow::Result<()> {
        let all: Vec<_> = self.kernel.maps.reservations().collect::<Result<_, _>>()?;
        for (id, reservation) in all {
            self.queue(id, &reservation, vec![reservation.pid]);
        }
        Ok(())
    }

    fn queue(&mut self, id: u32, reservation: &Reservation, hints: Vec<u32>) {
        if reservation.state() == wire::PENDING && !reservation.is_persistent() {
            self.pending.push(reservation.payer, Waiting { id, hints });
        }
    }

    /// Handle requests in turn for a while.
    pub(super) fn handle_pending(&mut self) -> anyhow::Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < SLICE
            && let Some(Waiting { id, hints }) = self.pending.pop()
        {
            self.handle(id, &hints)?;
        }
        Ok(())
    }

    /// Grant or refuse one request. The process that asked may be gone by now, or at any moment.
    fn handle(&mut self, id: u32, hints: &[u32]) -> anyhow::Result<()> {
        let Some(reservation) = self.kernel.maps.reservation(id)? else { return Ok(()) };
        let (Some(token), Some(ports), Some(transports)) =
            (reservation.token(), reservation.ports(), reservation.transports())
        else {
            return Ok(());
        };
        if reservation.state() != wire::PENDING || reservation.is_persistent() {
            return Ok(());
        }
        let mut judged = if reservation.is_contested() {
            Err(Refusal::Contested)
        } else {
            match self.kept.get(reservation.netns, hints) {
                Ok(namespace) => {
                    let (keeper, prober, policy) = (&self.keeper, &self.prober, &self.policy);
                    let first_pids = self.happenings.first_pids();
                    Examiner { keeper, prober, policy, first_pids }.examine(
                        &reservation,
                        (ports, transports),
                        namespace,
                        hints,
                    )
                }
                Err(error) => Err(Refusal::Unknown(error)),
            }
        };
        if judged.is_ok() {
            match self.kernel.admin.confirm(id, token) {
                // A bind came between.
                Err(error) if error.errno() == Some(Errno::EADDRINUSE) => judged = Err(Refusal::Contested),
                done => {
                    if done.is_ok() {
                        self.happenings.confirmed(id, &reservation);
                    }
                    return self.over(&reservation, hints, done);
                }
            }
        }
        let Err(refusal) = judged else { return Ok(()) };
        let told = self.happenings.denied((id, &reservation), &self.kernel.maps, &refusal, self.policy.owners());
        if let Some(told) = told {
            self.server.publish(&told);
        }
        let done = self.kernel.admin.refuse(id, token, refusal.errno());
        self.unsettle(reservation.netns, hints);
        self.over(&reservation, hints, done)
    }

    fn over(
        &mut self,
        reservation: &Reservation,
        hints: &[u32],
        done: Result<(), portkeep_kernel::AdminError>,
    ) -> anyhow::Result<()> {
        match done {
            // The owner's socket was closed, or the administrator ended it.
            Err(error) if error.errno() == Some(Errno::ENOENT) => {
                self.unsettle(reservation.netns, hints);
                Ok(())
            }
            other => {
                self.latency.add(waited(reservation));
                Ok(other?)
            }
        }
    }
}
