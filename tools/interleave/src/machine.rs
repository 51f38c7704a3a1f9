//! One virtual CPU: registers, stack, and the instructions of the BPF virtual machine, one after the other.
//!
//! A CPU runs until its next *point*: an access to memory that another CPU uses as well. Between points nobody
//! can see what it does, so nothing is lost by letting it run.

use crate::{
    address,
    arithmetic::{alu, jumps, sign_extend, width},
    cpu::{Context, Cpu, Late, PACKET, Return},
    fault::{Outcome, fault},
    memory::{Access, Names, Watch},
    program::{Instruction, Program},
    state::State,
};

/// Why a CPU is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Before an access that others may see.
    Point,
    /// The program has returned.
    Done(u64),
}

/// Data that all CPUs share and no schedule changes, and facts about all schedules.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) program: Program,
    pub(crate) names: Names,
    pub(crate) watch: Watch,
    /// False: run to the end without stopping, as for what happens before and after the scenario.
    pub(crate) watching: bool,
    /// Which CPU runs.
    pub(crate) cpu: usize,
    /// The CPU is at a point, which it now passes.
    pub(crate) passing: bool,
    /// The store that the CPU is at is seen late.
    pub(crate) delaying: bool,
    /// Accesses and kernel steps since the CPU was resumed.
    pub(crate) events: u32,
    /// In a replay: stop after so many.
    pub(crate) limit: Option<u32>,
    /// In a replay: what happened, line by line.
    pub(crate) trace: Option<Vec<String>>,
    pub(crate) kernel_memory: Vec<u8>,
    /// Where in it the `struct socket` is that all sockets share.
    pub(crate) kernel_socket: u64,
    /// Requests that were not granted keep no process from a port: the object is newer than commit 9edba43.
    pub(crate) requests_lose: bool,
    pub(crate) instructions: u64,
}

/// The result of an atomic operation other than an exchange.
fn combined(operation: i64, old: u64, operand: u64) -> Outcome<u64> {
    Ok(match operation {
        0x00 => old.wrapping_add(operand),
        0x40 => old | operand,
        0x50 => old & operand,
        0xa0 => old ^ operand,
        other => return fault(format!("unknown atomic operation {other:#x}")),
    })
}

impl Machine {
    /// Announces an access. True: stop before it.
    pub(crate) fn stops_at(&mut self, cells: &[(u32, usize, Access)]) -> bool {
        if !self.watching {
            return false;
        }
        if self.passing {
            self.passing = false;
        } else {
            let stop = match self.limit {
                Some(limit) => self.events >= limit,
                None => cells.iter().any(|(object, cell, _)| self.watch.contended(*object, *cell)),
            };
            if stop {
                return true;
            }
        }
        self.events += 1;
        for (object, cell, access) in cells {
            self.watch.note(*object, *cell, *access, self.cpu);
        }
        false
    }

