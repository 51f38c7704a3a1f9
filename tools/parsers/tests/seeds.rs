//! Every parser with its seeds, and with seeds that were changed at random. The changes are the same in each run, so a
//! failure can be repeated. `cargo xtask fuzz` searches further.

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
};

use fastrand::Rng;
use portkeep_parsers::{TARGETS, Target};

/// How many changed inputs each parser gets.
const ROUNDS: usize = 5_000;

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/seeds"))
}

fn entries(folder: PathBuf) -> BTreeSet<PathBuf> {
    fs::read_dir(folder).expect("a folder of seeds").map(|entry| entry.unwrap().path()).collect()
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    entries(folder().join(name)).into_iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Some bytes of `other`, cut at random.
fn part<'a>(other: &'a [u8], random: &mut Rng) -> &'a [u8] {
    let start = random.usize(..=other.len());
    &other[start..random.usize(start..=other.len())]
}

/// One change, of the kinds that a fuzzer makes.
fn change(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Rng) {
    let at = random.usize(..=input.len());
    let until = random.usize(at..=input.len().min(at + 8));
    match random.u8(..6) {
        0 if at < input.len() => input[at] ^= 1 << random.u8(..8),
        1 if at < input.len() => input[at] = *random.choice(b"\0\n\"#-,:=.[]{}09 \x7f\xff").unwrap(),
        2 => drop(input.drain(at..until)),
        3 => {
            let again = input[at..until].to_vec();
            input.splice(at..at, again);
        }
        4 => {
            let number =
                *random.choice(&["0", "1", "-1", "65535", "65536", "4294967295", "18446744073709551616"]).unwrap();
            input.splice(at..until, number.bytes());
        }
        _ => {
            let other = part(random.choice(seeds).unwrap(), random).to_vec();
            input.splice(at..until, other);
        }
    }
}

fn holds(name: &str, target: Target, input: &[u8]) {
    let result = catch_unwind(AssertUnwindSafe(|| target(input)));
    assert!(result.is_ok(), "{name} fails with the input b\"{}\"", input.escape_ascii());
}

#[test]
fn every_target_has_seeds() {
    let targets: BTreeSet<_> = TARGETS.iter().map(|(name, _)| folder().join(name)).collect();
    assert_eq!(entries(folder()), targets);
}

#[test]
fn seeds_and_changed_seeds_are_read_or_refused() {
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        seeds.iter().for_each(|seed| holds(name, *target, seed));
        let mut random = Rng::with_seed(0x706f_7274);
        for _ in 0..ROUNDS {
            let mut input = random.choice(&seeds).unwrap().clone();
            // Few changes keep most of the structure.
            for _ in 0..1 << random.u8(..4) {
                change(&mut input, &seeds, &mut random);
            }
            holds(name, *target, &input);
        }
    }
}
