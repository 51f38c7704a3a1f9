//! System calls, step by step, as the kernel makes them: which locks are held, which program runs when, and what the
//! kernel does between two programs.

use crate::{
    address,
    kernel::EINVAL,
    machine::{Context, Cpu, Machine, Outcome, PACKET, Stop, fault},
    memory::Access,
    program::MapKind,
    scenario::{Call, Line, Scenario},
    state::{Phase, State},
    world::SECRET,
};

const EPERM: i32 = 1;
/// What comes before the CPUs start is an earlier time; both are in one period of everything that expires.
const NOW: u64 = 1_000_000_000_000;
const BEFORE: u64 = NOW - 1_000_000;
const SOL_PORTKEEP: u32 = 0x504b;

/// A CPU ran until it has to let others choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paused {
    /// Inside a system call.
    Inside,
    /// Between two.
    Between,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hook {
    Set,
    Get,
    Bind,
    PostBind,
    Connect,
    Release,
    Admin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Begin,
    Lock,
    Unlock,
    Run(Hook),
    TakePort,
    /// A connect that has no port yet gets one.
    AutoBind,
    GiveUp,
    SetOption,
    /// The agent looks whether a port is vacant.
    Look,
    /// The port of a socket that is gone.
    FreePort,
    /// User space notes when a namespace was last used.
    Note,
    /// It waits until every program has ended that runs now.
    Wait,
    /// It looks whether the namespace has been quiet since, and has no reservations.
    Quiet,
    /// It removes a word.
    Remove,
    Finish,
}

use Step::{
    AutoBind, Begin, Finish, FreePort, GiveUp, Lock, Look, Note, Quiet, Remove, Run, SetOption, TakePort, Unlock, Wait,
};

const fn steps(call: &Call) -> &'static [Step] {
    match call {
        Call::Acquire { .. } | Call::Release { .. } | Call::Associate { .. } | Call::Beacon => {
            &[Begin, Lock, Run(Hook::Set), Finish]
        }
        Call::Granted => &[Begin, Lock, Run(Hook::Get), Finish],
        Call::Bind { .. } => &[Begin, Lock, Run(Hook::Bind), Unlock, Lock, TakePort, Run(Hook::PostBind), Finish],
        Call::Connect => &[Begin, Lock, Run(Hook::Connect), Unlock, Lock, AutoBind, Finish],
        Call::Disconnect => &[Begin, Lock, GiveUp, Finish],
        Call::Listen | Call::ReuseAddress | Call::ReusePort => &[Begin, Lock, SetOption, Finish],
        Call::Close => &[Begin, Run(Hook::Release), FreePort, Finish],
        Call::Confirm { .. } => &[Begin, Look, Run(Hook::Admin), Finish],
        Call::Create { .. } | Call::Refuse { .. } | Call::End { .. } | Call::Change { .. } => {
            &[Begin, Run(Hook::Admin), Finish]
        }
        Call::Forget { .. } => &[Begin, Note, Wait, Quiet, Run(Hook::Admin), Remove, Finish],
    }
}

/// The line a CPU is at, `None` if it has done all.
pub(crate) fn line<'a>(lists: &'a [Vec<Line>], state: &State, cpu: usize) -> Option<&'a Line> {
    lists[cpu].get(state.tasks[cpu].call)
}

/// Whether a CPU can go on: it has something to do, and no lock it needs is another's.
pub(crate) fn enabled(lists: &[Vec<Line>], state: &State, cpu: usize) -> bool {
    let Some(line) = line(lists, state, cpu) else { return false };
    let socket = &state.kernel.sockets[line.socket];
    match steps(&line.call)[state.tasks[cpu].step] {
        Lock => socket.locked.is_none_or(|holder| holder == cpu),
        Begin => line.call != Call::Close || socket.users == 0,
        Wait => state.tasks[cpu].waits_for.iter().all(|(other, call, step)| {
            let task = &state.tasks[*other];
            task.cpu.is_none() || (task.call, task.step) != (*call, *step)
        }),
        _ => true,
    }
}

