//! A program in the dialect of Windows, built as C and as C++ without a change.

use std::{
    path::{Path, PathBuf},
    process::Output,
};

use portkeep_testkit::{TestCgroup, World};

use crate::{
    compiler::{Kit, has, kit, source, start_agent, text},
    skipped,
};

/// The program, once for each language and compiler here.
fn programs(kit: &Kit, test: &str) -> Vec<PathBuf> {
    let source = source("ported.c");
    let builds: [(&str, &[&str]); 6] = [
        ("cc", &["-xc"]),
        ("gcc", &["-xc", "-std=c11", "-O2", "-D_FORTIFY_SOURCE=2"]),
        ("clang-19", &["-xc", "-std=c11"]),
        ("g++", &["-xc++", "-std=c++17"]),
        ("g++", &["-xc++", "-std=c++17", "-O2", "-D_FORTIFY_SOURCE=2"]),
        ("clang++-19", &["-xc++", "-std=c++17"]),
    ];
    builds
        .iter()
        .filter(|(compiler, ..)| {
            let there = has(compiler);
            if !there {
                skipped(test, &format!("no {compiler}"));
            }
            there
        })
        .map(|(compiler, options)| kit.build(compiler, options, &source))
        .collect()
}

fn run(kit: &Kit, program: &Path, arguments: &str) -> Output {
    kit.command(program).args(arguments.split(' ')).output().expect("the program starts")
}

fn lines(output: &Output) -> Vec<String> {
    text(output).lines().map(str::to_owned).collect()
}

#[track_caller]
fn succeeds(kit: &Kit, program: &Path, arguments: &str, port: Option<u16>, count: u16) {
    let output = run(kit, program, arguments);
    let lines = lines(&output);
    assert_eq!(output.status.code(), Some(0), "{arguments}: {lines:?}");
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(lines[0], "acquired: 16 bytes");
    let (ports, token) = lines[1].split_once(" more, token ").expect("a token");
    let (start, more) = ports.split_once(" and ").expect("a number of ports");
    let start: u16 = start.strip_prefix("ports ").expect("a port").parse().expect("a number");
    assert_eq!(more, (count - 1).to_string());
    assert!(port.is_none_or(|port| port == start) && start != 0, "{lines:?}");
    assert_ne!(token.parse::<i64>().expect("a number"), 0);
    assert_eq!(lines[2], "released: 0 bytes");
}

#[track_caller]
fn fails(kit: &Kit, program: &Path, arguments: &str, last: &str) {
    let output = run(kit, program, arguments);
    let lines = lines(&output);
    assert_eq!(output.status.code(), Some(1), "{arguments}: {lines:?}");
    assert_eq!(lines.last().map(String::as_str), Some(last), "{arguments}");
}

#[test]
fn a_program_of_windows_acquires_and_releases() {
    let test = "a_program_of_windows_acquires_and_releases";
    let Some(kit) = kit(test) else { return };
    let Some(world) = World::enter(test) else { return };
    let _agent = start_agent(&world);
    for program in programs(kit, test) {
        succeeds(kit, &program, "2 1 6 5000 20", Some(5000), 20);
        succeeds(kit, &program, "2 2 17 5000 20", Some(5000), 20);
        succeeds(kit, &program, "2 2 17 0 20", None, 20);
        succeeds(kit, &program, "23 1 6 0 64", None, 64);
        succeeds(kit, &program, "23 2 17 5000 1", Some(5000), 1);
        succeeds(kit, &program, "10 1 6 61100 3", Some(61100), 3);
        succeeds(kit, &program, "2 0 0 0 64", None, 64);
    }
}

#[test]
fn a_program_of_windows_fails_with_the_numbers_of_windows() {
    let test = "a_program_of_windows_fails_with_the_numbers_of_windows";
    let Some(kit) = kit(test) else { return };
    let Some(world) = World::enter(test) else { return };
    let _agent = start_agent(&world);
    let taken = portkeep::Reservation::tcp().at(5010).ports(1).acquire().expect("a reservation of this process");
    for program in programs(kit, test) {
        let acquire = |number: u32| format!("acquire: error {number}");
        fails(kit, &program, "2 1 6 5000 20", &acquire(10048));
        succeeds(kit, &program, "2 2 17 5000 20", Some(5000), 20);
        fails(kit, &program, "2 3 1 5000 20", &acquire(10045));
        fails(kit, &program, "2 1 6 0 60000", &acquire(10055));
        fails(kit, &program, "2 1 6 65530 20", &acquire(10022));
        fails(kit, &program, "2 1 6 0 0", &acquire(10022));
        fails(kit, &program, "2 1 17 0 1", "socket: error 10043");
        fails(kit, &program, "99 1 6 0 1", "socket: error 10047");
        fails(kit, &program, "2 1 6 70000 1", "the first port is out of range");
        fails(kit, &program, "2 1 6 0 -1", "the number of ports is negative");
        let usage = text(&kit.command(&program).output().expect("the program starts"));
        let name = program.display();
        assert_eq!(usage, format!("usage: {name} FAMILY TYPE PROTOCOL FIRST COUNT\n{name} 2 2 17 5000 20\n"));
    }
    drop(taken);
}

#[test]
fn a_program_of_windows_runs_without_kernel_enforcement() {
    let test = "a_program_of_windows_runs_without_kernel_enforcement";
    let Some(kit) = kit(test) else { return };
    let Some(_world) = World::enter(test) else { return };
    // A cgroup beside the sandbox, where no BPF program of Portkeep is attached.
    let outside = TestCgroup::new("held").expect("a cgroup");
    for program in programs(kit, test) {
        let script = format!("echo $$ >{}/cgroup.procs; exec \"$0\" 2 1 6 0 20", outside.path().display());
        let output = kit.command("sh").arg("-c").arg(script).arg(&program).output().expect("the program starts");
        let lines = lines(&output);
        assert_eq!(output.status.code(), Some(0), "{lines:?}");
        assert_eq!(lines[2], "released: 0 bytes");
    }
}

#[test]
fn usage_patterns_work_without_kernel_enforcement() {
    let test = "usage_patterns_work_without_kernel_enforcement";
    let Some(kit) = kit(test) else { return };
    let Some(_world) = World::enter(test) else { return };
    let outside = TestCgroup::new("held").expect("a cgroup");
    let program = kit.build("cc", &["-std=c11"], &crate::compiler::source("held.c"));
    let script = format!("echo $$ >{}/cgroup.procs; exec \"$0\"", outside.path().display());
    let output = kit.command("sh").arg("-c").arg(script).arg(&program).output().expect("the program starts");
    assert!(output.status.success(), "{}", text(&output));
}
