//! Processes and their descriptors.
//!
//! A descriptor is a reference to a socket. It is copied by `dup`, `fork` and
//! descriptor passing; a socket, and with it the runtime reservations it owns,
//! ends when the last one is gone (R6).

use std::collections::{BTreeMap, BTreeSet};

use super::{Descriptor, Model, Pid, SocketId};
use portkeep_core::Errno;

/// A process.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// Its real uid.
    pub uid: u32,
    /// Its gid. Supplementary groups count like it and are left out here.
    pub gid: u32,
    /// Ids of the cgroups it is in, from the root down to its own.
    pub cgroups: Vec<u64>,
    /// Whether it may bind privileged ports (CAP_NET_BIND_SERVICE).
    pub privileged: bool,
    /// Its descriptors.
    pub descriptors: BTreeMap<Descriptor, SocketId>,
}

impl Process {
    pub(super) fn own_cgroup(&self) -> u64 {
        self.cgroups.last().copied().unwrap_or(0)
    }

    fn add(&mut self, socket: SocketId) -> Descriptor {
        let free = (0..).find(|number| !self.descriptors.contains_key(number)).expect("fewer than 2^32 descriptors");
        self.descriptors.insert(free, socket);
        free
    }
}

/// Processes named here must exist. If a history names another one, that is a mistake in the history, and the model
/// panics.
impl Model {
    /// A process appears, without descriptors; its gid is its uid. `cgroups` are ids from the root down to its own.
    pub fn spawn(&mut self, pid: Pid, uid: u32, cgroups: Vec<u64>, privileged: bool) {
        let process = Process { uid, gid: uid, cgroups, privileged, descriptors: BTreeMap::new() };
        let before = self.processes.insert(pid, process);
        assert!(before.is_none(), "process {pid} appears twice");
    }

    /// `fork`: a copy of the process, with all its descriptors.
    pub fn fork(&mut self, parent: Pid, child: Pid) {
        let copy = self.process(parent).clone();
        let before = self.processes.insert(child, copy);
        assert!(before.is_none(), "process {child} appears twice");
    }

    /// The process ends, by itself or killed, and all its descriptors close.
    pub fn exit(&mut self, pid: Pid) {
        let process = self.processes.remove(&pid).unwrap_or_else(|| panic!("no process {pid}"));
        let sockets: BTreeSet<_> = process.descriptors.into_values().collect();
        for socket in sockets {
            self.drop_reference(socket);
        }
    }

    /// The process changes its real uid. Its reservations stay charged to the old one.
    pub fn set_uid(&mut self, pid: Pid, uid: u32) {
        self.process_mut(pid).uid = uid;
    }

    /// `dup`: a second descriptor of the same socket.
    pub fn duplicate(&mut self, pid: Pid, descriptor: Descriptor) -> Result<Descriptor, Errno> {
        self.pass(pid, descriptor, pid)
    }

    /// Descriptor passing: the other process gets a descriptor of the same socket.
    pub fn pass(&mut self, from: Pid, descriptor: Descriptor, to: Pid) -> Result<Descriptor, Errno> {
        let socket = self.look_up(from, descriptor)?;
        Ok(self.process_mut(to).add(socket))
    }

    /// `close`.
    pub fn close(&mut self, pid: Pid, descriptor: Descriptor) -> Result<(), Errno> {
        let socket = self.process_mut(pid).descriptors.remove(&descriptor).ok_or(Errno::EBADF)?;
        self.drop_reference(socket);
        Ok(())
    }

    pub(super) fn add_descriptor(&mut self, pid: Pid, socket: SocketId) -> Descriptor {
        self.process_mut(pid).add(socket)
    }

    pub(super) fn look_up(&self, pid: Pid, descriptor: Descriptor) -> Result<SocketId, Errno> {
        self.process(pid).descriptors.get(&descriptor).copied().ok_or(Errno::EBADF)
    }

    pub(super) fn process(&self, pid: Pid) -> &Process {
        self.processes.get(&pid).unwrap_or_else(|| panic!("no process {pid}"))
    }

    fn process_mut(&mut self, pid: Pid) -> &mut Process {
        self.processes.get_mut(&pid).unwrap_or_else(|| panic!("no process {pid}"))
    }

    fn drop_reference(&mut self, socket: SocketId) {
        let held = self.processes.values().any(|process| process.descriptors.values().any(|held| *held == socket));
        if !held {
            self.destroy(socket);
        }
    }
}
