//! ACQUIRE and RELEASE.

use portkeep::control;
use portkeep_core::{
    Transports, defaults,
    wire::{self, AcquireRequest},
};

use super::{Operation, RESERVATIONS, Worker, attack::HOT, outcome};
use crate::ledger::{Grant, now};

const POOL: (u16, u16) = (defaults::POOL.start(), defaults::POOL.last());

impl Worker {
    /// The request, and the heading under which it is counted.
    fn request(&mut self) -> (AcquireRequest, Operation) {
        let random = &mut self.random;
        let mut request = AcquireRequest { count: 1 + random.below(24) as u16, ..Default::default() };
        if random.one_in(30) {
            request.count = 1 + random.below(400) as u16;
        }
        request.flags = if random.one_in(3) { wire::BOTH } else { 0 };
        if random.one_in(5) {
            request.flags |= wire::STRICT;
        }
        request.scope = random.below(3) as u16;
        if request.scope == wire::SCOPE_CGROUP && random.one_in(2) {
            request.cgroup = random.of(&self.person.cgroups);
        }
        if random.one_in(4) {
            request.label = wire::label(&format!("soak {}", self.post.number));
        }
        match random.below(10) {
            0..=4 => {
                if random.one_in(3) {
                    request.align = 1 << random.below(7);
                }
                (request, Operation::AcquireWildcard)
            }
            5..=7 => {
                request.start = POOL.0 + random.below(u64::from(POOL.1 - POOL.0 - request.count) + 1) as u16;
                if random.one_in(4) {
                    request.start = HOT.0 + random.below(HOT.1.into()) as u16;
                    request.count = 1;
                }
                (request, Operation::AcquirePool)
            }
            _ => {
                let first = random.of(&[700, 5000, 6000, 12000, 40000]);
                request.start = first + random.below(500) as u16;
                request.count = request.count.min(30);
                (request, Operation::AcquireOutside)
            }
        }
    }

    pub(super) fn acquire(&mut self) {
        if self.reservations() >= RESERVATIONS {
            return self.release();
        }
        let (request, operation) = self.request();
        let i = self.socket_for(None, |held| held.pending.is_none() && !held.shared);
        let result = control::acquire(&self.held[i].socket, &request);
        let what = format!(
            "{}+{} flags {} scope {} align {} on {}",
            request.start, request.count, request.flags, request.scope, request.align, self.held[i].transport
        );
        let waits = [libc::EADDRINUSE, libc::EDQUOT, libc::ENETDOWN, libc::EINPROGRESS, libc::EACCES];
        let possible: &[i32] = match operation {
            Operation::AcquireWildcard => &[libc::ENOSPC, libc::EDQUOT],
            // Below 1024 a user is refused at once; the others wait where connections may be left behind.
            _ if request.start < 1024 && self.person.uid != 0 => &waits,
            _ => &waits[..4],
        };
        let done = self.expect(operation, &what, &result, possible);
        if done && operation == Operation::AcquireOutside {
            return self.violation(&format!("granted without being looked at: {what}"), &[]);
        }
        // "One's own cgroup" is the cgroup at the time of the request, wherever this process is when the agent answers.
        let cgroup = if request.cgroup == 0 { self.person.cgroups[0] } else { request.cgroup };
        let request = AcquireRequest { cgroup, ..request };
        if outcome(&result) == libc::EINPROGRESS {
            self.held[i].pending = Some(request);
        } else if done {
            self.granted(i, &request);
        }
    }

