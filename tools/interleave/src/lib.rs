//! Runs the exact bytes of a BPF object under a scheduler of its own, and tries every order in which two to four CPUs
//! can access the memory they share, up to a bound on preemptions. See `docs/internals/interleavings.md`.
#![forbid(unsafe_code)]

mod address;
mod arithmetic;
mod btf;
mod calls;
mod check;
mod cpu;
mod end;
mod explore;
mod fault;
mod forget;
mod helpers;
mod kernel;
mod machine;
mod memory;
mod program;
mod programs;
mod scenario;
mod state;
mod world;

use anyhow::{Context, Result, ensure};

pub use explore::{Figures, Found};

/// The scenarios in `scenarios/`, by name.
pub const SCENARIOS: &[(&str, &str)] = include!("../scenarios/list.rs");

/// The result of one scenario.
#[derive(Debug)]
pub struct Report {
    /// Its name.
    pub name: String,
    /// Its subject.
    pub title: String,
    /// How many CPUs it has.
    pub cpus: usize,
    /// The bound.
    pub preemptions: u32,
    /// The findings, or the schedule that breaks something.
    pub outcome: Result<Figures, Found>,
}

fn load(object: &[u8]) -> Result<program::Program> {
    let mut program = program::Program::parse(object)?;
    // The loader normally sets these: every kernel structure that the programs read is known, and so is MPTCP.
    for name in ["places_known", "process_known", "processes_known", "structures_known", "mptcp_known"] {
        program.set_constant(name, 1);
    }
    Ok(program)
}

/// Whether a scenario shows a limit of the design that `docs/internals/interleavings.md` explains, and is expected to fail.
pub fn is_known_limit(name: &str) -> bool {
    matches!(name, "forget-bind-acquire" | "lingering-bind")
}

/// Explores one scenario with an object, in the short or the long form.
///
/// # Errors
/// The object cannot be read, or there is no such scenario.
pub fn explore(object: &[u8], name: &str, short: bool) -> Result<Report> {
    explore_weak(object, name, short, 0)
}

/// The same on CPUs whose stores are seen late: at most so many of a schedule.
///
/// # Errors
/// The object or the scenario cannot be read.
pub fn explore_weak(object: &[u8], name: &str, short: bool, late: u32) -> Result<Report> {
    let (_, text) = SCENARIOS.iter().find(|(n, _)| *n == name).context("there is no such scenario")?;
    let plan = scenario::parse(name, text)?;
    let preemptions = if short { plan.short } else { plan.long };
    let mut search = explore::Search::new(load(object)?, &plan);
    search.late = late;
    let outcome = search.run(preemptions);
    let (title, cpus) = (plan.title.clone(), plan.cpus.len());
    Ok(Report { name: name.to_owned(), title, cpus, preemptions, outcome })
}

/// Follows one schedule of a scenario and gives back what happened, line by line, and the fault it ended with.
///
/// # Errors
/// The object, the scenario or the schedule cannot be read.
pub fn replay(object: &[u8], name: &str, schedule: &str) -> Result<(Vec<String>, Option<String>)> {
    let (_, text) = SCENARIOS.iter().find(|(n, _)| *n == name).context("there is no such scenario")?;
    let plan = scenario::parse(name, text)?;
    let steps = explore::read_schedule(schedule).context("a schedule looks like 0:12,1:40,0:3")?;
    ensure!(steps.iter().all(|(cpu, ..)| *cpu < plan.cpus.len()), "the scenario has {} CPUs", plan.cpus.len());
    let mut search = explore::Search::new(load(object)?, &plan);
    let outcome = search.replay(&steps);
    Ok((search.machine.trace.take().unwrap_or_default(), outcome.err().map(|fault| fault.0)))
}
