//! All schedules with at most so many preemptions, each state once.
//!
//! A state is what memory, kernel and CPUs hold; two schedules that lead to the same one have the same future. CPUs
//! change places only between system calls and before accesses to contended cells: those that two CPUs use, at least
//! one of them in a way that does not commute. Which these are is found out on the way: a cell that
//! turns out to be contended starts the search anew.

use std::collections::{HashMap, HashSet};

use crate::{
    calls::{enabled, line},
    end,
    fault::{Fault, Outcome},
    kernel::{Kernel, Process, Socket},
    machine::Machine,
    memory::{Shared, Watch, mix},
    program::Program,
    scenario::{Line, Scenario},
    state::{Phase, Reservation, State, Task},
    world::new_socket,
};

/// The results of a search.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Different states.
    pub states: usize,
    /// Schedules through them: different orders of accesses to contended memory.
    pub schedules: f64,
    /// Different last states, each of them probed and cleaned up.
    pub ends: usize,
    /// Contended cells of eight bytes.
    pub contended: usize,
    /// BPF instructions executed.
    pub instructions: u64,
}

/// A schedule that breaks something.
#[derive(Debug, Clone)]
pub struct Found {
    /// The rule that is broken.
    pub fault: String,
    /// CPUs and how many steps each of them makes, for `--replay`.
    pub schedule: String,
}

pub(crate) struct Search<'a> {
    pub(crate) machine: Machine,
    scenario: &'a Scenario,
    seen: HashMap<u64, f64>,
    ends: HashSet<u64>,
    path: Vec<Leg>,
    /// Stores of a schedule that others may see late.
    pub(crate) late: u32,
    /// Give up as soon as another cell is contended.
    strict: bool,
}

/// A part of a schedule: a CPU, how many steps it makes, and whether others see the first of them late.
pub(crate) type Leg = (usize, u32, bool);

enum Trouble {
    Fault(Fault),
    /// The set of contended cells grew: the search so far is incomplete.
    Again,
}

impl<'a> Search<'a> {
    pub(crate) fn new(program: Program, scenario: &'a Scenario) -> Self {
        let requests_lose = program.btf.field("reservation", "refusal").is_some();
        let machine = Machine {
            program,
            names: crate::memory::Names::default(),
            watch: Watch::default(),
            watching: false,
            cpu: 0,
            passing: false,
            delaying: false,
            events: 0,
            limit: None,
            trace: None,
            // Address 0 of the kernel is not used.
            kernel_memory: vec![0; 64],
            kernel_socket: 0,
            instructions: 0,
            requests_lose,
        };
        Self { machine, scenario, seen: HashMap::new(), ends: HashSet::new(), path: Vec::new(), late: 0, strict: false }
    }

    /// The state before the CPUs start.
    pub(crate) fn start(&mut self) -> Outcome<State> {
        let scenario = self.scenario;
        let mut processes = Vec::new();
        self.machine.kernel_memory.truncate(64);
        for (n, (name, uid)) in scenario.processes.iter().enumerate() {
            let pid = 100 + n as u32;
            let cgroups = vec![1, 10 + n as u64];
            let mut process = Process { name: name.clone(), pid, uid: *uid, gid: *uid, cgroups, task: 0 };
            let netns = scenario.sockets.iter().find(|s| s.process == n).map_or(crate::world::HOME, |s| s.netns);
            self.machine.build_process(&mut process, netns);
            processes.push(process);
        }
        self.machine.build_socket();
        let mut sockets: Vec<_> = scenario
            .sockets
            .iter()
            .map(|plan| Socket {
                mptcp: plan.mptcp,
                ..new_socket(&plan.name, plan.process, plan.transport, plan.netns)
            })
            .collect();
        for (n, (name, _)) in scenario.processes.iter().enumerate() {
            for transport in [crate::kernel::Transport::Tcp, crate::kernel::Transport::Udp] {
                sockets.push(new_socket(&format!("of {name}"), n, transport, crate::world::HOME));
            }
        }
        let nothing = Reservation { phase: Phase::None, token: 0, id: 0, start: 0, count: 0 };
        let mut state = State {
            shared: Shared::default(),
            associated: vec![None; sockets.len()],
            settled: vec![false; sockets.len()],
            kernel: Kernel { processes: processes.into(), sockets },
            tasks: Vec::new(),
            reservations: vec![nothing; scenario.reservations.len()],
        };
        self.machine.configure(&mut state);
        let zero = 0u32.to_le_bytes();
        self.machine.set(&mut state, "config", &zero, "quota", scenario.quota);
        for line in &scenario.before {
            let result = end::alone(&mut self.machine, scenario, &mut state, line)?;
            if line.must && result != 0 {
                return Err(Fault(format!("before the CPUs start: `{}` fails with {result}", line.text)));
            }
        }
        state.tasks = vec![Task::new(); scenario.cpus.len()];
        Ok(state)
    }

