//! Invariants: after every step, after every call, and when everything is over.

use crate::{
    fault::{Outcome, fault},
    kernel::{EINVAL, Transport},
    machine::Machine,
    scenario::{Call, Line, Scenario},
    state::{Phase, Set, State},
    world::{POOL_FIRST, POOL_LAST},
};

pub(crate) fn covers(
    scenario: &Scenario,
    state: &State,
    r: usize,
    port: u16,
    transport: Transport,
    netns: u64,
) -> bool {
    let (plan, now) = (&scenario.reservations[r], &state.reservations[r]);
    let inside = if now.start == 0 {
        // The programs have not chosen yet.
        (POOL_FIRST..=POOL_LAST).contains(&port)
    } else {
        port >= now.start && u32::from(port) < u32::from(now.start) + u32::from(now.count)
    };
    inside && plan.netns == netns && plan.transports & transport.bit() != 0
}

/// Whether a socket may use the ports of a reservation, by the rules.
pub(crate) fn allowed(scenario: &Scenario, state: &State, r: usize, socket: usize, process: usize) -> bool {
    if let Some(own) = state.associated[socket] {
        return own == r;
    }
    let plan = &scenario.reservations[r];
    if plan.terms.strict {
        return false;
    }
    let uid = |p: usize| state.kernel.processes[p].uid;
    let is = |named: u32| named == uid(process);
    if plan.terms.also != 0 && is(plan.terms.also) {
        return true;
    }
    if plan.persistent {
        let changed = |line: &Line| match line.call {
            Call::Change { reservation, uid, also } => reservation == r && (is(uid) || also != 0 && is(also)),
            _ => false,
        };
        return is(plan.terms.uid) || scenario.cpus.iter().flatten().any(changed);
    }
    if plan.terms.user { uid(process) == uid(plan.process) } else { process == plan.process }
}

fn over(scenario: &Scenario, state: &State, line: &Line, port: u16, phases: &[Phase]) -> Set {
    let socket = &state.kernel.sockets[line.socket];
    (0..state.reservations.len())
        .filter(|r| phases.contains(&state.reservations[*r].phase))
        .filter(|r| covers(scenario, state, *r, port, socket.transport, socket.netns))
        .fold(0, |set, r| set | 1 << r)
}

/// The port belongs to another socket that a reservation has admitted: it stays claimed until that socket is gone (R7).
const LINGERS: Set = 1 << 31;

fn let_in(scenario: &Scenario, state: &State, socket: usize, port: u16) -> bool {
    let s = &state.kernel.sockets[socket];
    (0..state.reservations.len()).any(|r| {
        matches!(state.reservations[r].phase, Phase::Granted | Phase::Ending | Phase::Over)
            && covers(scenario, state, r, port, s.transport, s.netns)
            && allowed(scenario, state, r, socket, s.process)
    })
}

fn live(phase: Phase) -> bool {
    matches!(phase, Phase::Granted | Phase::Pending | Phase::Confirming)
}

/// A call begins.
pub(crate) fn begin(scenario: &Scenario, state: &mut State, cpu: usize, line: &Line) {
    match line.call {
        Call::Acquire { start, count, reservation, .. } | Call::Create { start, count, reservation, .. } => {
            let r = &mut state.reservations[reservation];
            (r.phase, r.start, r.count) = (Phase::Asking, start, count);
            if matches!(line.call, Call::Acquire { .. }) {
                excuse(scenario, state, reservation);
            }
        }
        Call::Confirm { reservation } => {
            if state.reservations[reservation].phase == Phase::Pending {
                state.reservations[reservation].phase = Phase::Confirming;
                excuse(scenario, state, reservation);
            }
        }
        Call::Release { reservation } | Call::End { reservation } => {
            if live(state.reservations[reservation].phase) {
                state.reservations[reservation].phase = Phase::Ending;
            }
        }
        Call::Close => {
            for (r, plan) in scenario.reservations.iter().enumerate() {
                if plan.socket == line.socket && !plan.persistent && live(state.reservations[r].phase) {
                    state.reservations[r].phase = Phase::Ending;
                }
            }
        }
        // Once the program has run, the port counts as free.
        Call::Over => state.settled[line.socket] = false,
        Call::Bind { .. } => {
            let port = state.tasks[cpu].port;
            let granted = over(scenario, state, line, port, &[Phase::Granted]);
            let may = (0..state.reservations.len())
                .filter(|r| allowed(scenario, state, *r, line.socket, line.process))
                .fold(0, |set, r| set | 1 << r);
            let task_excuses =
                over(scenario, state, line, port, &[Phase::Asking, Phase::Confirming, Phase::Granted, Phase::Ending]);
            let lingers = (0..state.kernel.sockets.len()).any(|other| {
                other != line.socket && state.kernel.sockets[other].port == port && let_in(scenario, state, other, port)
            });
            let task = &mut state.tasks[cpu];
            task.forbidden = granted & !may;
            task.mine = granted & may;
            task.excuses = task_excuses | if lingers { LINGERS } else { 0 };
        }
        Call::Associate { .. }
        | Call::Granted
        | Call::Beacon
        | Call::Connect
        | Call::Disconnect
        | Call::Listen
        | Call::ReuseAddress
        | Call::ReusePort
        | Call::Refuse { .. }
        | Call::Accept { .. }
        | Call::Change { .. }
        | Call::Forget { .. }
        | Call::ForgetQuota { .. }
        | Call::Vacate { .. } => {}
    }
}