    /// Runs until the next point or the end of the program.
    pub(crate) fn run(&mut self, state: &mut State, cpu: &mut Cpu) -> Outcome<Stop> {
        loop {
            self.instructions += 1;
            let Some(i) = self.program.code.get(cpu.at).copied() else {
                return fault("the program runs off its end");
            };
            let here = cpu.at;
            cpu.at += 1;
            match i.code & 7 {
                0 => {
                    if i.code != 0x18 {
                        return self.unknown(i, here);
                    }
                    let value = i.immediate as u64;
                    cpu.registers[i.to as usize] = if i.from == 4 && value < address::STACK {
                        // A function of the same section: the immediate is relative.
                        return self.unknown(i, here);
                    } else {
                        value
                    };
                    cpu.at += 1;
                }
                1 => {
                    let size = width(i.code);
                    let at = cpu.registers[i.from as usize].wrapping_add_signed(i64::from(i.offset));
                    let Some(value) = self.load(state, cpu, at, size)? else {
                        cpu.at = here;
                        return Ok(Stop::Point);
                    };
                    let value = match i.code >> 5 {
                        3 => value,
                        4 => sign_extend(value, size),
                        _ => return self.unknown(i, here),
                    };
                    cpu.registers[i.to as usize] = value;
                }
                2 | 3 => {
                    let size = width(i.code);
                    let at = cpu.registers[i.to as usize].wrapping_add_signed(i64::from(i.offset));
                    let value = if i.code & 7 == 2 { i.immediate as u64 } else { cpu.registers[i.from as usize] };
                    let done = match i.code >> 5 {
                        3 => self.store(state, cpu, at, size, value)?,
                        6 if i.code & 7 == 3 => self.atomic(state, cpu, i, at, size)?,
                        _ => return self.unknown(i, here),
                    };
                    if !done {
                        cpu.at = here;
                        return Ok(Stop::Point);
                    }
                }
                4 | 7 => {
                    if !alu(cpu, i) {
                        return self.unknown(i, here);
                    }
                }
                _ => match i.code {
                    0x85 => match i.from {
                        0 => {
                            if !self.helper(state, cpu, i.immediate as u32)? {
                                cpu.at = here;
                                return Ok(Stop::Point);
                            }
                        }
                        1 => {
                            let target = (cpu.at as i64 + i.immediate) as usize;
                            cpu.enter(Return::Call { to: cpu.at }, target)?;
                        }
                        _ => return self.unknown(i, here),
                    },
                    0x95 => {
                        if cpu.is_outermost() && !self.catch_up(state, cpu)? {
                            cpu.at = here;
                            return Ok(Stop::Point);
                        }
                        if cpu.leave() {
                            return Ok(Stop::Done(cpu.registers[0]));
                        }
                    }
                    0x05 => cpu.at = cpu.at.wrapping_add_signed(isize::from(i.offset)),
                    0x06 => cpu.at = cpu.at.wrapping_add_signed(i.immediate as isize),
                    _ => match jumps(cpu, i) {
                        Some(true) => cpu.at = cpu.at.wrapping_add_signed(isize::from(i.offset)),
                        Some(false) => {}
                        None => return self.unknown(i, here),
                    },
                },
            }
        }
    }

    fn unknown<T>(&self, i: Instruction, at: usize) -> Outcome<T> {
        fault(format!("unknown instruction {:#04x} at {at} in {}", i.code, self.program.function_at(at)))
    }

    /// `None`: a point comes first.
    pub(crate) fn load(&mut self, state: &mut State, cpu: &mut Cpu, at: u64, size: usize) -> Outcome<Option<u64>> {
        if let Some(object) = address::object(at) {
            let offset = address::offset(at);
            if cpu.is_late(object, offset / 8) && !self.catch_up(state, cpu)? {
                return Ok(None);
            }
            if self.stops_at(&[(object, offset / 8, Access::Load)]) {
                return Ok(None);
            }
            let Some(value) = state.shared.load(object, offset, size) else { return self.outside(at, cpu) };
            self.describe(cpu, || format!("reads {value:#x} from"), object, offset);
            return Ok(Some(value));
        }
        if address::region(at) == address::SOCKET {
            let socket = address::offset(at) >> 16;
            let field = address::offset(at) & 0xffff;
            let object = self.names.number(crate::memory::SOCKETS, &[socket as u8]);
            if field == 44 && self.stops_at(&[(object, 0, Access::Load)]) {
                return Ok(None);
            }
            let value = state.kernel.sockets[socket].field(field)?;
            if field == 44 {
                self.describe(cpu, || format!("reads port {value} of"), object, 0);
            }
            return Ok(Some(value));
        }
        if cpu.kind == Context::Packet && address::region(at) == address::CONTEXT && size == 4 {
            // A packet's beginning and end are 32 bits wide in the context, and pointers once they are loaded.
            match address::offset(at) {
                76 => return Ok(Some(address::BUFFER | PACKET as u64)),
                80 => return Ok(Some(address::BUFFER | cpu.buffer.len() as u64)),
                _ => {}
            }
        }
        let mut bytes = [0; 8];
        let Some(from) = self.private(cpu, at, size) else { return self.outside(at, cpu) };
        bytes[..size].copy_from_slice(from);
        Ok(Some(u64::from_le_bytes(bytes)))
    }