    /// Every schedule with at most `preemptions`.
    pub(crate) fn run(&mut self, preemptions: u32) -> Result<Figures, Found> {
        let start = self.start().map_err(|fault| Found { fault: fault.0, schedule: String::new() })?;
        self.machine.watching = true;
        for bound in 0..=preemptions {
            self.strict = bound == preemptions && bound > 0;
            loop {
                self.machine.watch.grown = false;
                self.seen.clear();
                self.ends.clear();
                self.path.clear();
                match self.visit(start.clone(), None, bound, self.late) {
                    Err(Trouble::Fault(fault)) => {
                        return Err(Found { fault: fault.0, schedule: spell(&self.path) });
                    }
                    Err(Trouble::Again) => {}
                    Ok(schedules) if !self.machine.watch.grown => {
                        if bound == preemptions {
                            return Ok(Figures {
                                states: self.seen.len(),
                                schedules,
                                ends: self.ends.len(),
                                contended: self.machine.watch.count(),
                                instructions: self.machine.instructions,
                            });
                        }
                        break;
                    }
                    Ok(_) => {}
                }
            }
        }
        unreachable!("the last bound returns")
    }

    /// How many schedules go on from here.
    fn visit(&mut self, state: State, current: Option<usize>, left: u32, late: u32) -> Result<f64, Trouble> {
        let lists: &'a [Vec<Line>] = &self.scenario.cpus;
        let ready: Vec<usize> = (0..lists.len()).filter(|cpu| enabled(lists, &state, *cpu)).collect();
        // To take the CPU away from a call that could go on is a preemption; all else is free.
        let running = current.filter(|cpu| state.tasks[*cpu].busy() && ready.contains(cpu));
        let hash = state.hash();
        let key = mix(hash, u64::from(late) << 16 | u64::from(left) << 8 | running.map_or(0xff, |cpu| cpu as u64));
        if let Some(known) = self.seen.get(&key) {
            return Ok(*known);
        }
        let mut schedules = 0.0;
        if ready.is_empty() {
            if (0..lists.len()).any(|cpu| line(lists, &state, cpu).is_some()) {
                return Err(Trouble::Fault(Fault("every CPU waits for another's lock".to_owned())));
            }
            if self.ends.insert(hash) {
                end::end(&mut self.machine, self.scenario, state).map_err(Trouble::Fault)?;
                self.machine.watching = true;
            }
            schedules = 1.0;
        } else {
            let first = running.into_iter().chain(ready.iter().copied().filter(|cpu| Some(*cpu) != running));
            for cpu in first {
                let cost = u32::from(running.is_some_and(|other| other != cpu));
                if cost > left {
                    continue;
                }
                let may_delay = late > 0 && self.machine.may_delay(&state, cpu);
                for delays in [false, true].into_iter().take(1 + usize::from(may_delay)) {
                    let mut next = state.clone();
                    self.machine.delaying = delays;
                    let outcome = self.machine.resume(self.scenario, lists, &mut next, cpu);
                    self.machine.delaying = false;
                    self.path.push((cpu, self.machine.events, delays));
                    outcome.map_err(Trouble::Fault)?;
                    if self.strict && self.machine.watch.grown {
                        return Err(Trouble::Again);
                    }
                    schedules += self.visit(next, Some(cpu), left - cost, late - u32::from(delays))?;
                    self.path.pop();
                }
            }
        }
        self.seen.insert(key, schedules);
        Ok(schedules)
    }

    /// Follows one schedule and writes down what happens.
    pub(crate) fn replay(&mut self, schedule: &[Leg]) -> Outcome<()> {
        let mut state = self.start()?;
        let lists = &self.scenario.cpus;
        self.machine.watching = true;
        self.machine.trace = Some(Vec::new());
        for (cpu, events, delays) in schedule {
            let mut left = *events;
            self.machine.delaying = *delays;
            while left > 0 {
                if !enabled(lists, &state, *cpu) {
                    return Err(Fault(format!("CPU {cpu} cannot go on: this is a schedule of something else")));
                }
                self.machine.limit = Some(left);
                self.machine.resume(self.scenario, lists, &mut state, *cpu)?;
                left -= self.machine.events.min(left);
            }
        }
        self.machine.limit = None;
        if (0..lists.len()).any(|cpu| line(lists, &state, cpu).is_some()) {
            return Ok(());
        }
        end::end(&mut self.machine, self.scenario, state)
    }
}

/// `0:12,1:40,0:late5`: CPU 0 makes twelve steps, then CPU 1 forty, then CPU 0 five, the first of which is seen late.
fn spell(path: &[Leg]) -> String {
    let mut parts: Vec<Leg> = Vec::new();
    for (cpu, events, delays) in path.iter().filter(|(_, events, _)| *events > 0) {
        match parts.last_mut() {
            Some((last, sum, _)) if last == cpu && !delays => *sum += events,
            _ => parts.push((*cpu, *events, *delays)),
        }
    }
    let part = |(cpu, events, delays): &Leg| format!("{cpu}:{}{events}", if *delays { "late" } else { "" });
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

pub(crate) fn read_schedule(text: &str) -> Option<Vec<Leg>> {
    text.split(',')
        .map(|part| {
            let (cpu, events) = part.split_once(':')?;
            let delays = events.starts_with("late");
            Some((cpu.parse().ok()?, events.trim_start_matches("late").parse().ok()?, delays))
        })
        .collect()
}
