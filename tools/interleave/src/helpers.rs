//! The kernel's helpers, by their numbers. To add one: a line in [`Machine::call`], and what it does below.

use crate::{
    address,
    cpu::Cpu,
    fault::{Outcome, fault},
    kernel::EINVAL,
    machine::Machine,
    memory::{Access, SOCKETS},
    program::{INET_SOCK, MapKind},
    state::State,
};

const EFAULT: i32 = 14;
const EEXIST: i32 = 17;
const ENOENT: i32 = 2;
const NOEXIST: u64 = 1;
const EXIST: u64 = 2;

type Cells = Vec<(u32, usize, Access)>;

const fn error(errno: i32) -> u64 {
    -(errno as i64) as u64
}

impl Machine {
    /// False: a point comes first.
    pub(crate) fn helper(&mut self, state: &mut State, cpu: &mut Cpu, number: u32) -> Outcome<bool> {
        let a: [u64; 5] = cpu.registers[1..6].try_into().expect("five registers");
        if number == 181 {
            let (rounds, callback) = (a[0] as u32, a[1]);
            if address::region(callback) != address::FUNCTION {
                return fault("bpf_loop without a callback");
            }
            if rounds == 0 {
                cpu.registers[0] = 0;
                return Ok(true);
            }
            return cpu.begin_loop(rounds, address::offset(callback), a[2]).map(|()| true);
        }
        // Helpers that write or take locks are taken for barriers.
        if matches!(number, 2 | 3 | 16 | 49 | 57 | 59 | 64 | 107 | 130) && !self.catch_up(state, cpu)? {
            return Ok(false);
        }
        let Some(result) = self.call(state, cpu, number, a)? else { return Ok(false) };
        cpu.registers[0] = result;
        cpu.registers[1..6].fill(0);
        Ok(true)
    }

    /// The result; `None`: a point comes first.
    fn call(&mut self, state: &mut State, cpu: &mut Cpu, number: u32, a: [u64; 5]) -> Outcome<Option<u64>> {
        let process = &state.kernel.processes[cpu.process];
        Ok(Some(match number {
            1 => return self.look_up(state, cpu, a[0], a[1]),
            2 => return self.update(state, cpu, a),
            3 => return self.delete(state, cpu, a[0], a[1]),
            // The time does not change during a system call: nothing depends on how it passes.
            5 | 125 | 160 => cpu.now,
            14 => u64::from(process.pid) << 32 | u64::from(process.pid),
            15 => u64::from(process.gid) << 32 | u64::from(process.uid),
            16 => return self.write(state, cpu, a[0], &padded("program", a[1] as usize)),
            35 => address::KERNEL | process.task,
            49 => return self.set_option(state, cpu, a),
            57 => return self.get_option(state, cpu, a),
            // The socket's lock is held, so no other CPU can see at which moment this happens.
            59 => {
                state.kernel.sockets[cpu.socket].watched = a[1] & 4 != 0;
                0
            }
            64 => return self.bind_from_program(state, cpu, a[1]),
            80 => process.cgroups.last().copied().unwrap_or(0),
            107 => return self.storage(state, cpu, a),
            // BPF_PROG_TYPE_CGROUP_SOCKOPT and others: reading kernel memory, which is fixed here.
            113 => return self.probe(state, cpu, a),
            115 => return self.probe_string(state, cpu, a),
            122 => state.kernel.sockets[cpu.socket].netns,
            123 => process.cgroups.get(a[0] as usize).copied().unwrap_or(0),
            // Events change nothing that programs look at again.
            130 | 134 => 0,
            186 => cpu.result as i64 as u64,
            187 => {
                cpu.result = a[0] as i32;
                0
            }
            196 if address::region(a[0]) != address::SOCKET => return fault("this is no socket"),
            196 if state.kernel.sockets[cpu.socket].mptcp => address::mptcp(cpu.socket),
            196 => 0,
            unknown => return fault(format!("unknown helper {unknown}")),
        }))
    }

