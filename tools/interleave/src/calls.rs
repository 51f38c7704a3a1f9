//! System calls, step by step, as the kernel makes them: which locks are held, which program runs when, and what the
//! kernel does between two programs.

use crate::{
    fault::{Outcome, fault},
    kernel::{EINVAL, Transport},
    machine::{Machine, Stop},
    memory::Access,
    program::MapKind,
    scenario::{Call, Line, Scenario},
    state::{Phase, State},
};

pub(crate) const EPERM: i32 = 1;
const ECONNREFUSED: i32 = 111;

/// A CPU ran until it has to let others choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paused {
    /// Inside a system call.
    Inside,
    /// Between two.
    Between,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Set,
    Get,
    Bind,
    PostBind,
    Connect,
    Release,
    /// The sock_ops program.
    Tcp,
    Admin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Begin,
    Lock,
    Unlock,
    Run(Hook),
    TakePort,
    /// A connect that has no port yet gets one.
    AutoBind,
    GiveUp,
    SetOption,
    /// A connection gets its socket.
    Establish,
    /// It is over.
    Hangup,
    /// The agent checks whether a port is vacant.
    Look,
    /// The port of a socket that is gone, unless its connection goes on.
    FreePort,
    /// User space notes when a namespace was last used.
    Note,
    /// It waits until every program has ended that runs now.
    Wait,
    /// It checks whether the namespace has been quiet since, and has no reservations.
    Quiet,
    /// It removes a word or a quota.
    Remove,
    Finish,
}

use Step::{
    AutoBind, Begin, Establish, Finish, FreePort, GiveUp, Hangup, Lock, Look, Note, Quiet, Remove, Run, SetOption,
    TakePort, Unlock, Wait,
};

/// Since words are sealed, the first wait is left out. In older objects, all steps between `Quiet` and `Remove` are
/// left out.
const FORGET: &[Step] = &[Begin, Note, Wait, Quiet, Run(Hook::Admin), Note, Wait, Remove, Run(Hook::Admin), Finish];
/// The step in which the program seals the word. In the other `Run` it opens the word again.
pub(crate) const SEALING: usize = 4;
const REMOVING: usize = 7;
const FORGET_QUOTA: &[Step] = &[Begin, Run(Hook::Admin), Note, Wait, Remove, Run(Hook::Admin), Finish];
pub(crate) const SEALING_QUOTA: usize = 1;

