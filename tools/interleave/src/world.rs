//! The state before a scenario: the maps as `portkeep up` leaves them, and the kernel structures that programs read.
//! All by the names of fields; fields that an object does not have are left out.

use crate::{
    btf::Field,
    fault::{Outcome, fault},
    kernel::{Process, Socket, Transport},
    machine::Machine,
    memory::{PORTS, SOCKETS},
    state::State,
};

/// Cookie of the first network namespace.
pub(crate) const HOME: u64 = 1;
pub(crate) const POOL_FIRST: u16 = 61000;
pub(crate) const POOL_LAST: u16 = 65535;
pub(crate) const SECRET: [u64; 2] = [0x5ec2_e700, 0x5ec2_e701];

impl Machine {
    pub(crate) fn socket_object(&mut self, socket: usize) -> u32 {
        self.names.number(SOCKETS, &[socket as u8])
    }

    pub(crate) fn port_cell(&mut self, port: u16) -> u32 {
        self.names.number(PORTS, &port.to_le_bytes())
    }

    pub(crate) fn field(&self, map: &str, path: &str) -> Option<Field> {
        let map = self.program.map(map).ok()?;
        self.program.btf.field_of(self.program.maps[map].value, path)
    }

    /// Writes a field of an element, if the object has the map and the field. Arrays grow as needed.
    pub(crate) fn set(&mut self, state: &mut State, map: &str, key: &[u8], path: &str, value: u64) {
        let Some(field) = self.field(map, path) else { return };
        let index = self.program.map(map).expect("it has a field");
        let object = self.names.number(index as u16, key);
        if !state.shared.present(object) {
            let counted = self.program.maps[index].kind != crate::program::MapKind::Array;
            state.shared.create(object, self.program.maps[index].value_size, counted);
        }
        state.shared.store(object, field.at as usize, field.size as usize, value);
    }

    /// Reads a field of an element, 0 if there is none.
    pub(crate) fn get(&mut self, state: &State, map: &str, key: &[u8], path: &str) -> u64 {
        let Some(field) = self.field(map, path) else { return 0 };
        let index = self.program.map(map).expect("it has a field");
        let object = self.names.number(index as u16, key);
        state.shared.load(object, field.at as usize, field.size as usize).unwrap_or(0)
    }

    /// The settings that `up` writes.
    pub(crate) fn configure(&mut self, state: &mut State) {
        let zero = 0u32.to_le_bytes();
        for (path, value) in [
            ("abi", 2),
            ("since", 1),
            ("build", 1),
            ("enforce", 1),
            ("serve", 1),
            ("deny_errno", 98),
            ("quota", 1024),
            ("pool_first", u64::from(POOL_FIRST)),
            ("pool_last", u64::from(POOL_LAST)),
            ("share", 100_000),
            ("home", HOME),
            ("quota_elsewhere", 4096),
        ] {
            self.set(state, "config", &zero, path, value);
        }
        let config = self.program.map("config").map(|n| n as u16).ok();
        if let (Some(config), Some(field)) = (config, self.field("config", "round_keys")) {
            let object = self.names.number(config, &zero);
            for n in 0..field.size as usize / 4 {
                state.shared.store(object, field.at as usize + 4 * n, 4, 0x9e37_79b9 * (n as u64 + 1));
            }
        }
        if let (Some(config), Some(field)) = (config, self.field("config", "secret")) {
            let object = self.names.number(config, &zero);
            for (n, half) in SECRET.iter().enumerate() {
                state.shared.store(object, field.at as usize + 8 * n, 8, *half);
            }
        }
    }

    /// The kernel's structures about one process: `task_struct` and the structures that it refers to. They are laid out
    /// as the object's own BTF has them, so the program needs no relocation to find its fields.
    pub(crate) fn build_process(&mut self, process: &mut Process, netns: u64) {
        let task = self.structure("task_struct");
        let cred = self.structure("cred");
        let proxy = self.structure("nsproxy");
        let net = self.structure("net");
        let user_ns = self.structure("user_namespace");
        let set = self.structure("css_set");
        let group = self.structure("cgroup");
        let nothing = self.structure("group_info");
        process.task = task;
        let root = process.uid == 0;
        for (structure, at, path, value) in [
            ("task_struct", task, "group_leader", pointer(task)),
            ("task_struct", task, "start_time", 1),
            ("task_struct", task, "cred", pointer(cred)),
            ("task_struct", task, "real_cred", pointer(cred)),
            ("task_struct", task, "nsproxy", pointer(proxy)),
            ("task_struct", task, "cgroups", pointer(set)),
            ("task_struct", task, "flags", 0),
            ("nsproxy", proxy, "net_ns", pointer(net)),
            ("net", net, "net_cookie", netns),
            ("cred", cred, "uid.val", u64::from(process.uid)),
            ("cred", cred, "euid.val", u64::from(process.uid)),
            ("cred", cred, "egid.val", u64::from(process.gid)),
            ("cred", cred, "group_info", pointer(nothing)),
            ("cred", cred, "user_ns", pointer(user_ns)),
            ("cred", cred, "cap_effective", if root { u64::MAX } else { 0 }),
            ("cred", cred, "cap_effective.val", if root { u64::MAX } else { 0 }),
            ("cred", cred, "cap_effective.cap", if root { u64::MAX } else { 0 }),
            ("user_namespace", user_ns, "level", 0),
            ("css_set", set, "dfl_cgrp", pointer(group)),
            ("cgroup", group, "level", 1),
        ] {
            let Some(field) = self.program.btf.field(structure, path) else { continue };
            let at = at as usize + field.at as usize;
            let size = (field.size as usize).min(8);
            self.kernel_memory[at..at + size].copy_from_slice(&u64::to_le_bytes(value)[..size]);
        }
    }