/// A request that may be granted while it is under way excuses refusals of binds that are under way.
fn excuse(scenario: &Scenario, state: &mut State, reservation: usize) {
    for cpu in 0..state.tasks.len() {
        let task = &state.tasks[cpu];
        let Some(line) = scenario.cpus.get(cpu).and_then(|lines| lines.get(task.call)) else { continue };
        if task.busy() && matches!(line.call, Call::Bind { .. }) {
            let socket = &state.kernel.sockets[line.socket];
            if covers(scenario, state, reservation, task.port, socket.transport, socket.netns) {
                state.tasks[cpu].excuses |= 1 << reservation;
            }
        }
    }
}

/// The request was not granted after all. Refusals that it would have excused have no excuse now.
fn no_excuse(state: &mut State, reservation: usize) {
    for task in &mut state.tasks {
        task.excuses &= !(1 << reservation);
        for refusal in &mut task.refusals {
            *refusal &= !(1 << reservation);
        }
    }
}

fn granted(state: &mut State, reservation: usize) {
    state.reservations[reservation].phase = Phase::Granted;
    for task in &mut state.tasks {
        task.refusals.retain(|refusal| refusal & 1 << reservation == 0);
    }
}

/// A call has its result.
pub(crate) fn finish(
    machine: &mut Machine,
    scenario: &Scenario,
    state: &mut State,
    cpu: usize,
    line: &Line,
) -> Outcome<()> {
    let result = state.tasks[cpu].result;
    match line.call {
        Call::Acquire { reservation, .. } => {
            if result == 0 || result == -115 {
                let (token, id) = machine.token_of_latest(state, line.socket);
                if token == 0 {
                    return fault(format!("`{}` was granted without a token", line.text));
                }
                let key = id.to_le_bytes();
                let start = machine.get(state, "reservations", &key, "start") as u16;
                let same = machine.get(state, "reservations", &key, "token") == token;
                let r = &mut state.reservations[reservation];
                (r.token, r.id) = (token, id);
                if r.start == 0 && same {
                    r.start = start;
                }
            }
            if result == 0 && state.reservations[reservation].phase == Phase::Asking {
                granted(state, reservation);
            } else {
                no_excuse(state, reservation);
                state.reservations[reservation].phase = if result == -115 { Phase::Pending } else { Phase::Over };
            }
        }
        Call::Create { reservation, .. } => {
            state.reservations[reservation].phase = if result == 0 { Phase::Pending } else { Phase::Over };
        }
        Call::Confirm { reservation } => {
            if state.reservations[reservation].phase == Phase::Confirming {
                if result == 0 {
                    granted(state, reservation);
                } else {
                    no_excuse(state, reservation);
                    state.reservations[reservation].phase = Phase::Pending;
                }
            }
        }
        Call::Refuse { reservation } => {
            if result == 0 {
                no_excuse(state, reservation);
                state.reservations[reservation].phase = Phase::Over;
            }
        }
        Call::Release { reservation } | Call::End { reservation } => {
            let r = &mut state.reservations[reservation];
            if r.phase == Phase::Ending {
                r.phase = if result == 0 || result == -2 { Phase::Over } else { Phase::Granted };
            }
        }
        Call::Associate { reservation } => {
            if result == 0 {
                state.associated[line.socket] = Some(reservation);
            }
        }
        Call::Close => {
            state.associated[line.socket] = None;
            for (r, plan) in scenario.reservations.iter().enumerate() {
                if plan.socket == line.socket && !plan.persistent && state.reservations[r].phase != Phase::None {
                    state.reservations[r].phase = Phase::Over;
                }
            }
        }
        Call::Bind { .. } => {
            let task = &state.tasks[cpu];
            let settled = task.excuses & LINGERS != 0 || over_granted(state, task.excuses);
            if task.refused && machine.requests_lose && state.associated[line.socket].is_none() && !settled {
                let excuses = task.excuses;
                state.tasks[cpu].refusals.push(excuses);
            }
        }
        Call::Granted
        | Call::Beacon
        | Call::Connect
        | Call::Disconnect
        | Call::Listen
        | Call::ReuseAddress
        | Call::ReusePort
        | Call::Accept { .. }
        | Call::Over
        | Call::Change { .. }
        | Call::Forget { .. }
        | Call::ForgetQuota { .. }
        | Call::Vacate { .. } => {}
    }
    if state.tasks.iter().any(|task| task.refusals.contains(&0)) {
        return fault("a bind was refused, and no reservation that was in force or about to be covers the port");
    }
    Ok(())
}

