//! `acquire` in scripts, in the background and at a terminal: how long the ports are kept, and how that is said.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

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

fn reserved(machine: &Machine) -> Vec<serde_json::Value> {
    machine.portkeep(&["list", "--json"]).ok().json().as_array().unwrap().clone()
}

fn terminate(pid: &serde_json::Value) {
    let pid = Pid::from_raw(pid.as_i64().unwrap().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
}

#[test]
fn without_input_acquire_fails_and_says_what_to_add() {
    let Some(machine) = ready("scripts-no-input") else { return };
    let (closed, _) = std::io::pipe().unwrap();
    for input in [Stdio::null(), closed.into()] {
        let outcome = Outcome::from(machine.command(&["acquire"]).stdin(input).output().unwrap());
        assert_eq!(outcome.out, "");
        outcome.fails(2, &["standard input is at its end", "--hold", "--while-pid", "--for"]);
    }
    assert_eq!(reserved(&machine), [] as [serde_json::Value; 0]);
    // An input that is not at its end is enough, even if it ends later.
    machine.portkeep(&["acquire"]).ok();
}

#[test]
fn hold_lasts_until_a_signal() {
    let Some(machine) = ready("scripts-hold") else { return };
    let mut command = machine.command(&["acquire", "--hold"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("61000 tcp "), "{line}");
    assert_eq!(reserved(&machine)[0]["owner"]["pid"], child.id());
    terminate(&child.id().into());
    let outcome = Outcome::from(child.wait_with_output().unwrap()).ok();
    assert_eq!(outcome.err, "", "no terminal, no word about how it ends");
    assert_eq!(reserved(&machine).len(), 0);
}

#[test]
fn a_script_has_its_ports_while_it_runs() {
    let Some(machine) = ready("scripts-while") else { return };
    let script = format!(
        "line=$({PORTKEEP} acquire --count 2 --while-pid $$) || exit\n\
         echo ${{line%% *}}\n\
         {PORTKEEP} list --json"
    );
    let outcome = machine.shell(&script).ok();
    let (ports, list) = outcome.out.split_once('\n').unwrap();
    assert_eq!(ports, "61000-61001");
    let list: serde_json::Value = serde_json::from_str(list).unwrap();
    assert_eq!(list[0]["start"], 61000, "{list}");
    eventually(|| reserved(&machine).is_empty());
}

#[test]
fn a_time_is_kept_in_the_background() {
    let Some(machine) = ready("scripts-for") else { return };
    let said = machine.portkeep(&["acquire", "--for", "1h", "--json"]).ok();
    assert_eq!((said.err.as_str(), &said.json()["start"]), ("", &json!(61000)));
    let list = reserved(&machine);
    assert_eq!(list.len(), 1);
    let pid = &list[0]["owner"]["pid"];
    assert_eq!(list[0]["owner"]["comm"], "portkeep");
    assert_eq!(list[0]["owner"]["command"], "portkeep acquire --for 1h --json", "no internal option");
    // It keeps nothing of its caller's: no folder, and no stream.
    let open = machine.shell(&format!("readlink /proc/{pid}/cwd /proc/{pid}/fd/[012]")).ok();
    assert_eq!(open.out, "/\n/dev/null\n/dev/null\n/dev/null\n");
    // The failure of the process in the background is that of the command.
    machine.portkeep(&["acquire", "--ports", "61000", "--for", "1h"]).fails(1, &["61000/tcp belongs to pid"]);
    terminate(pid);
    eventually(|| reserved(&machine).is_empty());

    machine.portkeep(&["acquire", "--for", "0s"]).ok();
    assert_eq!(reserved(&machine).len(), 0, "that only tried");
    machine.portkeep(&["acquire", "--for", "100ms"]).ok();
    eventually(|| reserved(&machine).is_empty());
    // The first end counts.
    machine.portkeep(&["acquire", "--while-pid", "1", "--for", "100ms"]).ok();
    eventually(|| reserved(&machine).is_empty());
}

#[test]
fn ends_that_cannot_be_are_refused() {
    let Some(machine) = ready("scripts-ends") else { return };
    for (words, code, text) in [
        (["--while-pid", "999999999", "--udp"], 1, "no process has the number 999999999"),
        (["--while-pid", "0", "--udp"], 2, "0"),
        (["--for", "soon", "--udp"], 2, "90s, 10m or 1h30m"),
        (["--for", "10m", "--hold"], 2, "--hold"),
    ] {
        machine.portkeep(&[&["acquire"], &words[..]].concat()).fails(code, &[text]);
    }
    assert_eq!(reserved(&machine).len(), 0);
}

/// `script` gives a command a terminal, on which it types what comes on its own input, and Ctrl-D at its end.
fn at_a_terminal(machine: &Machine, command: &str) -> Outcome {
    machine.program(&["script", "-qec", command, "/dev/null"]).output().unwrap().into()
}

#[test]
fn a_terminal_shows_how_it_ends() {
    let Some(machine) = ready("scripts-terminal") else { return };
    let said = at_a_terminal(&machine, &format!("{PORTKEEP} acquire")).ok();
    assert!(said.out.contains("61000 tcp ") && said.out.contains("kept until Ctrl-D"), "{said:?}");
    // A shell with job control, as at a prompt.
    let said = at_a_terminal(&machine, &format!("bash -mc '{PORTKEEP} acquire & wait $!'"));
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.out.contains("runs in the background") && said.out.contains("--hold"), "{said:?}");
    let hold = format!("bash -mc '{PORTKEEP} acquire --hold & sleep 0.5; kill $!; wait $!'");
    let said = at_a_terminal(&machine, &hold).ok();
    assert!(said.out.contains("kept until Ctrl-C"), "{said:?}");
    let said = at_a_terminal(&machine, &format!("{PORTKEEP} acquire --for 1h30m")).ok();
    let pid = reserved(&machine)[0]["owner"]["pid"].clone();
    assert!(said.out.contains(&format!("kept for 1h 30m; `kill {pid}` ends that")), "{said:?}");
    terminate(&pid);
    eventually(|| reserved(&machine).is_empty());
}

#[test]
fn held_ports_are_kept_in_the_background_too() {
    if !kernel_or_skip("scripts-held") {
        return;
    }
    let machine = Machine::new(PORTKEEP, "scripts-held");
    let said = machine.portkeep_as_nobody(&["acquire", "--for", "1h", "--json"]).ok();
    assert!(said.err.contains("only held"), "{said:?}");
    let info = said.json();
    machine.enter_network();
    let bind = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let port: u16 = info["start"].as_u64().unwrap().try_into().unwrap();
        socket.bind(&std::net::SocketAddr::from(([0, 0, 0, 0], port)).into())
    };
    assert_eq!(bind().unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    terminate(&info["owner"]["pid"]);
    eventually(|| bind().is_ok());
}