    /// False: a point comes first.
    fn store(&mut self, state: &mut State, cpu: &mut Cpu, at: u64, size: usize, value: u64) -> Outcome<bool> {
        if let Some(object) = address::object(at) {
            let offset = address::offset(at);
            if cpu.is_late(object, offset / 8) && !self.catch_up(state, cpu)? {
                return Ok(false);
            }
            if self.stops_at(&[(object, offset / 8, Access::Store)]) {
                return Ok(false);
            }
            if std::mem::take(&mut self.delaying) {
                self.describe(cpu, || format!("writes {value:#x}, late, to"), object, offset);
                cpu.late.push(Late { object, offset, size, operation: None, value });
                return Ok(true);
            }
            if !state.shared.present(object) {
                return self.removed(object, offset);
            }
            if !state.shared.store(object, offset, size, value) {
                return self.outside(at, cpu);
            }
            self.describe(cpu, || format!("writes {value:#x} to"), object, offset);
            return Ok(true);
        }
        self.write_private(cpu, at, &value.to_le_bytes()[..size])?;
        Ok(true)
    }

    pub(crate) fn removed<T>(&self, object: u32, offset: usize) -> Outcome<T> {
        fault(format!("writes to {}, which has been removed from its map", self.name(object, offset)))
    }

    fn atomic(&mut self, state: &mut State, cpu: &mut Cpu, i: Instruction, at: u64, size: usize) -> Outcome<bool> {
        let operand = cpu.registers[i.from as usize];
        let fetches = i.immediate & 1 != 0;
        let access = match i.immediate {
            0x00 => Access::Add,
            0x40 => Access::Or,
            0x50 => Access::And,
            _ => Access::Store,
        };
        let place = address::object(at).map(|object| (object, address::offset(at)));
        // With a result it is a full barrier. (On the stack it is only a barrier.)
        let catches_up = fetches || place.is_some_and(|(object, offset)| cpu.is_late(object, offset / 8));
        if catches_up && !self.catch_up(state, cpu)? {
            return Ok(false);
        }
        if let Some((object, offset)) = place {
            if self.stops_at(&[(object, offset / 8, access)]) {
                return Ok(false);
            }
            if !state.shared.present(object) {
                return self.removed(object, offset);
            }
            if std::mem::take(&mut self.delaying) {
                self.describe(cpu, || "changes, late,".to_owned(), object, offset);
                cpu.late.push(Late { object, offset, size, operation: Some(i.immediate), value: operand });
                return Ok(true);
            }
        }
        let old = match place {
            Some((object, offset)) => state.shared.load(object, offset, size),
            None => self.private(cpu, at, size).map(|bytes| {
                let mut word = [0; 8];
                word[..size].copy_from_slice(bytes);
                u64::from_le_bytes(word)
            }),
        };
        let Some(old) = old else { return self.outside(at, cpu) };
        let expected = if size == 4 { cpu.registers[0] & 0xffff_ffff } else { cpu.registers[0] };
        let new = match i.immediate & !1 {
            0xe0 => operand,
            0xf0 if old == expected => operand,
            0xf0 => old,
            other => combined(other, old, operand)?,
        };
        let new = if size == 4 { new & 0xffff_ffff } else { new };
        match place {
            Some((object, offset)) => {
                state.shared.store(object, offset, size, new);
            }
            None => self.write_private(cpu, at, &new.to_le_bytes()[..size])?,
        }
        if i.immediate == 0xf1 {
            cpu.registers[0] = old;
        } else if fetches {
            cpu.registers[i.from as usize] = old;
        }
        if let Some((object, offset)) = place {
            self.describe(cpu, || format!("changes {old:#x} atomically to {new:#x} in"), object, offset);
        }
        Ok(true)
    }

    /// Stores that were late are seen by all. False: a point comes first.
    pub(crate) fn catch_up(&mut self, state: &mut State, cpu: &mut Cpu) -> Outcome<bool> {
        if cpu.late.is_empty() {
            return Ok(true);
        }
        let cells: Vec<_> = cpu.late.iter().map(|late| (late.object, late.offset / 8, Access::Store)).collect();
        if self.stops_at(&cells) {
            return Ok(false);
        }
        for Late { object, offset, size, operation, value } in std::mem::take(&mut cpu.late) {
            if !state.shared.present(object) {
                return self.removed(object, offset);
            }
            let Some(old) = state.shared.load(object, offset, size) else {
                return fault("a late store outside all memory");
            };
            let new = operation.map_or(Ok(value), |operation| combined(operation, old, value))?;
            state.shared.store(object, offset, size, new);
            self.describe(cpu, || format!("now seen: {old:#x} has become {new:#x} in"), object, offset);
        }
        Ok(true)
    }

