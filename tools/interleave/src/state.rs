//! A moment of a scenario: memory, kernel, what each CPU is about to do, and what has become of each reservation.

use std::hash::{Hash, Hasher};

use crate::{
    cpu::Cpu,
    kernel::Kernel,
    memory::{Shared, mix},
};

/// The phase of a reservation, as its owner knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// No process has asked yet.
    None,
    /// The request is under way.
    Asking,
    /// It waits for the agent.
    Pending,
    /// The agent is confirming it.
    Confirming,
    Granted,
    /// A process is ending it.
    Ending,
    Over,
}

/// One reservation of the scenario.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Reservation {
    pub(crate) phase: Phase,
    pub(crate) token: u64,
    pub(crate) id: u32,
    pub(crate) start: u16,
    pub(crate) count: u16,
}

/// A set of reservations, by their numbers in the scenario.
pub(crate) type Set = u32;

/// One CPU: its place in its list of system calls.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) call: usize,
    pub(crate) step: usize,
    /// It waits before an access that others may see.
    pub(crate) waiting: bool,
    pub(crate) cpu: Option<Box<Cpu>>,
    /// Of the call at hand, as far as it is known.
    pub(crate) result: i32,
    pub(crate) port: u16,
    /// In force over the port when this bind began, and not for this socket.
    pub(crate) forbidden: Set,
    /// In force over the port when this bind began, and for this socket.
    pub(crate) mine: Set,
    /// Our programs have refused this bind.
    pub(crate) refused: bool,
    /// The possible excuses for that.
    pub(crate) excuses: Set,
    /// The possible excuses for earlier refusals.
    pub(crate) refusals: Vec<Set>,
    pub(crate) results: Vec<i32>,
    /// Of forgetting: when the namespace was last used, and which programs ran then.
    pub(crate) noted: u64,
    pub(crate) waits_for: Vec<(usize, usize, usize)>,
}

impl Task {
    pub(crate) fn new() -> Self {
        Self {
            call: 0,
            step: 0,
            waiting: false,
            cpu: None,
            result: 0,
            port: 0,
            forbidden: 0,
            mine: 0,
            refused: false,
            excuses: 0,
            refusals: Vec::new(),
            results: Vec::new(),
            noted: 0,
            waits_for: Vec::new(),
        }
    }

    /// In the middle of a system call: taking the CPU away from it is a preemption.
    pub(crate) const fn busy(&self) -> bool {
        self.step != 0
    }
}

#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) shared: Shared,
    pub(crate) kernel: Kernel,
    pub(crate) tasks: Vec<Task>,
    pub(crate) reservations: Vec<Reservation>,
    /// Which reservation each socket is associated with.
    pub(crate) associated: Vec<Option<usize>>,
    /// Sockets whose bind has succeeded.
    pub(crate) settled: Vec<bool>,
}

/// A hasher that is fast and good enough for 64 bits.
struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for eight in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..eight.len()].copy_from_slice(eight);
            self.0 = mix(self.0, u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = mix(self.0, value);
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}

impl State {
    /// States with the same hash are taken for the same: with some ten million of them the chance of an error is 10^-5.
    pub(crate) fn hash(&self) -> u64 {
        let mut h = Mixer(self.shared.hash);
        for socket in &self.kernel.sockets {
            (socket.port, socket.address, socket.open, socket.users, socket.locked).hash(&mut h);
            (socket.reuse_address, socket.reuse_port, socket.bound_by_number, socket.listens).hash(&mut h);
            (socket.accepted, socket.connected, socket.watched, socket.orphan).hash(&mut h);
        }
        self.reservations.hash(&mut h);
        self.associated.hash(&mut h);
        self.settled.hash(&mut h);
        for task in &self.tasks {
            (task.call, task.step, task.waiting, task.result, task.port).hash(&mut h);
            (task.forbidden, task.mine, task.excuses, task.refused).hash(&mut h);
            task.refusals.hash(&mut h);
            (task.noted, &task.waits_for).hash(&mut h);
            task.results.hash(&mut h);
            if let Some(cpu) = &task.cpu {
                h.write_u64(cpu.hash());
            }
        }
        h.finish()
    }
}
