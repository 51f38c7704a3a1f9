//! A checker that was never seen to fail proves nothing: each of these small damages to the programs' source is found.

use std::{fs, path::Path, process::Command};

use portkeep_interleave::explore_weak;

/// The name of the mutation, the first scenario that shows it, its file, the text before and after.
type Mutation = (&'static str, &'static str, &'static str, &'static str, &'static str);

const MUTATIONS: &[Mutation] = include!("mutations/list.rs");
/// Only CPUs whose stores are seen late show these.
const LATE: &[Mutation] = include!("mutations/late.rs");

fn source() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../crates/kernel/bpf"))
}

/// As `cargo xtask bpf` does it.
fn compile(folder: &Path) -> Option<Vec<u8>> {
    let object = folder.join("mutant.o");
    let output = Command::new("clang-19")
        .current_dir(folder)
        .args([
            "-nostdinc",
            "-I.",
            "-g",
            "-O2",
            "-target",
            "bpfel",
            "-mcpu=v3",
            "-Wno-everything",
            "-Werror=implicit-function-declaration",
        ])
        .args(["-c", "portkeep.bpf.c", "-o"])
        .arg(&object)
        .output()
        .ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(fs::read(object).expect("clang has written the object"))
}

/// How the scenario breaks with this object.
fn fault(object: &[u8], scenario: &str, late: u32) -> Option<String> {
    let report = explore_weak(object, scenario, true, late).expect("the object and the scenario can be read");
    report.outcome.err().map(|found| found.fault)
}

fn each_is_found(mutations: &[Mutation], late: u32) {
    if Command::new("clang-19").arg("--version").output().is_err() {
        portkeep_testkit::note("SKIPPED mutations: clang-19 is not installed, nothing was mutated");
        return;
    }
    let shipped = fs::read(source().join("portkeep.bpf.o")).expect("the checked-in object can be read");
    let mut missed = Vec::new();
    for (what, scenario, file, before, after) in mutations {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        for entry in fs::read_dir(source()).expect("the source can be listed") {
            let entry = entry.expect("the source can be listed");
            fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("a file can be copied");
        }
        let path = folder.path().join(file);
        let text = fs::read_to_string(&path).expect("the file can be read");
        assert_eq!(text.matches(before).count(), 1, "{what}: {file} has changed, and so must this mutation");
        fs::write(&path, text.replace(before, after)).expect("the file can be written");
        let object = compile(folder.path()).expect("clang-19 is there");
        // A scenario that the undamaged object breaks as well proves nothing.
        assert_eq!(fault(&shipped, scenario, late), None, "{scenario} with the checked-in object");
        match fault(&object, scenario, late) {
            Some(fault) => println!("| {what} | {scenario} | {fault} |"),
            None => missed.push(*what),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:#?}");
}

#[track_caller]
fn all_found(mutations: &'static [Mutation], late: u32) {
    // The search is as deep as a schedule is long.
    let search = std::thread::Builder::new().stack_size(1 << 30).spawn(move || each_is_found(mutations, late));
    search.expect("a thread can be started").join().expect("every mutation is found");
}

#[test]
fn every_mutation_is_found() {
    all_found(MUTATIONS, 0);
}

#[test]
fn every_missing_barrier_is_found() {
    all_found(LATE, 1);
}
