//! When all CPUs have done their work: granted ports can be bound, by their holder only, and nothing is left over.

use crate::{
    check::allowed,
    fault::{Outcome, fault},
    kernel::Transport,
    machine::Machine,
    scenario::{Call, Line, Scenario},
    state::{Phase, State, Task},
    world::{POOL_FIRST, POOL_LAST},
};

/// Makes one call from beginning to end, while no other CPU runs.
pub(crate) fn alone(machine: &mut Machine, scenario: &Scenario, state: &mut State, line: &Line) -> Outcome<i32> {
    state.tasks = vec![Task::new()];
    let lists = [vec![line.clone()]];
    let watching = std::mem::replace(&mut machine.watching, false);
    while state.tasks[0].call == 0 {
        if !crate::calls::enabled(&lists, state, 0) {
            return fault(format!("`{}` waits for ever", line.text));
        }
        machine.resume(scenario, &lists, state, 0)?;
    }
    machine.watching = watching;
    Ok(state.tasks[0].results[0])
}

/// When all CPUs have done their work: a process that was granted ports can bind them, others cannot; and when all have
/// closed their sockets, nothing is left, and every port is free.
pub(crate) fn end(machine: &mut Machine, scenario: &Scenario, mut state: State) -> Outcome<()> {
    let spares = scenario.sockets.len();
    for (r, plan) in scenario.reservations.iter().enumerate() {
        if state.reservations[r].phase != Phase::Granted {
            continue;
        }
        let (first, count) = (state.reservations[r].start, state.reservations[r].count);
        for port in [first, first + count - 1] {
            for transport in [Transport::Tcp, Transport::Udp] {
                if plan.transports & transport.bit() == 0
                    || state
                        .kernel
                        .sockets
                        .iter()
                        .any(|s| s.port == port && s.transport == transport && s.netns == plan.netns && !s.accepted)
                {
                    continue;
                }
                for process in 0..state.kernel.processes.len() {
                    let may = allowed(scenario, &state, r, spare(spares, process, transport), process);
                    let result = probe(machine, scenario, &mut state, (spares, plan.netns), process, transport, port)?;
                    let who = &scenario.processes[process].0;
                    if may && result != 0 && !plan.persistent {
                        return fault(format!("{who} was granted {} and cannot bind port {port}: {result}", plan.name));
                    }
                    if !may && result == 0 {
                        return fault(format!("{who} can bind port {port} of {}", plan.name));
                    }
                }
            }
        }
    }
    for socket in 0..spares {
        call(machine, scenario, &mut state, Call::Close, socket, "the end: close")?;
    }
    for socket in (0..spares).filter(|n| scenario.sockets[*n].transport == Transport::Tcp) {
        call(machine, scenario, &mut state, Call::Over, socket, "the end: over")?;
    }
    for (netns, port) in machine.ports_aside(&state) {
        call(machine, scenario, &mut state, Call::Vacate { netns, port }, 0, "the end: vacate")?;
    }
    for (reservation, plan) in scenario.reservations.iter().enumerate() {
        if plan.persistent && state.reservations[reservation].token != 0 {
            call(machine, scenario, &mut state, Call::End { reservation }, 0, "the end: end")?;
        }
    }
    machine.leftovers(&state)?;
    for r in 0..scenario.reservations.len() {
        let plan = &scenario.reservations[r];
        let (first, count) = (state.reservations[r].start, state.reservations[r].count);
        let free = machine.requests_lose || !(POOL_FIRST..=POOL_LAST).contains(&first);
        if state.reservations[r].phase == Phase::None || first == 0 || !free {
            continue;
        }
        for port in [first, first + count - 1] {
            let transport = if plan.transports & 1 != 0 { Transport::Tcp } else { Transport::Udp };
            let result = probe(machine, scenario, &mut state, (spares, plan.netns), 0, transport, port)?;
            if result != 0 {
                return fault(format!("port {port} is not free after everything has ended: {result}"));
            }
        }
    }
    machine.leftovers(&state)
}

/// Every process has one spare socket of each transport, behind those of the scenario.
const fn spare(spares: usize, process: usize, transport: Transport) -> usize {
    spares + 2 * process + matches!(transport, Transport::Udp) as usize
}

fn probe(
    machine: &mut Machine,
    scenario: &Scenario,
    state: &mut State,
    (spares, netns): (usize, u64),
    process: usize,
    transport: Transport,
    port: u16,
) -> Outcome<i32> {
    let socket = spare(spares, process, transport);
    let old = &state.kernel.sockets[socket];
    state.kernel.sockets[socket] = crate::world::new_socket(&old.name, process, transport, netns);
    let bind = Call::Bind { port, address: 0, automatic: 0, others: crate::scenario::Others::default() };
    let result = call(machine, scenario, state, bind, socket, "the end: bind")?;
    call(machine, scenario, state, Call::Close, socket, "the end: close")?;
    Ok(result)
}

fn call(
    machine: &mut Machine,
    scenario: &Scenario,
    state: &mut State,
    call: Call,
    socket: usize,
    text: &str,
) -> Outcome<i32> {
    let process = state.kernel.sockets[socket].process;
    let text = format!("{text} {}", state.kernel.sockets[socket].name);
    alone(machine, scenario, state, &Line { call, process, socket, must: false, never: false, text })
}
