//! `run` as another user, on ports that are reserved already, with braces in arguments, and without what it leaves running.

use std::{fs, thread, time::Duration};

use portkeep_testkit::{Outcome, eventually, kernel_or_skip, machine::Machine};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");

/// A machine with kernel enforcement.
fn ready(test: &str) -> Option<Machine> {
    let machine = kernel_or_skip(test).then(|| Machine::new(PORTKEEP, test))?;
    machine.portkeep(&["up"]).ok();
    Some(machine)
}

/// A shell command that binds `$PORT`, and prints how that went.
const BIND: &str = "python3 -c 'import os, socket\n\
                    try: socket.socket().bind((\"\", int(os.environ[\"PORT\"]))); print(\"bound\")\n\
                    except OSError as e: print(e.strerror)'";

#[test]
fn a_command_runs_as_another_user_on_ports_that_root_reserved() {
    let Some(machine) = ready("run-user") else { return };
    let script = format!("id -u; id -G; grep CapEff /proc/self/status; echo $USER $LOGNAME $HOME $PORT; {BIND}");
    let outcome = machine.portkeep(&["run", "--user", "nobody", "--", "sh", "-c", &script]).ok();
    assert_eq!(
        (outcome.out.as_str(), outcome.err.as_str()),
        ("65534\n65534\nCapEff:\t0000000000000000\nnobody nobody /nonexistent 61000\nbound\n", "")
    );
    // With the scope `user`, it is the user of the command.
    let script = format!("{BIND}; {PORTKEEP} list --json");
    let outcome = machine.portkeep(&["run", "--user", "65534", "--scope", "user", "--", "sh", "-c", &script]);
    let (bound, list) = outcome.out.split_once('\n').unwrap_or_else(|| panic!("{outcome:?}"));
    assert_eq!(bound, "bound", "{outcome:?}");
    // (A build folder may be closed to this user.)
    if let Ok(list) = serde_json::from_str::<serde_json::Value>(list) {
        assert_eq!((&list[0]["scope"]["kind"], &list[0]["owner"]["uid"]), (&json!("user"), &json!(65534)), "{list}");
    }
    // Its status is that of the command.
    assert_eq!(machine.portkeep(&["run", "--user", "nobody", "--", "sh", "-c", "exit 7"]).code, Some(7));
    machine.portkeep(&["run", "--user", "nobody", "--", "/no/such"]).fails(127, &["/no/such"]);
    machine.portkeep(&["run", "--user", "no-such", "--", "true"]).fails(125, &["there is no user no-such"]);
    machine.portkeep_as_nobody(&["run", "--user", "root", "--", "true"]).fails(125, &["--user requires root"]);
}

#[test]
fn a_command_runs_on_the_ports_of_a_persistent_reservation() {
    let Some(machine) = ready("run-reservation") else { return };
    let _agent = machine.agent(machine.command(&["agent"]));
    machine.portkeep(&["persist", "add", "--name", "my-web", "--tcp", "8443", "--user", "nobody"]).ok();
    let script = format!("echo $0 $PORT $MY_WEB_PORT $PORTS $PORTKEEP_ENFORCEMENT ${{PORTKEEP_TOKEN:+token}}; {BIND}");
    let run = |words: &[&str]| {
        machine.portkeep(&[&["run", "--reservation", "my-web"], words, &["--", "sh", "-c", &script, "{PORT}"]].concat())
    };
    let outcome = run(&["--user", "nobody"]).ok();
    assert_eq!((outcome.out.as_str(), outcome.err.as_str()), ("8443 8443 8443 8443 kernel token\nbound\n", ""));
    // Root is not the user that it is for.
    let outcome = run(&[]).ok();
    assert!(outcome.out.ends_with("Address already in use\n"), "{outcome:?}");
    outcome.reports(&[
        "warning: the reservation my-web is for user nobody, and the command runs as root",
        "--user nobody",
    ]);
    // A private ephemeral range can be beside it.
    let script = "echo $PORT $PORTKEEP_EPHEMERAL";
    let words = ["run", "--reservation", "my-web", "--user", "nobody", "-e", "5", "--", "sh", "-c", script];
    assert_eq!(machine.portkeep(&words).ok().out, "8443 61000-61004\n");

    machine.portkeep(&["run", "--reservation", "other", "--", "true"]).fails(125, &["no persistent reservation other"]);
    machine.portkeep(&["run", "--reservation", "my-web", "-n2", "--", "true"]).fails(125, &["--count"]);
    let list = machine.portkeep(&["list", "--json"]).ok().json();
    assert_eq!((list.as_array().unwrap().len(), &list[0]["name"]), (1, &json!("my-web")));
}

