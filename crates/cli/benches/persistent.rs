//! The cost of ten thousand persistent reservations: the agent's start and memory, and whether a look-up or a bind gets
//! slower. The real agent, in a cgroup, a mount namespace and a network namespace of its own. Each file has a hundred
//! stanzas. With all stanzas in one file, the peak of the memory is half as much again as the memory at rest.
//!
//! `cargo bench -p portkeep-cli --bench persistent` as root.

use std::{
    fs,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use portkeep::{
    PortRange, Transport,
    persistent::{Connection, lookup, protocol},
};
use portkeep_testkit::{
    machine::Machine,
    report,
    sockets::{bind, tcp},
};
use rustix::process::{Pid, Signal, kill_process};

const MANY: u16 = 10_000;
const FIRST: u16 = 10_000;
const ROUNDS: usize = 41;
const CALLS: usize = 500;

struct Agent {
    child: Child,
    took: Duration,
}

impl Agent {
    /// Start it, and wait until it answers.
    fn start(machine: &Machine) -> Self {
        let begun = Instant::now();
        let mut command = machine.command(&["agent"]);
        let root = machine.folder.path().join("root");
        command.env("PORTKEEP_ROOT", root);
        command.env("PORTKEEP_STATE_DIR", machine.folder.path().join("state")).env("PORTKEEP_LOG", "error");
        let child = command.stderr(Stdio::inherit()).spawn().expect("the agent starts");
        let socket = protocol::socket_in(&machine.folder.path().join("run"));
        // Each query requires time on the agent's core, too.
        while !portkeep::version().is_ok_and(|version| version.agent) {
            thread::sleep(Duration::from_micros(500));
        }
        let took = begun.elapsed();
        Connection::open_at(&socket).expect("it listens");
        Self { child, took }
    }

    /// Resident memory now and at its highest, KiB.
    fn memory(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let read = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key)).expect("the kernel reports");
            line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
        };
        (read("VmRSS"), read("VmHWM"))
    }

    fn stop(mut self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("our own child");
        self.child.wait().expect("it ends");
    }
}

/// Nanoseconds of one call: the median of many short rounds.
fn median(mut work: impl FnMut()) -> f64 {
    let round = |_| {
        let begun = Instant::now();
        (0..CALLS).for_each(|_| work());
        begun.elapsed().as_nanos() as f64 / CALLS as f64
    };
    report::median((0..ROUNDS).map(round).collect())
}

/// A look-up, the bind of a port that is not reserved, and the bind of a port of ours.
fn costs() -> [f64; 3] {
    let own = PortRange::single(FIRST).expect("not 0");
    [
        median(|| {
            lookup(own, Transport::Tcp).expect("it is in force");
        }),
        median(|| bind(&tcp(), FIRST + 1).expect("free")),
        median(|| bind(&tcp(), FIRST).expect("ours")),
    ]
}

fn declare(machine: &Machine, count: u16) {
    let folder = machine.folder.path().join("root/etc/portkeep/ports.d");
    fs::create_dir_all(&folder).expect("a folder");
    let stanza = |n: u16| format!("[[reservation]]\nname = \"p{n}\"\ntcp = {}\nuser = 0\n", FIRST + 4 * n);
    for first in (0..count).step_by(100) {
        let text: String = (first..count.min(first + 100)).map(stanza).collect();
        fs::write(folder.join(format!("bench-{first:05}.toml")), text).expect("a file");
    }
}

fn main() {
    let Some(machine) = Machine::of_benchmark(env!("CARGO_BIN_EXE_portkeep"), "bench") else { return };
    machine.portkeep(&["up"]).ok();

    // Reservations in force stay so without the agent, so the costs are measured without it. One reservation is
    // measured once before and once after the many, because a machine is not the same from one minute to the next.
    let with = |count: u16| {
        declare(&machine, count);
        let agent = Agent::start(&machine);
        let (took, memory) = (agent.took, agent.memory());
        agent.stop();
        (took, memory, costs())
    };
    let (one, one_memory, before) = with(1);
    let (many, many_memory, full) = with(MANY);
    let (adopted, ..) = with(MANY);
    let (.., after) = with(1);
    let few: Vec<f64> = before.into_iter().zip(after).map(|(before, after)| (before + after) / 2.0).collect();
    machine.portkeep(&["down"]).ok();

    println!("{}.\n", report::machine());
    println!("| what | 1 | 10,000 | ratio | at most |\n|---|---:|---:|---:|---:|");
    let seconds = |took: Duration| format!("{:.3} s", took.as_secs_f64());
    let row = |what: &str, a: String, b: String, ratio: f64, limit: &str| {
        println!("| {what} | {a} | {b} | {ratio:.2} | {limit} |");
    };
    let ratio = many.as_secs_f64() / one.as_secs_f64();
    row("agent: from start to answering, all in force", seconds(one), seconds(many), ratio, "1 s");
    let ratio = adopted.as_secs_f64() / one.as_secs_f64();
    row("the same, finding them in force", seconds(one), seconds(adopted), ratio, "1 s");
    for (what, a, b) in
        [("agent: memory", one_memory.0, many_memory.0), ("agent: most memory", one_memory.1, many_memory.1)]
    {
        row(
            what,
            format!("{:.1} MB", a as f64 / 1e3),
            format!("{:.1} MB", b as f64 / 1e3),
            b as f64 / a as f64,
            "30 MB",
        );
    }
    for (what, (a, b)) in
        ["look-up of a token", "socket + bind, port not reserved + close", "socket + bind, reserved port + close"]
            .into_iter()
            .zip(few.into_iter().zip(full))
    {
        row(what, format!("{a:.0} ns"), format!("{b:.0} ns"), b / a, "");
    }
}
