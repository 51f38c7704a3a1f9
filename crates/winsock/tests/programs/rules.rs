//! The conformance suite and its companions, as they are, and under tools that find errors without visible effects.

use std::process::Command;

use portkeep_testkit::World;

use crate::{
    compiler::{Kit, STRICT, has, kit, source, start_agent, text},
    skipped,
};

/// Each with the agent beside it, whose process id it is given.
const PROGRAMS: &[&str] =
    &["patterns.c", "overlapped.c", "provider.c", "pointers.c", "sockets.c", "shared.c", "declarations.c"];

#[track_caller]
fn passes(mut command: Command) {
    let output = command.output().expect("the program starts");
    let text = text(&output);
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
}

fn run(test: &str, name: &str) {
    let Some(kit) = kit(test) else { return };
    let Some(world) = World::enter(test) else { return };
    let program = kit.build("cc", STRICT, &source(name));
    with_agent(&world, kit.command(program));
    world.assert_empty();
}

fn with_agent(world: &World, mut command: Command) {
    let agent = start_agent(world);
    command.arg(agent.pid().to_string());
    passes(command);
}

#[test]
fn usage_patterns_work() {
    run("usage_patterns_work", "patterns.c");
}

#[test]
fn overlapped_operations_wait_and_report() {
    run("overlapped_operations_wait_and_report", "overlapped.c");
}

#[test]
fn requests_on_one_socket_are_followed_apart() {
    run("requests_on_one_socket_are_followed_apart", "shared.c");
}

#[test]
fn the_provider_interface_is_served() {
    run("the_provider_interface_is_served", "provider.c");
}

#[test]
fn no_pointer_crashes_the_caller() {
    run("no_pointer_crashes_the_caller", "pointers.c");
}

#[test]
fn ordinary_sockets_work() {
    run("ordinary_sockets_work", "sockets.c");
}

#[test]
fn the_static_library_works() {
    let test = "the_static_library_works";
    let Some(kit) = kit(test) else { return };
    let Some(world) = World::enter(test) else { return };
    // If only the archive is named, the linker uses it.
    let program = kit.build_static("cc", STRICT, &source("patterns.c"));
    with_agent(&world, Command::new(program));
}

fn conformance(world: &World, mut command: Command) {
    let _agent = start_agent(world);
    command.arg("agent");
    passes(command);
}

fn sanitized(kit: &Kit, test: &str, option: &str) {
    let probe = kit.folder().join("probe.c");
    std::fs::write(&probe, "int main(void) { return 0; }\n").expect("a file");
    let built = Command::new("cc").args([option, "-o"]).arg(kit.folder().join("probe")).arg(&probe).output();
    if !built.is_ok_and(|output| output.status.success()) {
        skipped(test, &format!("no {option}"));
        return;
    }
    let Some(world) = World::enter(test) else { return };
    for name in PROGRAMS.iter().chain(&["conformance.c"]) {
        let mut options = STRICT.to_vec();
        options.extend([option, "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]);
        let mut command = kit.command(kit.build("cc", &options, &source(name)));
        match *name {
            // The sanitizers look at the pointers of the system's own calls before the system does.
            "pointers.c" => passes({
                command.arg("codes");
                command
            }),
            "conformance.c" => conformance(&world, command),
            _ => with_agent(&world, command),
        }
    }
}

#[test]
fn the_c_programs_are_clean_under_address_sanitizer() {
    let test = "the_c_programs_are_clean_under_address_sanitizer";
    if let Some(kit) = kit(test) {
        sanitized(kit, test, "-fsanitize=address");
    }
}

#[test]
fn the_c_programs_are_clean_under_undefined_behaviour_sanitizer() {
    let test = "the_c_programs_are_clean_under_undefined_behaviour_sanitizer";
    if let Some(kit) = kit(test) {
        sanitized(kit, test, "-fsanitize=undefined");
    }
}

#[test]
fn the_c_programs_are_clean_under_valgrind() {
    let test = "the_c_programs_are_clean_under_valgrind";
    let Some(kit) = kit(test) else { return };
    if !has("valgrind") {
        skipped(test, "no valgrind");
        return;
    }
    let Some(world) = World::enter(test) else { return };
    for name in PROGRAMS.iter().chain(&["conformance.c"]) {
        // Valgrind reports every wrong pointer that goes to the kernel, and this program consists of such calls.
        if *name == "pointers.c" {
            continue;
        }
        let program = kit.build("cc", STRICT, &source(name));
        let mut command = kit.command("valgrind");
        command
            .args(["--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite", "-q"])
            .args(["--show-leak-kinds=definite"])
            .arg(format!("--suppressions={}", kit.suppressions().display()))
            .arg(format!("--suppressions={}", source("wrong-pointers.supp").display()))
            .arg(program);
        if *name == "conformance.c" { conformance(&world, command) } else { with_agent(&world, command) }
    }
}
