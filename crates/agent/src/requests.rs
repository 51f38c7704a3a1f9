//! Grants or refuses requests for particular ports.

use std::time::{Duration, Instant};

use portkeep_core::{Errno, PortRange, Transports, wire};
use portkeep_kernel::{Reservation, RingEvent};
use rustix::time::{ClockId, clock_gettime};

use super::{
    agent::{Agent, SLICE},
    examine::{Examiner, Refusal},
    pending::Waiting,
    settle::wanted,
};

/// How long ago the request was made.
fn waited(reservation: &Reservation) -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let now = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32);
    now.saturating_sub(Duration::from_nanos(reservation.since))
}

impl Agent<'_> {
    /// Put a pending request into the queue.
    pub(super) fn queue_pending(&mut self, event: &RingEvent) -> anyhow::Result<()> {
        let reservation = self.programs.maps.reservation(event.id)?;
        // If the event is older, its request has ended, and another one may have its entry.
        if let Some(reservation) = reservation.filter(|reservation| reservation.since <= event.when) {
            self.queue(event.id, &reservation, vec![event.tid, event.pid]);
        }
        Ok(())
    }

    /// Put all pending requests into the queue, also those whose events were lost.
    pub(super) fn queue_all_pending(&mut self) -> anyhow::Result<()> {
        let all: Vec<_> = self.programs.maps.reservations().collect::<Result<_, _>>()?;
        for (id, reservation) in all {
            self.queue(id, &reservation, vec![reservation.pid]);
        }
        Ok(())
    }

    fn queue(&mut self, id: u32, reservation: &Reservation, hints: Vec<u32>) {
        if let Some(token) = reservation.token()
            && reservation.state() == wire::PENDING
            && !reservation.is_persistent()
        {
            self.pending.push(reservation.payer, Waiting { id, token, hints });
        }
    }

    /// Handle requests in turn for one slice.
    pub(super) fn handle_pending(&mut self) -> anyhow::Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < SLICE
            && let Some(waiting) = self.pending.pop()
        {
            self.handle(&waiting)?;
        }
        Ok(())
    }

    /// Grant or refuse one request. The process that made it may have ended, or may end at any moment.
    fn handle(&mut self, waiting: &Waiting) -> anyhow::Result<()> {
        let Waiting { id, token, ref hints } = *waiting;
        let Some(reservation) = self.programs.maps.reservation(id)? else { return Ok(()) };
        let (Some(ports), Some(transports)) = (reservation.ports(), reservation.transports()) else { return Ok(()) };
        // If another request has the entry now, its own event puts it into the queue.
        if reservation.token() != Some(token) || reservation.state() != wire::PENDING {
            return Ok(());
        }
        let block = (ports, transports);
        let mut examined = self.examine(&reservation, block, hints);
        if examined.is_ok() {
            match self.programs.admin.confirm(id, token) {
                // A bind came in between.
                Err(error) if error.errno() == Some(Errno::EADDRINUSE) => examined = Err(Refusal::Contested),
                done => {
                    if done.is_ok() {
                        self.event_log.confirmed(id, &reservation);
                    }
                    return self.over(&reservation, hints, done);
                }
            }
        }
        let Err(refusal) = examined else { return Ok(()) };
        let event = self.event_log.denied(&reservation, &self.programs.maps, &refusal, self.policy.owners());
        if let Some(event) = event {
            self.server.publish(&event);
        }
        let done = self.programs.admin.refuse(id, token, refusal.errno());
        self.unsettle(reservation.netns, hints);
        self.over(&reservation, hints, done)
    }

    fn examine(
        &mut self,
        reservation: &Reservation,
        block: (PortRange, Transports),
        hints: &[u32],
    ) -> Result<(), Refusal> {
        if reservation.is_contested() {
            return Err(Refusal::Contested);
        }
        let namespace = self.open_namespaces.get(reservation.netns, hints)?;
        let (reserved_ports, prober, policy) = (&self.reserved_ports, &self.prober, &self.policy);
        let (maps, registry, own) = (&self.programs.maps, &self.registry, self.netns);
        let in_force = |netns| Ok(wanted(maps, own, &registry.draining())?.remove(&netns).unwrap_or_default());
        let first_pids = self.event_log.first_pids();
        Examiner { reserved_ports, prober, policy, in_force: &in_force, first_pids }.examine(
            reservation,
            block,
            namespace,
            hints,
        )
    }

    fn over(
        &mut self,
        reservation: &Reservation,
        hints: &[u32],
        done: Result<(), portkeep_kernel::AdminError>,
    ) -> anyhow::Result<()> {
        match done {
            // The owner's socket was closed, or an administrator ended it.
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