    /// Whether a CPU is at a store that may be seen late, past its later loads: a plain one, or an atomic operation
    /// without a result.
    pub(crate) fn may_delay(&self, state: &State, cpu: usize) -> bool {
        let task = &state.tasks[cpu];
        let Some(cpu) = task.cpu.as_ref().filter(|_| task.waiting) else { return false };
        let Some(i) = self.program.code.get(cpu.at) else { return false };
        let store =
            matches!((i.code & 7, i.code >> 5), (2 | 3, 3)) || (i.code & 7, i.code >> 5, i.immediate & 1) == (3, 6, 0);
        let at = cpu.registers[i.to as usize].wrapping_add_signed(i64::from(i.offset));
        store && address::object(at).is_some_and(|object| !cpu.is_late(object, address::offset(at) / 8))
    }

    /// Memory that only this CPU uses, for reading.
    pub(crate) fn private<'a>(&'a self, cpu: &'a Cpu, at: u64, size: usize) -> Option<&'a [u8]> {
        let offset = address::offset(at);
        let bytes: &[u8] = match address::region(at) {
            address::STACK => &cpu.stack,
            address::CONTEXT => &cpu.context,
            address::BUFFER => &cpu.buffer,
            address::READ_ONLY => &self.program.read_only,
            address::KERNEL => &self.kernel_memory,
            _ => return None,
        };
        bytes.get(offset..offset + size)
    }

    pub(crate) fn write_private(&self, cpu: &mut Cpu, at: u64, from: &[u8]) -> Outcome<()> {
        let offset = address::offset(at);
        let bytes = match address::region(at) {
            address::STACK => &mut cpu.stack,
            address::CONTEXT => &mut cpu.context,
            address::BUFFER => &mut cpu.buffer,
            _ => return self.outside(at, cpu),
        };
        match bytes.get_mut(offset..offset + from.len()) {
            Some(to) => to.copy_from_slice(from),
            None => return self.outside(at, cpu),
        }
        Ok(())
    }

    pub(crate) fn outside<T>(&self, at: u64, cpu: &Cpu) -> Outcome<T> {
        let (function, line) = self.place(cpu.at.saturating_sub(1));
        fault(format!("an access outside all memory, at {at:#x}, in {function} ({line})"))
    }

    /// Function and source line of an instruction.
    pub(crate) fn place(&self, at: usize) -> (String, String) {
        let line = self.program.line_at(at).map_or(String::new(), |l| format!("{}:{}  {}", l.file, l.number, l.text));
        (self.program.function_at(at).to_owned(), line)
    }

    /// The readable name of a place in shared memory.
    pub(crate) fn name(&self, object: u32, offset: usize) -> String {
        let (map, key) = &self.names.list[object as usize];
        match *map {
            crate::memory::SOCKETS => format!("the kernel's socket {}", key[0]),
            crate::memory::PORTS => format!("the kernel's port {}", u16::from_le_bytes([key[0], key[1]])),
            map => {
                let map = &self.program.maps[map as usize];
                let field = self.program.btf.describe(map.value, offset as u32);
                let key: Vec<String> = match key.len() {
                    16 if map.name == "admitted" => {
                        let token = u64::from_le_bytes(key[..8].try_into().expect("eight bytes"));
                        vec![format!("{token:x}:{}:{}", key[8], key[12])]
                    }
                    16 => {
                        let netns = u64::from_le_bytes(key[..8].try_into().expect("eight bytes"));
                        let word = u16::from_le_bytes([key[8], key[9]]);
                        let transport = if key[10] == 1 { "tcp" } else { "udp" };
                        vec![format!("{netns}:{transport}:{}", u32::from(word) * 64)]
                    }
                    4 => vec![u32::from_le_bytes(key[..4].try_into().expect("four bytes")).to_string()],
                    _ => key.iter().map(u8::to_string).collect(),
                };
                format!("{}[{}].{field}", map.name, key.join(","))
            }
        }
    }

    pub(crate) fn describe(&mut self, cpu: &Cpu, what: impl FnOnce() -> String, object: u32, offset: usize) {
        if self.trace.is_none() {
            return;
        }
        let (function, line) = self.place(cpu.at - 1);
        let name = self.name(object, offset);
        let text = format!("    {:<62} {function}, {line}", format!("{} {name}", what()));
        self.trace.as_mut().expect("looked at above").push(text);
    }
}