    fn map_of(&self, pointer: u64) -> Outcome<usize> {
        if address::region(pointer) != address::MAP { fault("this is no map") } else { Ok(address::offset(pointer)) }
    }

    /// The cells of a range, if it is shared.
    fn cells(&self, at: u64, size: usize, access: Access, cells: &mut Cells) {
        if let Some(object) = address::object(at) {
            let first = address::offset(at);
            let last = first + size.max(1) - 1;
            cells.extend((first / 8..=last / 8).map(|cell| (object, cell, access)));
        }
    }

    fn bytes(&self, state: &State, cpu: &Cpu, at: u64, size: usize) -> Outcome<Vec<u8>> {
        if let Some(object) = address::object(at) {
            let offset = address::offset(at);
            let byte = |n: usize| state.shared.load(object, offset + n, 1).map(|b| b as u8);
            return (0..size).map(byte).collect::<Option<Vec<u8>>>().map_or_else(|| self.outside(at, cpu), Ok);
        }
        self.private(cpu, at, size).map_or_else(|| self.outside(at, cpu), |bytes| Ok(bytes.to_vec()))
    }

    fn write(&mut self, state: &mut State, cpu: &mut Cpu, at: u64, from: &[u8]) -> Outcome<Option<u64>> {
        let mut cells = Cells::new();
        self.cells(at, from.len(), Access::Store, &mut cells);
        if !cells.is_empty() && self.stops_at(&cells) {
            return Ok(None);
        }
        self.put(state, cpu, at, from)?;
        Ok(Some(0))
    }

    fn put(&mut self, state: &mut State, cpu: &mut Cpu, at: u64, from: &[u8]) -> Outcome<()> {
        let Some(object) = address::object(at) else { return self.write_private(cpu, at, from) };
        if !state.shared.present(object) {
            return self.removed(object, address::offset(at));
        }
        for (n, byte) in from.iter().enumerate() {
            if !state.shared.store(object, address::offset(at) + n, 1, u64::from(*byte)) {
                return self.outside(at, cpu);
            }
        }
        Ok(())
    }

    /// The element that a key names, and the cell that records its presence.
    fn element(&mut self, map: usize, key: &[u8]) -> (u32, usize) {
        (self.names.number(map as u16, key), self.program.maps[map].value_size.div_ceil(8) as usize)
    }

    fn look_up(&mut self, state: &mut State, cpu: &mut Cpu, map: u64, key: u64) -> Outcome<Option<u64>> {
        let map = self.map_of(map)?;
        let size = self.program.maps[map].key_size as usize;
        let bytes = self.bytes(state, cpu, key, size)?;
        let mut cells = Cells::new();
        self.cells(key, size, Access::Load, &mut cells);
        let (object, presence) = self.element(map, &bytes);
        match self.program.maps[map].kind {
            MapKind::Array => {
                if !cells.is_empty() && self.stops_at(&cells) {
                    return Ok(None);
                }
                let index = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
                if index >= self.program.maps[map].max_entries {
                    return Ok(Some(0));
                }
                if !state.shared.present(object) {
                    state.shared.create(object, self.program.maps[map].value_size, false);
                }
                Ok(Some(address::shared(object)))
            }
            MapKind::Hash | MapKind::LruHash => {
                cells.push((object, presence, Access::Load));
                if self.stops_at(&cells) {
                    return Ok(None);
                }
                let present = state.shared.present(object);
                self.describe(cpu, || format!("looks up, {}:", if present { "found" } else { "not there" }), object, 0);
                Ok(Some(if present { address::shared(object) } else { 0 }))
            }
            // In the model, no account has many uids.
            MapKind::PrefixTree => Ok(Some(0)),
            MapKind::SocketStorage | MapKind::Ring => fault("a look-up in a map that has none"),
        }
    }