fn over_granted(state: &State, set: Set) -> bool {
    (0..state.reservations.len()).any(|r| {
        set & 1 << r != 0 && matches!(state.reservations[r].phase, Phase::Granted | Phase::Ending | Phase::Over)
    })
}

/// Whether a socket has any port of the block, as the agent finds out before it confirms.
pub(crate) fn occupied(scenario: &Scenario, state: &State, r: usize) -> bool {
    let sockets = &state.kernel.sockets;
    sockets.iter().any(|s| s.port != 0 && covers(scenario, state, r, s.port, s.transport, s.netns))
}

/// Our programs refuse a bind.
pub(crate) fn refused(
    machine: &Machine,
    scenario: &Scenario,
    state: &mut State,
    cpu: usize,
    result: i32,
) -> Outcome<()> {
    let _ = machine;
    if result == -EINVAL {
        // The socket has a port, so the kernel would refuse the bind, too.
        return Ok(());
    }
    let mine = state.tasks[cpu].mine;
    for (r, plan) in scenario.reservations.iter().enumerate() {
        if mine & 1 << r != 0 && state.reservations[r].phase == Phase::Granted && !plan.persistent {
            return fault(format!("reservation {} is in force, and its own bind is refused ({result})", plan.name));
        }
    }
    state.tasks[cpu].refused = true;
    Ok(())
}

/// The kernel has given a port to a bind; the post_bind program has not seen it yet.
pub(crate) fn taken(scenario: &Scenario, state: &mut State, cpu: usize, line: &Line) -> Outcome<()> {
    let forbidden = state.tasks[cpu].forbidden;
    let port = state.tasks[cpu].port;
    if let_in(scenario, state, line.socket, port) {
        for (other, task) in state.tasks.iter_mut().enumerate().filter(|(other, _)| *other != cpu) {
            let bind = scenario.cpus.get(other).and_then(|lines| lines.get(task.call));
            if task.port == port && bind.is_some_and(|line| matches!(line.call, Call::Bind { .. })) {
                task.excuses |= LINGERS;
            }
        }
    }
    let by_number = matches!(line.call, Call::Bind { port, .. } if port != 0);
    let chosen = matches!(line.call, Call::Bind { automatic, .. } if automatic == port);
    if !by_number && !chosen {
        // If the port was drawn, it was not known when the bind began, and its reservation may have changed since.
        let phases = [Phase::Asking, Phase::Confirming, Phase::Granted, Phase::Ending];
        state.tasks[cpu].excuses |= over(scenario, state, line, port, &phases);
    }
    for (r, plan) in scenario.reservations.iter().enumerate() {
        if by_number && forbidden & 1 << r != 0 && state.reservations[r].phase == Phase::Granted {
            let socket = &state.kernel.sockets[line.socket].name;
            return fault(format!(
                "socket {socket} gets port {}, which {} has held since before the bind began",
                state.tasks[cpu].port, plan.name
            ));
        }
    }
    Ok(())
}

/// After every call of any CPU.
pub(crate) fn after_call(scenario: &Scenario, state: &State) -> Outcome<()> {
    let in_force: Vec<usize> =
        (0..state.reservations.len()).filter(|r| state.reservations[*r].phase == Phase::Granted).collect();
    for (n, a) in in_force.iter().enumerate() {
        for b in &in_force[n + 1..] {
            let (x, y) = (&state.reservations[*a], &state.reservations[*b]);
            let (p, q) = (&scenario.reservations[*a], &scenario.reservations[*b]);
            let ports = u32::from(x.start) < u32::from(y.start) + u32::from(y.count)
                && u32::from(y.start) < u32::from(x.start) + u32::from(x.count);
            if ports && p.netns == q.netns && p.transports & q.transports != 0 {
                return fault(format!("reservations {} and {} have the same port", p.name, q.name));
            }
        }
    }
    for plan in &state.kernel.processes[..] {
        let of_uid = |r: &&usize| {
            let terms = &scenario.reservations[**r];
            !terms.persistent && state.kernel.processes[terms.process].uid == plan.uid
        };
        let ports = |r: &usize| {
            let transports = u64::from(scenario.reservations[*r].transports.count_ones());
            u64::from(state.reservations[*r].count) * transports
        };
        let held: u64 = in_force.iter().filter(of_uid).map(ports).sum();
        if plan.uid != 0 && held > scenario.quota {
            return fault(format!("uid {} holds {held} ports, and its quota is {}", plan.uid, scenario.quota));
        }
    }
    for r in in_force {
        for (n, s) in state.kernel.sockets.iter().enumerate() {
            if state.settled[n]
                && (s.open || s.orphan)
                && s.port != 0
                && covers(scenario, state, r, s.port, s.transport, s.netns)
                && !allowed(scenario, state, r, n, s.process)
            {
                let name = &scenario.reservations[r].name;
                return fault(format!("socket {} is bound to port {}, which {name} has reserved", s.name, s.port));
            }
        }
    }
    Ok(())
}
