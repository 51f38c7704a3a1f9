//! The cost of starting a command with ports of its own: `portkeep run -- true` beside `true`, in turns. The real command, in a
//! cgroup and a network namespace of its own, with kernel enforcement up.
//!
//! `cargo bench -p portkeep-cli --bench start` as root.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use portkeep_testkit::{
    machine::{Machine, keep_below},
    report::median,
};

const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");
const ROUNDS: usize = 301;
/// `run` may add so many milliseconds.
const LIMIT: f64 = 2.0;

fn main() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: not root");
        return;
    }
    let machine = Machine::new(PORTKEEP, "bench-start");
    machine.enter_network();
    machine.cgroup.enter(std::process::id()).expect("into the cgroup");
    machine.portkeep(&["up"]).ok();

    let mut sides: Vec<(&[&str], Vec<f64>)> = vec![
        (&["true"], Vec::new()),
        (&[PORTKEEP, "run", "--", "true"], Vec::new()),
        (&[PORTKEEP, "run", "--scope", "user", "--", "true"], Vec::new()),
        (&[PORTKEEP, "--version"], Vec::new()),
    ];
    for _ in 0..ROUNDS {
        for (words, times) in &mut sides {
            let mut command = Command::new(words[0]);
            keep_below(machine.folder.path(), command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()));
            let begun = Instant::now();
            assert!(command.status().expect("it starts").success(), "{words:?}");
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
    }
    machine.portkeep(&["down"]).ok();

    let mut medians = sides.into_iter().map(|(_, times)| median(times));
    let mut next = || medians.next().expect("four sides");
    let (bare, run, user, version) = (next(), next(), next(), next());
    println!("| what | ms | more than `true` | at most |\n|---|---:|---:|---:|");
    println!("| `true` | {bare:.2} | | |");
    println!("| `portkeep run -- true` | {run:.2} | {:.2} | {LIMIT:.1} |", run - bare);
    println!("| the same without a cgroup (`--scope user`) | {user:.2} | {:.2} | |", user - bare);
    println!("| `portkeep --version` | {version:.2} | {:.2} | |", version - bare);
}