impl Machine {
    /// Lets a CPU run until others may choose again.
    pub(crate) fn resume(
        &mut self,
        scenario: &Scenario,
        lists: &[Vec<Line>],
        state: &mut State,
        cpu: usize,
    ) -> Outcome<Paused> {
        self.cpu = cpu;
        self.events = 0;
        self.passing = state.tasks[cpu].waiting;
        state.tasks[cpu].waiting = false;
        loop {
            let line = line(lists, state, cpu).expect("only a CPU with something to do is resumed");
            let call = state.tasks[cpu].call;
            let step = steps(&line.call)[state.tasks[cpu].step];
            if matches!(step, Lock | Wait) && !enabled(lists, state, cpu) {
                state.tasks[cpu].waiting = false;
                return Ok(Paused::Inside);
            }
            if !self.step(scenario, state, cpu, line, step)? {
                state.tasks[cpu].waiting = true;
                return Ok(if step == Begin { Paused::Between } else { Paused::Inside });
            }
            if state.tasks[cpu].call != call {
                crate::check::after_call(scenario, state)?;
                return Ok(Paused::Between);
            }
        }
    }

    /// False: a point comes first.
    fn step(&mut self, scenario: &Scenario, state: &mut State, cpu: usize, line: &Line, step: Step) -> Outcome<bool> {
        let socket = line.socket;
        let socket_cell = (self.socket_object(socket), 0, Access::Store);
        let port = state.kernel.sockets[socket].port;
        let cells = match step {
            Begin | Run(_) | Wait => vec![],
            Note | Quiet | Remove => self.forget_cells(scenario, line, step == Remove),
            Lock | Unlock | GiveUp | SetOption => vec![socket_cell],
            Finish if state.kernel.sockets[socket].locked == Some(cpu) => vec![socket_cell],
            Finish => vec![],
            TakePort | AutoBind => vec![socket_cell, (self.port_cell(state.tasks[cpu].port), 0, Access::Store)],
            FreePort => vec![socket_cell, (self.port_cell(port), 0, Access::Store)],
            Look => self.look_cells(state, line),
        };
        let runs = state.tasks[cpu].cpu.is_some();
        if !runs && !(matches!(step, Run(_))) && self.stops_at(&cells) {
            return Ok(false);
        }
        if let Some(trace) = self.trace.as_mut().filter(|_| !runs && step != Begin) {
            trace.push(format!("  CPU {cpu}: {step:?}"));
        }
        match step {
            Begin => {
                if !self.begin(scenario, state, cpu, line) {
                    return Ok(true);
                }
            }
            Lock => state.kernel.sockets[socket].locked = Some(cpu),
            Unlock => state.kernel.sockets[socket].locked = None,
            Run(hook) => return self.run_hook(scenario, state, cpu, line, hook),
            TakePort => self.take_port(scenario, state, cpu, line)?,
            AutoBind => {
                if state.kernel.sockets[socket].port == 0 {
                    state.tasks[cpu].result = self.automatic(state, socket, 0, 0);
                }
            }
            GiveUp => {
                let s = &mut state.kernel.sockets[socket];
                if !s.bound_by_number {
                    state.kernel.give_port_up(socket);
                    state.settled[socket] = false;
                }
            }
            SetOption => {
                let s = &mut state.kernel.sockets[socket];
                match line.call {
                    Call::Listen => s.listens = s.port != 0,
                    Call::ReuseAddress => s.reuse_address = true,
                    _ => s.reuse_port = true,
                }
            }
            Look => {
                let Call::Confirm { reservation } = line.call else { return fault("only a confirmation looks") };
                if crate::check::occupied(scenario, state, reservation) {
                    return self.jump_to_finish(state, cpu, line, -crate::kernel::EADDRINUSE);
                }
            }
            FreePort => {
                state.kernel.give_port_up(socket);
                state.settled[socket] = false;
                self.free_storage(state, socket);
            }
            Note => {
                state.tasks[cpu].noted = self.last_use(state, scenario, line);
                state.tasks[cpu].waits_for = (0..state.tasks.len())
                    .filter(|other| *other != cpu && state.tasks[*other].cpu.is_some())
                    .map(|other| (other, state.tasks[other].call, state.tasks[other].step))
                    .collect();
            }
            Wait => state.tasks[cpu].waits_for.clear(),
            Quiet => {
                if !self.is_quiet(state, scenario, line, state.tasks[cpu].noted) {
                    return self.jump_to_finish(state, cpu, line, -crate::kernel::EADDRINUSE);
                }
                if !self.requests_lose {
                    // There was no sealing.
                    state.tasks[cpu].step += 1;
                }
            }
            Remove => {
                let word = self.word_of(scenario, line);
                state.shared.remove(word);
            }
            Finish => {
                self.finish(scenario, state, cpu, line)?;
                return Ok(true);
            }
        }
        if state.tasks[cpu].result != 0 {
            return self.jump_to_finish(state, cpu, line, state.tasks[cpu].result);
        }
        state.tasks[cpu].step += 1;
        Ok(true)
    }