    /// The grant of the last request on a socket is in force: compare it with the request, and write it down.
    fn granted(&mut self, i: usize, request: &AcquireRequest) {
        let held = &self.held[i];
        let grant = match control::granted(&held.socket) {
            Ok(grant) => grant,
            Err(error) => return self.violation(&format!("granted, but the grant cannot be read: {error}"), &[]),
        };
        let transports =
            if request.flags & wire::BOTH != 0 { Transports::Both } else { Transports::from(held.transport) };
        let right = grant.state == wire::ACTIVE
            && grant.token != 0
            && grant.count == request.count
            && grant.transports == transports.bits()
            && (request.start == 0 || grant.start == request.start)
            && (request.start != 0 || (grant.start >= POOL.0 && grant.start + (grant.count - 1) <= POOL.1))
            && (request.align == 0 || grant.start.is_multiple_of(request.align));
        if !right {
            return self.violation(&format!("asked for {request:?}, got {grant:?}"), &[]);
        }
        let written = Grant {
            token: grant.token,
            start: grant.start,
            count: grant.count,
            transports: grant.transports,
            scope: request.scope as u8,
            flags: request.flags as u8,
            pid: self.person.pid,
            uid: self.person.uid,
            cgroup: request.cgroup,
            since: now(),
        };
        // A slot is always free: there are more than RESERVATIONS.
        let Some(slot) = self.ledger.free_slot() else { return };
        match self.ledger.write(slot, &written) {
            Ok(entry) => self.held[i].owns.push((entry, written)),
            Err((port, entry, other)) => {
                let text = format!("port {port} belongs to two: to {} and to {}", written.describe(), other.describe());
                self.violation(&text, &[entry.holder()]);
            }
        }
    }

    /// The agent's answers to requests for particular ports.
    pub(super) fn hear_answers(&mut self) {
        for i in 0..self.held.len() {
            let Some(request) = self.held[i].pending else { continue };
            let answer = control::granted(&self.held[i].socket);
            match answer {
                Ok(grant) if grant.state == wire::ACTIVE => {
                    self.count(Operation::Answer, 0);
                    self.held[i].pending = None;
                    self.granted(i, &request);
                }
                Ok(grant) if grant.state == wire::REFUSED && grant.error != 0 => {
                    let refused: std::io::Result<()> = Err(std::io::Error::from_raw_os_error(grant.error.into()));
                    self.expect(Operation::Answer, "refused", &refused, &[libc::EADDRINUSE, libc::EACCES]);
                    self.held[i].pending = None;
                }
                // Still being looked at, or just being taken back.
                Ok(_) => {}
                Err(error) => {
                    self.held[i].pending = None;
                    self.violation(&format!("the result of {request:?} cannot be read: {error}"), &[]);
                }
            }
        }
    }

    pub(super) fn acquire_malformed(&mut self) {
        let request = match self.random.below(6) {
            0 => AcquireRequest { start: 61000, ..Default::default() },
            1 => AcquireRequest { start: 65000, count: 1000, ..Default::default() },
            2 => AcquireRequest { count: 1, flags: 8, ..Default::default() },
            3 => AcquireRequest { start: 61001, count: 2, align: 2, ..Default::default() },
            4 => AcquireRequest { count: 2, align: 3, ..Default::default() },
            _ => AcquireRequest { count: 1, scope: 3, ..Default::default() },
        };
        let i = self.socket_for(None, |held| held.pending.is_none() && !held.shared);
        let result = control::acquire(&self.held[i].socket, &request);
        if self.expect(Operation::AcquireMalformed, &format!("{request:?}"), &result, &[libc::EINVAL]) {
            self.violation(&format!("granted: {request:?}"), &[]);
        }
    }

    pub(super) fn release(&mut self) {
        let Some((i, j)) = self.pick_grant() else { return };
        let (entry, grant) = self.held[i].owns.swap_remove(j);
        self.ledger.cross_out(entry, &grant);
        let Some(token) = grant.token() else { return };
        // Any socket of the owner process will do, if it is of the transport.
        let by = match self.pick(|held| grant.of(held.transport) && !held.shared) {
            Some(other) if self.random.one_in(3) => other,
            _ => i,
        };
        let result = control::release(&self.held[by].socket, token);
        self.expect(Operation::Release, &grant.describe(), &result, &[]);
    }

    pub(super) fn release_foreign(&mut self) {
        let Some((entry, grant)) = self.pick_foreign() else { return };
        if entry.holder() == self.post.number {
            return;
        }
        let Some(token) = grant.token() else { return };
        let transport = self.transport();
        let socket = self.fresh_socket(transport);
        let result = control::release(&socket, token);
        let possible = [libc::EPERM, libc::ENOENT, libc::EINVAL];
        if self.expect(Operation::ReleaseForeign, &grant.describe(), &result, &possible) {
            self.violation(&format!("ended somebody else's {}", grant.describe()), &[entry.holder()]);
        }
    }
}
