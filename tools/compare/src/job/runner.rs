//! A test process. A round: get 8 ports, prepare something, start a program
//! for each of them, which binds it some milliseconds later. A round is lost if
//! one of the programs does not get its port.

use std::{
    io::{self, BufRead, BufReader},
    path::Path,
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use fastrand::Rng;
use serde::{Deserialize, Serialize};

use super::program::BOUND;
use crate::{allocator::Allocator, kit::Kit, subject::Subject};

pub(crate) const PORTS: u16 = 8;
/// The time for writing configuration files, or filling a database.
const PREPARING: std::ops::Range<u64> = 0..20_000;
/// The delay of a program before it binds its port.
const STARTING: std::ops::Range<u64> = 0..10_000;

/// The results of the rounds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) rounds: u32,
    /// One of the programs did not get its port.
    pub(crate) lost: u32,
    /// The subject gave no ports.
    pub(crate) refused: u32,
}

pub(super) fn run(subject: Subject, kit: &Path, rounds: u32, seed: u64) -> Result<()> {
    let kit = Kit::at(kit);
    let mut rng = Rng::with_seed(seed);
    let mut allocator = Allocator::start(kit.allocator(subject))?;
    println!("ready");
    io::stdin().lock().read_line(&mut String::new())?;
    let mut tally = Tally::default();
    for _ in 0..rounds {
        tally.rounds += 1;
        match allocator.get(PORTS)? {
            Err(_) => tally.refused += 1,
            Ok(taken) => {
                pause(&mut rng, PREPARING);
                allocator.hand()?;
                tally.lost += u32::from(!all_bound(&kit, &taken.ports, &mut rng)?);
                allocator.free()?;
            }
        }
    }
    println!("{}", serde_json::to_string(&tally)?);
    Ok(())
}

fn all_bound(kit: &Kit, ports: &[u16], rng: &mut Rng) -> Result<bool> {
    let start = |port: &u16| -> Result<Child> {
        let mut program = kit.job("program");
        program.arg(port.to_string()).arg(rng.u64(STARTING).to_string());
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting a program")
    };
    let mut programs = ports.iter().map(start).collect::<Result<Vec<_>>>()?;
    let mut bound = 0;
    for program in &mut programs {
        let mut line = String::new();
        BufReader::new(program.stdout.take().context("its output")?).read_line(&mut line)?;
        bound += usize::from(line.trim_end() == BOUND);
    }
    for mut program in programs {
        drop(program.stdin.take());
        program.wait()?;
    }
    Ok(bound == ports.len())
}

fn pause(rng: &mut Rng, range: std::ops::Range<u64>) {
    thread::sleep(Duration::from_micros(rng.u64(range)));
}