    fn jump_to_finish(&self, state: &mut State, cpu: usize, line: &Line, result: i32) -> Outcome<bool> {
        state.tasks[cpu].result = result;
        state.tasks[cpu].step = steps(&line.call).len() - 1;
        Ok(true)
    }

    fn look_cells(&mut self, state: &State, line: &Line) -> Vec<(u32, usize, Access)> {
        let Call::Confirm { reservation } = line.call else { return vec![] };
        let r = &state.reservations[reservation];
        (r.start..r.start + r.count).map(|port| (self.port_cell(port), 0, Access::Load)).collect()
    }

    /// False: there is nothing to do, the call is over.
    fn begin(&mut self, scenario: &Scenario, state: &mut State, cpu: usize, line: &Line) -> bool {
        let task = &mut state.tasks[cpu];
        (task.result, task.forbidden, task.mine, task.excuses, task.port) = (0, 0, 0, 0, 0);
        task.refused = false;
        let phase = |r: usize| state.reservations[r].phase;
        let possible = match line.call {
            Call::Release { reservation }
            | Call::Associate { reservation }
            | Call::End { reservation }
            | Call::Change { reservation, .. } => {
                !matches!(phase(reservation), Phase::None | Phase::Asking | Phase::Over)
            }
            Call::Confirm { reservation } | Call::Refuse { reservation } => state.reservations[reservation].token != 0,
            Call::Acquire { reservation, .. } | Call::Create { reservation, .. } => phase(reservation) == Phase::None,
            _ => true,
        };
        let on_socket = line.call.is_on_socket();
        if let Some(trace) = &mut self.trace {
            trace.push(format!("CPU {cpu}: {}{}", line.text, if possible { "" } else { " (nothing to do)" }));
        }
        if !possible || (on_socket && !state.kernel.sockets[line.socket].open) {
            state.tasks[cpu].results.push(i32::MIN);
            state.tasks[cpu].call += 1;
            return false;
        }
        if on_socket {
            state.kernel.sockets[line.socket].users += 1;
        }
        if let Call::Bind { port, automatic, .. } = line.call {
            state.tasks[cpu].port = if port == 0 { automatic } else { port };
        }
        crate::check::begin(scenario, state, cpu, line);
        if line.call == Call::Close {
            state.kernel.sockets[line.socket].open = false;
        }
        true
    }