    fn update(&mut self, state: &mut State, cpu: &mut Cpu, a: [u64; 5]) -> Outcome<Option<u64>> {
        let map = self.map_of(a[0])?;
        let (key_size, value_size) = (self.program.maps[map].key_size as usize, self.program.maps[map].value_size);
        let key = self.bytes(state, cpu, a[1], key_size)?;
        let mut cells = Cells::new();
        self.cells(a[1], key_size, Access::Load, &mut cells);
        self.cells(a[2], value_size as usize, Access::Load, &mut cells);
        let (object, presence) = self.element(map, &key);
        match self.program.maps[map].kind {
            MapKind::Hash | MapKind::LruHash => {}
            MapKind::Array | MapKind::PrefixTree | MapKind::SocketStorage | MapKind::Ring => {
                return fault("an update of a map that programs do not update");
            }
        }
        let reused: Vec<u32> = self.names.of(map as u16).filter(|other| state.shared.removed(*other)).collect();
        for element in reused.iter().chain([&object]) {
            cells.extend((0..=presence).map(|cell| (*element, cell, Access::Store)));
        }
        if self.stops_at(&cells) {
            return Ok(None);
        }
        let present = state.shared.present(object);
        if present && a[3] == NOEXIST {
            return Ok(Some(error(EEXIST)));
        }
        if !present && a[3] == EXIST {
            return Ok(Some(error(ENOENT)));
        }
        let value = self.bytes(state, cpu, a[2], value_size as usize)?;
        if !present {
            state.shared.create(object, value_size, true);
        }
        self.put(state, cpu, address::shared(object), &value)?;
        // A removed element may be reused at once: a CPU that still points there finds the new one.
        for other in reused.into_iter().filter(|other| *other != object) {
            for (at, byte) in value.iter().enumerate() {
                state.shared.store(other, at, 1, u64::from(*byte));
            }
        }
        self.describe(cpu, || "enters".to_owned(), object, 0);
        Ok(Some(0))
    }

    fn delete(&mut self, state: &mut State, cpu: &mut Cpu, map: u64, key: u64) -> Outcome<Option<u64>> {
        let map = self.map_of(map)?;
        let size = self.program.maps[map].key_size as usize;
        let bytes = self.bytes(state, cpu, key, size)?;
        let mut cells = Cells::new();
        self.cells(key, size, Access::Load, &mut cells);
        let (object, presence) = self.element(map, &bytes);
        cells.push((object, presence, Access::Store));
        if self.stops_at(&cells) {
            return Ok(None);
        }
        if !state.shared.present(object) {
            return Ok(Some(error(ENOENT)));
        }
        state.shared.remove(object);
        self.describe(cpu, || "removes".to_owned(), object, 0);
        Ok(Some(0))
    }

    fn storage(&mut self, state: &mut State, cpu: &mut Cpu, a: [u64; 5]) -> Outcome<Option<u64>> {
        let map = self.map_of(a[0])?;
        if address::region(a[1]) != address::SOCKET {
            return fault("storage of something that is no socket");
        }
        let socket = (address::offset(a[1]) >> 16) as u8;
        let (object, presence) = self.element(map, &[socket]);
        let creates = a[3] & 1 != 0 && !state.shared.present(object);
        let access = if creates { Access::Store } else { Access::Load };
        if self.stops_at(&[(object, presence, access)]) {
            return Ok(None);
        }
        if creates {
            state.shared.create(object, self.program.maps[map].value_size, true);
            if a[2] != 0 {
                let value = self.bytes(state, cpu, a[2], self.program.maps[map].value_size as usize)?;
                self.put(state, cpu, address::shared(object), &value)?;
            }
        }
        Ok(Some(if state.shared.present(object) { address::shared(object) } else { 0 }))
    }

