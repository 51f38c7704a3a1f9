//! The sample program of Microsoft's page, as the page has it: with a full stop
//! in an include line, as C and as C++.
//!
//! It is not part of this repository; the test takes it out of the page, where
//! that lies next to the checkout.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use portkeep_testkit::{TestCgroup, World};

use crate::{
    compiler::{Kit, has, kit, start_agent, text},
    skipped,
};

/// Where it lies, unless [`PLACE`] says otherwise.
const PAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/seed");
const PLACE: &str = "PORTKEEP_WINDOWS_PAGE";

fn place() -> PathBuf {
    std::env::var_os(PLACE).map_or_else(|| PAGES.into(), PathBuf::from)
}

fn extract() -> Option<String> {
    let page = fs::read_dir(place()).ok()?.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok()).next()?;
    page.split("```cpp\n")
        .filter_map(|block| block.split("```").next())
        .find(|block| block.contains("int wmain("))
        .map(str::to_owned)
}

/// The program, once for each language and compiler here.
fn programs(kit: &Kit, test: &str) -> Vec<PathBuf> {
    let Some(program) = extract() else {
        skipped(test, &format!("no page in {}, and {PLACE} names no other place", place().display()));
        return Vec::new();
    };
    let c = kit.folder().join("sample.c");
    let cpp = kit.folder().join("sample.cpp");
    fs::write(&c, &program).expect("a file");
    fs::write(&cpp, &program).expect("a file");
    let builds: [(&str, &[&str], &PathBuf); 6] = [
        ("cc", &[], &c),
        ("gcc", &["-std=c11", "-O2", "-D_FORTIFY_SOURCE=2"], &c),
        ("clang-19", &["-std=c11"], &c),
        ("g++", &["-std=c++17"], &cpp),
        ("g++", &["-std=c++17", "-O2", "-D_FORTIFY_SOURCE=2"], &cpp),
        ("clang++-19", &["-std=c++17"], &cpp),
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
        .map(|(compiler, options, source)| kit.build(compiler, options, source))
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
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert_eq!(lines[0], "socket function succeeded");
    assert_eq!(lines[1], "WSAIoctl(SIO_ACQUIRE_PORT_RESERVATION) succeeded, bytesReturned = 16");
    let (ports, token) = lines[2].split_once(", Token=").expect("a token");
    let (start, number) = ports.split_once(",  Number of Ports=").expect("a number of ports");
    let start: u16 = start.strip_prefix("  Starting port=").expect("a port").parse().expect("a number");
    assert_eq!(number, count.to_string());
    assert!(port.is_none_or(|port| port == start) && start != 0, "{lines:?}");
    assert_ne!(token.parse::<i64>().expect("a number"), 0);
    assert_eq!(lines[3], "WSAIoctl(SIO_RELEASE_PORT_RESERVATION) succeeded, bytesReturned = 0");
}

#[track_caller]
fn fails(kit: &Kit, program: &Path, arguments: &str, last: &str) {
    let output = run(kit, program, arguments);
    let lines = lines(&output);
    assert_eq!(output.status.code(), Some(1), "{arguments}: {lines:?}");
    assert_eq!(lines.last().map(String::as_str), Some(last), "{arguments}");
}

#[test]
fn the_sample_program_acquires_and_releases() {
    let test = "the_sample_program_acquires_and_releases";
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
fn the_sample_program_fails_as_it_should() {
    let test = "the_sample_program_fails_as_it_should";
    let Some(kit) = kit(test) else { return };
    let Some(world) = World::enter(test) else { return };
    let _agent = start_agent(&world);
    let taken = portkeep::Reservation::tcp().at(5010).ports(1).acquire().expect("a reservation of this process");
    for program in programs(kit, test) {
        let acquire = |number: u32| format!("WSAIoctl(SIO_ACQUIRE_PORT_RESERVATION) failed with error = {number}");
        fails(kit, &program, "2 1 6 5000 20", &acquire(10048));
        succeeds(kit, &program, "2 2 17 5000 20", Some(5000), 20);
        fails(kit, &program, "2 3 1 5000 20", &acquire(10045));
        fails(kit, &program, "2 1 6 0 60000", &acquire(10055));
        fails(kit, &program, "2 1 6 65530 20", &acquire(10022));
        fails(kit, &program, "2 1 6 0 0", &acquire(10022));
        fails(kit, &program, "2 1 17 0 1", "socket function failed with error = 10043");
        fails(kit, &program, "99 1 6 0 1", "socket function failed with error = 10047");
        fails(kit, &program, "2 1 6 70000 1", "Starting point must be either 0 or between 1 and 65,535");
        fails(kit, &program, "2 1 6 0 -1", "Number of ports must be a positive number");
        let usage = text(&kit.command(&program).output().expect("the program starts"));
        let name = program.display();
        assert!(
            usage.starts_with(&format!(
                "usage: {name} <addressfamily> <type> <protocol> <StartingPort> <NumberOfPorts>\n"
            ))
        );
        assert!(usage.contains(&format!("{name} example usage\n   {name} 2 2 17 5000 20\n")), "{usage}");
    }
    drop(taken);
}

#[test]
fn the_sample_program_runs_without_kernel_enforcement() {
    let test = "the_sample_program_runs_without_kernel_enforcement";
    let Some(kit) = kit(test) else { return };
    let Some(_world) = World::enter(test) else { return };
    // A cgroup beside the sandbox, where no BPF program of Portkeep is attached.
    let outside = TestCgroup::new("held").expect("a cgroup");
    for program in programs(kit, test) {
        let script = format!("echo $$ >{}/cgroup.procs; exec \"$0\" 2 1 6 0 20", outside.path().display());
        let output = kit.command("sh").arg("-c").arg(script).arg(&program).output().expect("the program starts");
        let lines = lines(&output);
        assert_eq!(output.status.code(), Some(0), "{lines:?}");
        assert_eq!(lines[3], "WSAIoctl(SIO_RELEASE_PORT_RESERVATION) succeeded, bytesReturned = 0");
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