    fn finish(&mut self, scenario: &Scenario, state: &mut State, cpu: usize, line: &Line) -> Outcome<()> {
        let socket = &mut state.kernel.sockets[line.socket];
        if socket.locked == Some(cpu) {
            socket.locked = None;
        }
        if line.call.is_on_socket() {
            socket.users -= 1;
        }
        let result = state.tasks[cpu].result;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("CPU {cpu}: {} = {result}", line.text));
        }
        crate::check::finish(self, scenario, state, cpu, line)?;
        let task = &mut state.tasks[cpu];
        task.results.push(result);
        task.call += 1;
        task.step = 0;
        (task.result, task.forbidden, task.mine, task.excuses, task.port) = (0, 0, 0, 0, 0);
        task.refused = false;
        if line.must && result != 0 {
            return fault(format!("`{}` has to succeed, and failed with {result}", line.text));
        }
        Ok(())
    }

    /// What the kernel keeps for a socket is gone with it.
    fn free_storage(&mut self, state: &mut State, socket: usize) {
        for map in 0..self.program.maps.len() {
            if self.program.maps[map].kind == MapKind::SocketStorage {
                let object = self.names.number(map as u16, &[socket as u8]);
                if state.shared.present(object) {
                    // As if it had never been: a socket that is opened again has nothing.
                    state.shared.create(object, self.program.maps[map].value_size, true);
                    state.shared.remove(object);
                }
            }
        }
    }

    fn take_port(&mut self, scenario: &Scenario, state: &mut State, cpu: usize, line: &Line) -> Outcome<()> {
        let Call::Bind { address, automatic, .. } = line.call else { return fault("only a bind takes a port") };
        let port = state.tasks[cpu].port;
        let by_number = state.kernel.sockets[line.socket].bound_by_number;
        let result = if by_number || automatic == 0 {
            state.kernel.take_port(line.socket, port, address).err().map_or(0, |errno| -errno)
        } else {
            self.automatic(state, line.socket, automatic, address)
        };
        state.tasks[cpu].result = result;
        if result == 0 {
            crate::check::taken(scenario, state, cpu, line)?;
        }
        Ok(())
    }

    /// The kernel chooses: the port asked for by the scenario, or the next free one.
    fn automatic(&mut self, state: &mut State, socket: usize, first: u16, address: u32) -> i32 {
        let first = if first == 0 { 40000 + 10 * socket as u16 } else { first };
        let taken = (first..first + 10).find(|port| {
            let conflict = state.kernel.take_port(socket, *port, address);
            conflict.is_ok() || conflict == Err(EINVAL)
        });
        if taken.is_some() { 0 } else { -crate::kernel::EADDRINUSE }
    }

    /// Begins the program of a hook, or goes on with it. False: a point comes first.
    fn run_hook(
        &mut self,
        scenario: &Scenario,
        state: &mut State,
        number: usize,
        line: &Line,
        hook: Hook,
    ) -> Outcome<bool> {
        let mut cpu = match state.tasks[number].cpu.take() {
            Some(cpu) => cpu,
            None => Box::new(self.program_of(scenario, state, number, line, hook)?),
        };
        match self.run(state, &mut cpu)? {
            Stop::Point => {
                state.tasks[number].cpu = Some(cpu);
                Ok(false)
            }
            Stop::Done(verdict) => {
                self.judge(scenario, state, number, line, hook, &cpu, verdict)?;
                Ok(true)
            }
        }
    }

    fn program_of(
        &mut self,
        scenario: &Scenario,
        state: &mut State,
        number: usize,
        line: &Line,
        hook: Hook,
    ) -> Outcome<Cpu> {
        let entry = match hook {
            Hook::Set => "portkeep_set",
            Hook::Get => "portkeep_get",
            Hook::Bind => "portkeep_bind4",
            Hook::PostBind => "portkeep_bound4",
            Hook::Connect => "portkeep_conn4",
            Hook::Release => "portkeep_close",
            Hook::Admin => "portkeep_admin",
        };
        let Ok(entry) = self.program.entry(entry) else { return fault(format!("the object has no program {entry}")) };
        let pointer = address::SOCKET | (line.socket as u64) << 16;
        let first = match hook {
            Hook::PostBind | Hook::Release => pointer,
            _ => address::CONTEXT,
        };
        let mut cpu = Cpu::new(entry, first);
        cpu.socket = line.socket;
        cpu.process = line.process;
        cpu.now =
            if self.watching { NOW } else { BEFORE } + ((number as u64) << 20) + 1000 * state.tasks[number].call as u64;
        let mut put = |at: usize, bytes: &[u8]| {
            if cpu.context.len() < at + bytes.len() {
                cpu.context.resize(at + bytes.len(), 0);
            }
            cpu.context[at..at + bytes.len()].copy_from_slice(bytes);
        };
        match hook {
            Hook::Set | Hook::Get => {
                let (name, buffer) = option(state, line);
                let size = buffer.len() as u64;
                put(0, &pointer.to_le_bytes());
                put(8, &address::BUFFER.to_le_bytes());
                put(16, &(address::BUFFER | size).to_le_bytes());
                put(24, &SOL_PORTKEEP.to_le_bytes());
                put(28, &u32::to_le_bytes(name));
                put(32, &(size as u32).to_le_bytes());
                put(36, &0u32.to_le_bytes());
                cpu.buffer = buffer;
            }
            Hook::Bind | Hook::Connect => {
                let port = match line.call {
                    Call::Bind { port, .. } => port,
                    _ => 9,
                };
                let sk = &state.kernel.sockets[line.socket];
                put(0, &2u32.to_le_bytes());
                // Another machine.
                put(4, &[10, 0, 0, 1]);
                put(24, &u32::from(port.swap_bytes()).to_le_bytes());
                put(28, &2u32.to_le_bytes());
                put(32, &(sk.field(8)? as u32).to_le_bytes());
                put(36, &(sk.field(12)? as u32).to_le_bytes());
                put(64, &pointer.to_le_bytes());
            }
            Hook::PostBind | Hook::Release => {}
            Hook::Admin => {
                cpu.kind = Context::Packet;
                put(0, &[0; 192]);
                cpu.buffer = vec![0; PACKET];
                cpu.buffer.extend(self.packet(scenario, state, line)?);
            }
        }
        if let Call::Bind { others, .. } = line.call {
            let refused = (hook == Hook::Bind && others.bind) || (hook == Hook::PostBind && others.post_bind_before);
            cpu.result = if refused { -EPERM } else { 0 };
        }
        Ok(cpu)
    }

    /// The administrator's packet, laid out as the object has it.
    fn packet(&self, scenario: &Scenario, state: &State, line: &Line) -> Outcome<Vec<u8>> {
        let btf = &self.program.btf;
        let Some(request) = btf.structure("admin_request") else { return fault("the object has no admin_request") };
        let mut packet = vec![0; btf.size(request) as usize];
        let mut put = |path: &str, value: u64| {
            if let Some(field) = btf.field_of(request, path) {
                let at = field.at as usize;
                packet[at..at + field.size as usize].copy_from_slice(&value.to_le_bytes()[..field.size as usize]);
            }
        };
        let mut of = |r: usize, op: u64| {
            put("op", op);
            put("id", u64::from(state.reservations[r].id));
            put("token", state.reservations[r].token);
            put("netns", scenario.reservations[r].netns);
        };
        match &line.call {
            Call::Confirm { reservation } => of(*reservation, 1),
            Call::Refuse { reservation } => {
                of(*reservation, 2);
                put("error", 98);
            }
            Call::End { reservation } => of(*reservation, 3),
            Call::Create { start, count, terms, reservation } => {
                of(*reservation, 6);
                put("start", u64::from(*start));
                put("count", u64::from(*count));
                put("transports", u64::from(scenario.reservations[*reservation].transports));
                put("scope", 1);
                put("flags", u64::from(terms.strict) << 1);
                put("uid", u64::from(terms.uid));
            }
            Call::Change { reservation, uid } => {
                of(*reservation, 7);
                put("scope", 1);
                put("uid", u64::from(*uid));
            }
            Call::Forget { port } => {
                put("op", 10);
                put("netns", netns_of(scenario));
                put("start", u64::from(*port));
                put("transports", 1);
            }
            _ => return fault("this call has no packet"),
        }
        Ok(packet)
    }

    /// The TCP word of a port, in the namespace that is forgotten.
    fn word_of(&mut self, scenario: &Scenario, line: &Line) -> u32 {
        let Call::Forget { port } = line.call else { return 0 };
        let mut key = netns_of(scenario).to_le_bytes().to_vec();
        key.extend((port / 64).to_le_bytes());
        key.extend([1, 0, 0, 0, 0, 0]);
        let words = self.program.map("words").unwrap_or(0);
        self.names.number(words as u16, &key)
    }

    fn forget_cells(&mut self, scenario: &Scenario, line: &Line, removes: bool) -> Vec<(u32, usize, Access)> {
        let word = self.word_of(scenario, line);
        let spaces = self.program.map("spaces").unwrap_or(0);
        let space = self.names.number(spaces as u16, &netns_of(scenario).to_le_bytes());
        let size =
            |map: &str| self.program.map(map).map_or(0, |n| self.program.maps[n].value_size.div_ceil(8) as usize);
        let (of_word, of_space) = (size("words"), size("spaces"));
        if removes {
            return vec![(word, of_word, Access::Store)];
        }
        let mut cells: Vec<_> = (0..=of_word).map(|cell| (word, cell, Access::Load)).collect();
        cells.extend((0..=of_space).map(|cell| (space, cell, Access::Load)));
        cells
    }

    fn last_use(&mut self, state: &State, scenario: &Scenario, _line: &Line) -> u64 {
        self.get(state, "spaces", &netns_of(scenario).to_le_bytes(), "last")
    }

    /// As user space looks: not used since, no reservation, and nothing in the word.
    fn is_quiet(&mut self, state: &State, scenario: &Scenario, line: &Line, noted: u64) -> bool {
        let netns = netns_of(scenario);
        let reserved = (1..8u32).any(|id| {
            let key = id.to_le_bytes();
            self.get(state, "reservations", &key, "token") != 0
                && self.get(state, "reservations", &key, "netns") == netns
        });
        let word = self.word_of(scenario, line);
        let key = self.names.list[word as usize].1.clone();
        let vacant = ["reserved", "lingering", "aside", "bound"].iter().all(|f| self.get(state, "words", &key, f) == 0);
        !reserved && vacant && state.shared.present(word) && self.last_use(state, scenario, line) == noted
    }

    /// What the program's verdict means for the call.
    #[expect(clippy::too_many_arguments, reason = "all are about the one program that has just returned")]
    fn judge(
        &mut self,
        scenario: &Scenario,
        state: &mut State,
        number: usize,
        line: &Line,
        hook: Hook,
        cpu: &Cpu,
        verdict: u64,
    ) -> Outcome<()> {
        let passes = verdict & 1 != 0;
        let mut result = cpu.result;
        if !passes && result >= 0 {
            result = -EPERM;
        }
        match hook {
            Hook::Admin => {
                result = -(verdict as i32);
                if let (Call::Create { reservation, .. }, 0) = (&line.call, result) {
                    let read = |path: &str| {
                        let field = self.program.btf.field("admin_request", path);
                        field.map_or(0, |f| {
                            let mut bytes = [0; 8];
                            bytes[..f.size as usize]
                                .copy_from_slice(&cpu.buffer[PACKET + f.at as usize..][..f.size as usize]);
                            u64::from_le_bytes(bytes)
                        })
                    };
                    let r = &mut state.reservations[*reservation];
                    (r.token, r.id, r.start) = (read("token"), read("id") as u32, read("start") as u16);
                }
            }
            Hook::Set | Hook::Get => {
                let length = i32::from_le_bytes(cpu.context[32..36].try_into().expect("four bytes"));
                if passes && result == 0 && length != -1 && hook == Hook::Set {
                    return fault("a control code was left to the kernel, which does not know it");
                }
            }
            Hook::Bind => {
                if !passes {
                    crate::check::refused(self, scenario, state, number, result)?;
                }
                let raw = u16::from_le_bytes([cpu.context[24], cpu.context[25]]);
                let port = u16::from_be(raw);
                let sk = &mut state.kernel.sockets[line.socket];
                if result == 0 && sk.port == 0 {
                    sk.bound_by_number = port != 0;
                }
                if port != 0 {
                    state.tasks[number].port = port;
                }
            }
            Hook::PostBind => {
                let Call::Bind { others, .. } = line.call else { return fault("only a bind has a post_bind") };
                if !passes {
                    crate::check::refused(self, scenario, state, number, result)?;
                }
                if others.post_bind_after && result == 0 {
                    result = -EPERM;
                }
                if result != 0 {
                    state.kernel.give_port_up(line.socket);
                    state.kernel.sockets[line.socket].bound_by_number = false;
                } else {
                    state.settled[line.socket] = true;
                }
            }
            Hook::Connect => {
                let sk = &mut state.kernel.sockets[line.socket];
                if sk.port != 0 && !state.settled[line.socket] {
                    sk.bound_by_number = true;
                    state.settled[line.socket] = true;
                }
            }
            Hook::Release => result = 0,
        }
        state.tasks[number].result = result;
        if result != 0 {
            state.tasks[number].step = steps(&line.call).len() - 1;
        } else {
            state.tasks[number].step += 1;
        }
        Ok(())
    }
}

/// Number and value of a socket option.
fn option(state: &State, line: &Line) -> (u32, Vec<u8>) {
    let token = |r: usize| state.reservations[r].token.to_le_bytes().to_vec();
    match &line.call {
        Call::Acquire { start, count, terms, .. } => {
            let mut ask = vec![0; 16];
            ask[0..2].copy_from_slice(&start.to_le_bytes());
            ask[2..4].copy_from_slice(&count.to_le_bytes());
            ask[4] = u8::from(terms.both) | u8::from(terms.strict) << 1;
            ask[8] = u8::from(terms.user);
            (100, ask)
        }
        Call::Release { reservation } => (101, token(*reservation)),
        Call::Associate { reservation } => (102, token(*reservation)),
        Call::Beacon => {
            let mut mark: Vec<u8> = SECRET.iter().flat_map(|half| half.to_le_bytes()).collect();
            mark.extend([1, 0, 0, 0, 0, 0, 0, 0]);
            (104, mark)
        }
        _ => (201, vec![0; 64]),
    }
}

/// The namespace that `forget` is about: that of the scenario's first socket.
fn netns_of(scenario: &Scenario) -> u64 {
    scenario.sockets.first().map_or(crate::world::HOME, |socket| socket.netns)
}