#[test]
fn braces_can_be_meant_literally() {
    let Some(machine) = ready("run-braces") else { return };
    let said = machine.portkeep(&["run", "--", "echo", "{PORT}", "{{PORT}}", "{{PORT7}}", "{{x}}"]).ok();
    assert_eq!(said.out, "61000 {PORT} {PORT7} {{x}}\n");
    let said = machine.portkeep(&["run", "--no-substitute", "--", "echo", "{PORT}", "{PORT7}"]).ok();
    assert_eq!(said.out, "{PORT} {PORT7}\n");
}

#[test]
fn a_signal_while_the_command_is_started_ends_it() {
    let Some(machine) = ready("run-signal") else { return };
    for round in 0..60 {
        let mut run = machine.command(&["run", "--", "sleep", "20"]).spawn().unwrap();
        thread::sleep(Duration::from_micros(250) * round);
        kill_process(Pid::from_child(&run), Signal::TERM).unwrap();
        // `None`: `run` was not ready yet to pass signals on.
        let code = run.wait().unwrap().code();
        assert!(matches!(code, None | Some(143)), "round {round}: {code:?}");
    }
    assert_eq!(machine.portkeep(&["list", "--json"]).ok().json(), json!([]));
}

#[test]
fn r12_main_ends_with_the_command_and_names_what_it_left() {
    for up in [true, false] {
        if !kernel_or_skip("run-main") {
            return;
        }
        let machine = Machine::new(PORTKEEP, "run-main");
        if up {
            machine.portkeep(&["up"]).ok();
        }
        let script = "sleep 60 </dev/null >/dev/null 2>&1 & echo $!";
        let outcome = machine.portkeep(&["run", "--main", "--", "sh", "-c", script]).ok();
        let pid: i32 = outcome.out.trim().parse().unwrap();
        let named = format!("warning: the command left pid {pid} (sleep) running; 61000 is no longer reserved");
        outcome.reports(&[&named]);
        if up {
            assert_eq!(machine.portkeep(&["list", "--json"]).ok().json(), json!([]));
        } else {
            assert!(machine.nothing_pinned());
        }
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        // As a zombie it is in no cgroup any more.
        let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        eventually(|| stat().is_empty() || stat().contains(") Z "));
        let outcome = machine.portkeep(&["run", "--main", "--", "true"]).ok();
        assert_eq!(outcome.err, "");
        machine.portkeep(&["down"]).ok();
        machine.is_clean();
    }
}

#[test]
fn a_parallel_test_run_of_an_ordinary_user_gets_one_line() {
    if !kernel_or_skip("run-once") {
        return;
    }
    let machine = Machine::new(PORTKEEP, "run-once");
    let copy = machine.for_everybody(PORTKEEP);
    let script = format!("for i in 1 2 3 4 5 6; do {copy} run -e5 -n1 -- true & done; wait; {copy} run --both -- true");
    let job = || Outcome::from(machine.as_nobody(&["sh", "-c", &script]).output().unwrap()).ok();
    for _ in 0..2 {
        let outcome = job();
        assert_eq!(outcome.err.lines().count(), 1, "{outcome:?}");
        outcome.reports(&["only held", "no private ephemeral range"]);
    }
    machine.portkeep(&["up"]).ok();
    let script = script.replace("-e5", "");
    let outcome = Outcome::from(machine.as_nobody(&["sh", "-c", &script]).output().unwrap()).ok();
    assert_eq!(outcome.err.lines().count(), 1, "{outcome:?}");
    outcome.reports(&["no cgroup of its own"]);
}
