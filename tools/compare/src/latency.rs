//! The cost of taking ports and giving them back, in turns: all of them are
//! measured in every round, and the medians compared.

use anyhow::{Context, Result};
use portkeep_testkit::report::median;

use super::{
    allocator::Allocator,
    job::PORTS,
    kit::{Kit, PORTSERVER_POOL, Portserver},
    subject::Subject,
};
use portkeep_testkit::places::{Places, moved};

/// Nanoseconds for one port, and for as many as a round takes.
#[derive(Clone, Copy)]
pub(super) struct Latency {
    pub(super) one: f64,
    pub(super) all: f64,
}

struct Bench {
    subject: Subject,
    allocator: Allocator,
    one: Vec<f64>,
    all: Vec<f64>,
    _server: Option<Portserver>,
}

pub(super) fn measure(subjects: &[Subject], kit: &Kit, places: &Places, rounds: u32) -> Result<Vec<Latency>> {
    let mut benches = subjects.iter().map(|subject| bench(*subject, kit, places)).collect::<Result<Vec<_>>>()?;
    for _ in 0..rounds {
        for bench in &mut benches {
            let iterations = bench.subject.iterations();
            bench.one.push(bench.allocator.time(iterations, 1)?);
            bench.all.push(bench.allocator.time(iterations, PORTS)?);
        }
    }
    Ok(benches.into_iter().map(|bench| Latency { one: median(bench.one), all: median(bench.all) }).collect())
}

/// Each in a network namespace of its own, so that none finds the ports of another.
fn bench(subject: Subject, kit: &Kit, places: &Places) -> Result<Bench> {
    Places::fresh_network();
    let server = kit.server(subject, PORTSERVER_POOL)?;
    let allocator = start(subject, kit, places)?;
    Ok(Bench { subject, allocator, one: Vec::new(), all: Vec::new(), _server: server })
}

/// An allocator in a cgroup of its own, so that nobody else is in the scope of what it takes.
pub(super) fn start(subject: Subject, kit: &Kit, places: &Places) -> Result<Allocator> {
    let cgroup = places.subgroup(subject.enforced())?;
    Allocator::start(moved(&cgroup, &kit.allocator(subject))).with_context(|| format!("starting {}", subject.name()))
}