    /// The target of all sockets: a `struct socket` with a file, as those of programs have.
    pub(crate) fn build_socket(&mut self) {
        let socket = self.structure("socket");
        if let Some(field) = self.program.btf.field("socket", "file") {
            let at = (socket as usize) + field.at as usize;
            self.kernel_memory[at] = 1;
        }
        self.kernel_socket = socket;
    }

    /// Room for one structure of the kernel's.
    fn structure(&mut self, name: &str) -> u64 {
        let size = self.program.btf.structure(name).map_or(8, |id| self.program.btf.size(id)).max(8);
        let at = self.kernel_memory.len();
        self.kernel_memory.resize(at + size.next_multiple_of(8) as usize, 0);
        at as u64
    }

    pub(crate) fn token_of_latest(&mut self, state: &State, socket: usize) -> (u64, u32) {
        let token = self.get(state, "owners", &[socket as u8], "last");
        (token, self.get(state, "owners", &[socket as u8], "last_id") as u32)
    }
}

const fn pointer(at: u64) -> u64 {
    crate::address::KERNEL | at
}

pub(crate) fn new_socket(name: &str, process: usize, transport: Transport, netns: u64) -> Socket {
    Socket {
        name: name.to_owned(),
        process,
        transport,
        netns,
        open: true,
        locked: None,
        users: 0,
        port: 0,
        address: 0,
        reuse_address: false,
        reuse_port: false,
        bound_by_number: false,
        listens: false,
        mptcp: false,
        accepted: false,
        connected: false,
        watched: false,
        orphan: false,
    }
}

impl Machine {
    /// TCP ports in use by sockets whose close no program sees, with their namespaces: for the agent to look at.
    pub(crate) fn ports_aside(&mut self, state: &State) -> Vec<(u64, u16)> {
        let words = self.program.map("words").map_or(u16::MAX, |n| n as u16);
        let keys: Vec<_> = self
            .names
            .list
            .iter()
            .filter(|(map, key)| *map == words && key[10] == 1)
            .map(|(_, key)| key.clone())
            .collect();
        let mut ports = Vec::new();
        for key in keys {
            let netns = u64::from_le_bytes(key[..8].try_into().expect("eight bytes"));
            let first = u16::from_le_bytes([key[8], key[9]]) * 64;
            let aside = self.get(state, "words", &key, "aside");
            ports.extend((0..64).filter(|bit| aside & 1 << bit != 0).map(|bit| (netns, first + bit)));
        }
        ports
    }

    /// Everything that must be zero once all sockets are closed and all reservations have ended.
    pub(crate) fn leftovers(&mut self, state: &State) -> Outcome<()> {
        let names = self.names.list.clone();
        for (number, (map, key)) in names.iter().enumerate() {
            let Some(map) = self.program.maps.get(*map as usize) else { continue };
            let fields: &[&str] = match map.name.as_str() {
                "words" => &["reserved", "heads", "lingering", "bound", "uses", "drawn", "lead", "aside"],
                "quotas" => &["used", "refused", "pending"],
                "counters" => &["ports", "reservations", "agents", "ranges"],
                "filter" | "entries" => &["words", "taken"],
                "reservations" => &["gate", "token"],
                _ => &[],
            };
            let (value, map) = (map.value, map.clone());
            if key.len() > 4 && !state.shared.present(number as u32) {
                continue;
            }
            if map.name == "ranges" || map.name == "admitted" {
                return fault(format!("{} is there after everything has ended", self.name(number as u32, 0)));
            }
            for path in fields {
                let Some(field) = self.program.btf.field_of(value, path) else { continue };
                for at in (field.at..field.at + field.size).step_by(4) {
                    let size = field.size.min(4) as usize;
                    let left = state.shared.load(number as u32, at as usize, size).unwrap_or(0);
                    // The highest bit of a filter says that uses were counted there, and stays.
                    let left = if map.name == "filter" { left & 0x7fff_ffff } else { left };
                    if left != 0 {
                        let name = self.name(number as u32, at as usize);
                        return fault(format!("{name} is {left:#x} after everything has ended"));
                    }
                }
            }
        }
        Ok(())
    }
}
