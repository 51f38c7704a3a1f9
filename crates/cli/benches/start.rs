//! The cost of starting a command with ports of its own: `portkeep run -- true` beside `true`, in turns, one after the other
//! and with a pause before each; and of `who`. The real command, in a cgroup and a network namespace of its own, with kernel
//! enforcement up.
//!
//! `cargo bench -p portkeep-cli --bench start [-- --write]` as root. With `--write` the table goes into `benchmarks.md`.

use std::{
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use portkeep_testkit::{
    machine::{Machine, keep_below},
    report::{machine as described, median, put_into_benchmarks},
};

const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");
/// The rounds of each command, and of each command with a pause before.
const ROUNDS: [usize; 2] = [301, 41];
/// Longer than an RCU grace period, so that the work of one start does not help the next.
const PAUSE: Duration = Duration::from_millis(60);

/// A command, and the number of milliseconds that it may need more than `true`, with the reason if it needs more.
type Side = (&'static str, &'static [&'static str], Option<(f64, &'static str)>);

const SIDES: [Side; 5] = [
    ("`true`", &["true"], None),
    ("`portkeep run -- true`", &[PORTKEEP, "run", "--", "true"], Some((2.0, RUN))),
    ("the same without a cgroup (`--scope user`)", &[PORTKEEP, "run", "--scope", "user", "--", "true"], None),
    ("`portkeep who` of a free port", &[PORTKEEP, "who", "61500"], Some((5.0, WHO))),
    ("`portkeep --version`", &[PORTKEEP, "--version"], None),
];

const RUN: &str = "the program itself starts in the time of the last row; it forks the command's process and the one that keeps the \
                   ports, makes a cgroup, and removes it";
const WHO: &str = "the program itself starts in the time of the last row; the kernel goes through its tables of TCP sockets \
                   twice, for those that are bound and for the others";

fn main() {
    let Some(machine) = Machine::of_benchmark(PORTKEEP, "bench-start") else { return };
    machine.portkeep(&["up"]).ok();
    let close = measure(&machine, ROUNDS[0], Duration::ZERO);
    let alone = measure(&machine, ROUNDS[1], PAUSE);
    machine.portkeep(&["down"]).ok();

    let mut text = format!(
        "# What starting a command costs\n\nMade by `cargo bench -p portkeep-cli --bench start -- --write` as root. {}. Medians of \
         starts in turns, in ms, from the start to the end of the process; \"alone\" is with a pause of {} ms before each.\n\n\
         | what | ms | more than `true` | alone | more than `true` | at most | |\n|---|---:|---:|---:|---:|---:|---|\n",
        described(),
        PAUSE.as_millis(),
    );
    let mut reasons = String::new();
    for (((name, _, limit), close_by), by_itself) in SIDES.into_iter().zip(&close).zip(&alone) {
        let verdict = limit.map(|(limit, reason)| match close_by - close[0] {
            more if more > limit => (format!("{limit:.1}"), "MISSED", format!("- MISSED: {name}: {reason}.\n")),
            _ => (format!("{limit:.1}"), "kept", String::new()),
        });
        let (limit, verdict, why) = verdict.unwrap_or_default();
        reasons += &why;
        let more = |time: f64, bare: f64| if time == bare { String::new() } else { format!("{:.2}", time - bare) };
        let (one, other) = (more(*close_by, close[0]), more(*by_itself, alone[0]));
        text += &format!("| {name} | {close_by:.2} | {one} | {by_itself:.2} | {other} | {limit} | {verdict} |\n");
    }
    if !reasons.is_empty() {
        text += &format!("\n{reasons}");
    }
    println!("{text}");
    if std::env::args().any(|word| word == "--write") {
        put_into_benchmarks("start", &text).expect("the document is written");
    }
}

/// The median of each side in milliseconds.
fn measure(machine: &Machine, rounds: usize, pause: Duration) -> Vec<f64> {
    let mut times = SIDES.map(|_| Vec::new());
    for _ in 0..rounds {
        for ((name, words, _), times) in SIDES.iter().zip(&mut times) {
            let mut command = Command::new(words[0]);
            keep_below(machine.folder.path(), command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()));
            thread::sleep(pause);
            let begun = Instant::now();
            // `who` of a free port is 3.
            let code = command.status().expect("it starts").code();
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            assert!(matches!(code, Some(0 | 3)), "{name}: {code:?}");
        }
    }
    times.into_iter().map(median).collect()
}
