//! `--wait`: a request that waits until other processes give the ports up.

use std::{
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    process::{Child, Command, Stdio},
    thread,
};

use portkeep_testkit::{Outcome, kernel_or_skip, machine::Machine};
use rustix::process::{Pid, Signal, kill_process};

const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");

/// A machine with kernel enforcement.
fn ready(test: &str) -> Option<Machine> {
    let machine = kernel_or_skip(test).then(|| Machine::new(PORTKEEP, test))?;
    machine.portkeep(&["up"]).ok();
    Some(machine)
}

/// A command that has said that it waits.
struct Waiting {
    child: Child,
    err: BufReader<std::process::ChildStderr>,
    note: String,
}

impl Waiting {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut err = BufReader::new(child.stderr.take().unwrap());
        let mut note = String::new();
        err.read_line(&mut note).unwrap();
        assert!(note.starts_with("note: waiting: "), "{note}");
        Self { child, err, note }
    }

    fn end(self) -> Outcome {
        let Self { child, mut err, .. } = self;
        let mut outcome = Outcome::from(child.wait_with_output().unwrap());
        err.read_to_string(&mut outcome.err).unwrap();
        outcome
    }

    fn kill(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

#[test]
fn a_command_starts_when_the_reservation_before_it_ends() {
    let Some(machine) = ready("wait-reservation") else { return };
    let holding = machine.hold(&["--count", "2", "--label", "first"]);
    let waiting = Waiting::start(machine.command(&["run", "--ports", "61001", "--wait", "--", "echo", "got {PORT}"]));
    assert!(waiting.note.contains("61001/tcp belongs to pid") && waiting.note.contains("first"), "{}", waiting.note);
    holding.let_go();
    let outcome = waiting.end().ok();
    assert_eq!((outcome.out.as_str(), outcome.err.as_str()), ("got 61001\n", ""));
}

#[test]
fn an_ordinary_user_waits_for_a_socket_to_close() {
    let Some(machine) = ready("wait-socket") else { return };
    let copy = machine.for_everybody(PORTKEEP);
    // The BPF programs see the sockets of processes in the cgroup.
    let script = "import socket, sys; s = socket.socket(); s.bind(('', 61005)); print(flush=True); sys.stdin.read()";
    let mut bound = machine.program(&["python3", "-c", script]);
    let mut bound = bound.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(bound.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    let command = machine.as_nobody(&[&copy, "acquire", "--ports", "61005", "--wait=1h", "--for", "0s"]);
    let waiting = Waiting::start(command);
    assert!(waiting.note.contains("61005/tcp is in use"), "{}", waiting.note);
    drop(bound.stdin.take());
    assert!(waiting.end().ok().out.starts_with("61005 tcp "));
    bound.wait().unwrap();
}

#[test]
fn a_full_pool_is_waited_for() {
    let Some(machine) = ready("wait-pool") else { return };
    let holding = machine.hold(&["--count", "4536"]);
    let waiting = Waiting::start(machine.command(&["acquire", "--count", "4000", "--wait", "--for", "0s"]));
    holding.let_go();
    assert!(waiting.end().ok().out.starts_with("61"));
}

#[test]
fn r13_the_limit_and_a_signal_end_the_wait() {
    let Some(machine) = ready("wait-limit") else { return };
    let holding = machine.hold(&[]);
    let because = &["waited 100ms: 61000/tcp belongs to pid"];
    machine.portkeep(&["acquire", "--ports", "61000", "--wait=100ms"]).fails(1, because);
    machine.portkeep(&["run", "--ports", "61000", "--wait=100ms", "--", "true"]).fails(125, because);
    for (signal, number) in [(Signal::TERM, 15), (Signal::INT, 2), (Signal::HUP, 1)] {
        for words in
            [&["acquire", "--ports", "61000", "--wait"][..], &["run", "--ports", "61000", "--wait", "--", "true"]]
        {
            let waiting = Waiting::start(machine.command(words));
            waiting.kill(signal);
            waiting.end().fails(128 + number, &["while others had the ports; nothing is reserved"]);
        }
    }
    holding.let_go();
    assert_eq!(machine.portkeep(&["list", "--json"]).ok().json(), serde_json::json!([]));
    assert_eq!(machine.subgroups(), Vec::<String>::new());
}

#[test]
fn a_run_that_is_killed_leaves_no_process_that_waits() {
    let Some(machine) = ready("wait-killed") else { return };
    let holding = machine.hold(&[]);
    let words = ["run", "--ports", "61000", "--wait", "--", "sh", "-c", "echo started; exec sleep 1000"];
    let waiting = Waiting::start(machine.command(&words));
    waiting.kill(Signal::KILL);
    // Its output ends when no process has it open any more.
    let outcome = waiting.end();
    assert_eq!((outcome.code, outcome.out.as_str()), (None, ""), "{outcome:?}");
    holding.let_go();
    assert_eq!(machine.portkeep(&["run", "--ports", "61000", "--", "echo", "{PORT}"]).ok().out, "61000\n");
    assert_eq!(machine.subgroups(), Vec::<String>::new());
}

#[test]
fn signals_for_the_command_do_not_end_the_wait() {
    let Some(machine) = ready("wait-usr") else { return };
    let holding = machine.hold(&[]);
    let waiting = Waiting::start(machine.command(&["run", "--ports", "61000", "--wait", "--", "echo", "got {PORT}"]));
    for signal in [Signal::USR1, Signal::USR2] {
        waiting.kill(signal);
    }
    holding.let_go();
    assert_eq!(waiting.end().ok().out, "got 61000\n");
}

#[test]
fn an_impossible_request_does_not_wait() {
    let Some(machine) = ready("wait-never") else { return };
    machine.portkeep(&["acquire", "--count", "5000", "--wait"]).fails(1, &["this needs 5000 ports"]);
    machine.portkeep_as_nobody(&["acquire", "--count", "2000", "--wait"]).fails(1, &["this needs 2000 ports", "quota"]);
    machine.portkeep_as_nobody(&["acquire", "--ports", "80", "--wait"]).fails(1, &["requires root"]);
    machine.portkeep(&["acquire", "--wait=soon"]).fails(2, &["90s, 10m or 1h30m"]);
}

#[test]
fn without_kernel_enforcement_held_ports_are_waited_for() {
    if !kernel_or_skip("wait-held") {
        return;
    }
    let machine = Machine::new(PORTKEEP, "wait-held");
    let copy = machine.for_everybody(PORTKEEP);
    thread::scope(|scope| {
        let work = || {
            machine.enter_network();
            let bound = TcpListener::bind(("127.0.0.1", 61005)).unwrap();
            let waiting =
                Waiting::start(machine.as_nobody(&[&copy, "acquire", "--ports", "61005", "--wait", "--for", "0s"]));
            drop(bound);
            assert!(waiting.end().ok().out.starts_with("61005 tcp held"));
        };
        scope.spawn(work).join().unwrap();
    });
}