    fn probe(&mut self, state: &mut State, cpu: &mut Cpu, a: [u64; 5]) -> Outcome<Option<u64>> {
        let size = a[1] as usize;
        if address::region(a[2]) == address::SOCKET {
            // A `struct sock` leads to its `struct socket`; a `struct inet_sock` has no multicast list.
            let inet = address::offset(a[2]) & 0xffff >= INET_SOCK as usize;
            let value = if inet { 0 } else { address::KERNEL | self.kernel_socket };
            return self.write(state, cpu, a[0], &value.to_le_bytes()[..size]);
        }
        let found = (address::region(a[2]) == address::KERNEL)
            .then(|| self.private(cpu, a[2], size).map(<[u8]>::to_vec))
            .flatten();
        let failed = found.is_none();
        let bytes = found.unwrap_or_else(|| vec![0; size]);
        Ok(self.write(state, cpu, a[0], &bytes)?.map(|_| if failed { error(EFAULT) } else { 0 }))
    }

    fn probe_string(&mut self, state: &mut State, cpu: &mut Cpu, a: [u64; 5]) -> Outcome<Option<u64>> {
        let size = a[1] as usize;
        let at = address::offset(a[2]);
        let rest = if address::region(a[2]) == address::KERNEL { self.kernel_memory.get(at..) } else { None };
        let Some(rest) = rest else { return Ok(Some(error(EFAULT))) };
        let mut text: Vec<u8> = rest.iter().copied().take_while(|b| *b != 0).take(size.saturating_sub(1)).collect();
        text.push(0);
        let length = text.len() as u64;
        Ok(self.write(state, cpu, a[0], &text)?.map(|_| length))
    }

    fn socket_cell(&mut self, cpu: &Cpu) -> u32 {
        self.names.number(SOCKETS, &[cpu.socket as u8])
    }

    fn set_option(&mut self, state: &mut State, cpu: &mut Cpu, a: [u64; 5]) -> Outcome<Option<u64>> {
        let cell = self.socket_cell(cpu);
        if self.stops_at(&[(cell, 0, Access::Store)]) {
            return Ok(None);
        }
        let value = self.bytes(state, cpu, a[3], 4)?;
        let on = value.iter().any(|b| *b != 0);
        let socket = &mut state.kernel.sockets[cpu.socket];
        Ok(Some(match (a[1], a[2]) {
            (1, 2) => {
                socket.reuse_address = on;
                0
            }
            (1, 15) => {
                socket.reuse_port = on;
                0
            }
            _ => error(EINVAL),
        }))
    }

    fn get_option(&mut self, state: &mut State, cpu: &mut Cpu, a: [u64; 5]) -> Outcome<Option<u64>> {
        let cell = self.socket_cell(cpu);
        if self.stops_at(&[(cell, 0, Access::Load)]) {
            return Ok(None);
        }
        let socket = &state.kernel.sockets[cpu.socket];
        let value = match (a[1], a[2]) {
            (1, 2) => socket.reuse_address,
            (1, 15) => socket.reuse_port,
            other => return fault(format!("bpf_getsockopt of an unknown option {other:?}")),
        };
        self.put(state, cpu, a[3], &i32::from(value).to_le_bytes())?;
        Ok(Some(0))
    }

    /// `bpf_bind`: no bind program and no post_bind program runs, and the socket's lock is held already.
    fn bind_from_program(&mut self, state: &mut State, cpu: &mut Cpu, to: u64) -> Outcome<Option<u64>> {
        let bytes = self.bytes(state, cpu, to, 4)?;
        let port = u16::from_be_bytes([bytes[2], bytes[3]]);
        let cells = [(self.socket_cell(cpu), 0, Access::Store), (self.port_cell(port), 0, Access::Store)];
        if self.stops_at(&cells) {
            return Ok(None);
        }
        Ok(Some(match state.kernel.take_port(cpu.socket, port, 0) {
            Ok(()) => 0,
            Err(errno) => error(errno),
        }))
    }
}

fn padded(text: &str, size: usize) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(size, 0);
    bytes
}