pub(crate) const fn steps(call: &Call) -> &'static [Step] {
    match call {
        Call::Acquire { .. } | Call::Release { .. } | Call::Associate { .. } | Call::Beacon => {
            &[Begin, Lock, Run(Hook::Set), Finish]
        }
        Call::Granted => &[Begin, Lock, Run(Hook::Get), Finish],
        Call::Bind { .. } => &[Begin, Lock, Run(Hook::Bind), Unlock, Lock, TakePort, Run(Hook::PostBind), Finish],
        Call::Connect => &[Begin, Lock, Run(Hook::Connect), Unlock, Lock, AutoBind, Run(Hook::Tcp), Finish],
        Call::Disconnect => &[Begin, Lock, Run(Hook::Tcp), GiveUp, Finish],
        Call::Accept { .. } => &[Begin, Lock, Establish, Run(Hook::Tcp), Finish],
        Call::Over => &[Begin, Lock, Run(Hook::Tcp), Hangup, Finish],
        Call::Listen => &[Begin, Lock, SetOption, Run(Hook::Tcp), Finish],
        Call::ReuseAddress | Call::ReusePort => &[Begin, Lock, SetOption, Finish],
        Call::Close => &[Begin, Run(Hook::Release), Lock, FreePort, Finish],
        Call::Vacate { .. } => &[Begin, Run(Hook::Admin), Finish],
        Call::Confirm { .. } => &[Begin, Look, Run(Hook::Admin), Finish],
        Call::Create { .. } | Call::Refuse { .. } | Call::End { .. } | Call::Change { .. } => {
            &[Begin, Run(Hook::Admin), Finish]
        }
        Call::Forget { .. } => FORGET,
        Call::ForgetQuota { .. } => FORGET_QUOTA,
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

/// Whether the kernel calls the sock_ops program at this point of a call.
fn reports(state: &State, line: &Line) -> bool {
    let s = &state.kernel.sockets[line.socket];
    s.transport == Transport::Tcp
        && !s.mptcp
        && match line.call {
            Call::Over | Call::Disconnect => s.connected && s.watched,
            Call::Listen => s.listens,
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
            Lock | Unlock | GiveUp | SetOption | Hangup => vec![socket_cell],
            Establish => self.establish_cells(state, line),
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
            // A bind of MPTCP and a connect of TCP keep the lock.
            Unlock => {
                let s = &mut state.kernel.sockets[socket];
                if !s.mptcp && (s.transport == Transport::Udp || line.call != Call::Connect) {
                    s.locked = None;
                }
            }
            Run(Hook::Tcp) if !runs && !reports(state, line) => {}
            Run(hook) => return self.run_hook(scenario, state, cpu, line, hook),
            TakePort => self.take_port(scenario, state, cpu, line)?,
            AutoBind => {
                if state.kernel.sockets[socket].port == 0 {
                    state.tasks[cpu].result = self.automatic(state, socket, 0, 0);
                }
                let s = &mut state.kernel.sockets[socket];
                s.connected = s.transport == Transport::Tcp && state.tasks[cpu].result == 0;
            }
            GiveUp => {
                let s = &mut state.kernel.sockets[socket];
                s.connected = false;
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
            Establish => {
                let Call::Accept { listener } = line.call else { return fault("only a connection is established") };
                if !state.kernel.establish(listener, socket) {
                    return self.jump_to_finish(state, cpu, line, -ECONNREFUSED);
                }
            }
            Hangup => {
                let s = &mut state.kernel.sockets[socket];
                s.connected = false;
                if s.orphan {
                    s.orphan = false;
                    self.free_socket(state, socket);
                } else if !s.bound_by_number {
                    state.kernel.give_port_up(socket);
                }
            }
            FreePort => {
                let s = &mut state.kernel.sockets[socket];
                if s.connected {
                    s.orphan = true;
                } else {
                    self.free_socket(state, socket);
                }
            }
            Note => {
                state.tasks[cpu].noted = self.last_use(state, scenario);
                let is_word = matches!(line.call, Call::Forget { .. });
                if is_word && self.requests_lose && state.tasks[cpu].step < SEALING {
                    // If words are sealed, the first `Note` waits for nothing.
                    return self.jump(state, cpu, SEALING - 1);
                }
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
                    return self.jump(state, cpu, REMOVING);
                }
            }
            Remove => {
                let removed = match line.call {
                    Call::ForgetQuota { .. } => self.remove_quota(state, scenario, line),
                    _ => self.remove_word(state, scenario, line),
                };
                if removed {
                    return self.jump_to_finish(state, cpu, line, 0);
                }
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

    fn free_socket(&mut self, state: &mut State, socket: usize) {
        state.kernel.give_port_up(socket);
        state.settled[socket] = false;
        self.free_storage(state, socket);
    }

    fn establish_cells(&mut self, state: &State, line: &Line) -> Vec<(u32, usize, Access)> {
        let Call::Accept { listener } = line.call else { return vec![] };
        let port = self.port_cell(state.kernel.sockets[listener].port);
        vec![
            (self.socket_object(line.socket), 0, Access::Store),
            (self.socket_object(listener), 0, Access::Load),
            (port, 0, Access::Store),
        ]
    }

    fn jump(&self, state: &mut State, cpu: usize, step: usize) -> Outcome<bool> {
        state.tasks[cpu].step = step;
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
            Call::Over => state.kernel.sockets[line.socket].connected,
            _ => true,
        };
        let on_socket = line.call.holds_descriptor();
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
        if line.call.holds_descriptor() {
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
        if line.never && result == 0 {
            return fault(format!("`{}` has to fail, and succeeds", line.text));
        }
        if line.must && result != 0 {
            return fault(format!("`{}` has to succeed, and failed with {result}", line.text));
        }
        Ok(())
    }

    /// The kernel's data for a socket is gone with it.
    fn free_storage(&mut self, state: &mut State, socket: usize) {
        for map in 0..self.program.maps.len() {
            if self.program.maps[map].kind == MapKind::SocketStorage {
                for number in [socket, socket + crate::address::MPTCP] {
                    let object = self.names.number(map as u16, &[number as u8]);
                    if state.shared.present(object) {
                        // As if it had never been: a socket that is opened again has nothing.
                        state.shared.create(object, self.program.maps[map].value_size, true);
                        state.shared.remove(object);
                    }
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
                self.check_step(scenario, state, number, line, hook, &cpu, verdict)?;
                Ok(true)
            }
        }
    }
}
