//! The real binary, in a cgroup and a mount namespace of its own.

use std::{
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    process::Stdio,
};

use portkeep_testkit::{
    Outcome, eventually, kernel_or_skip,
    machine::{self, HELPER, Machine, answer},
};
use rustix::process::{Pid, Signal, kill_process};

const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");

macro_rules! machine {
    ($name:literal) => {
        match kernel_or_skip(concat!("commands::", $name)) {
            true => Machine::new(PORTKEEP, $name),
            false => return,
        }
    };
}

/// Started by the other tests as an outsider.
#[test]
#[ignore = "plays an outsider for the other tests"]
fn helper_binds() {
    machine::help();
}

/// A shell script that makes the helper bind `$1 $2`.
fn binds(transport: &str, port: &str) -> String {
    let helper = std::env::current_exe().unwrap();
    format!("{HELPER}=\"{transport} {port}\" {} --exact helper_binds --ignored --nocapture", helper.to_str().unwrap())
}

#[test]
fn up_is_idempotent_and_down_leaves_nothing() {
    let machine = machine!("up");
    let before = machine.portkeep(&["status", "--json"]);
    assert_eq!(before.code, Some(3), "{before:?}");
    assert_eq!(before.json()["up"], false);
    assert_eq!(before.json()["enforcement_here"], "held");

    let up = machine.portkeep(&["up", "--quota", "77"]).ok();
    assert!(up.out.starts_with("up\n"), "{up:?}");
    let again = machine.portkeep(&["up"]).ok();
    assert!(again.out.starts_with("already up\n"), "{again:?}");
    let other = machine.portkeep(&["up", "--pool", "50000-50099"]);
    assert_eq!(other.code, Some(1));
    assert!(other.err.contains("61000-65535, not 50000-50099"), "{other:?}");
    let other = machine.portkeep(&["up", "--quota", "unlimited"]);
    assert!(other.err.contains("with quota 77, not unlimited"), "{other:?}");

    let status = machine.portkeep(&["status", "--json"]).ok().json();
    let name = machine.enforced();
    assert_eq!(status["up"], true);
    assert_eq!(status["enforced_in"], name.as_str());
    assert_eq!(status["served_in"], name.as_str());
    assert_eq!(status["enforcement_here"], "kernel");
    assert_eq!(status["quota"], 77);
    assert_eq!(status["pool"], "61000-65535");
    assert_eq!(status["agent"], false);
    assert_eq!(status["transient"], false);
    machine.portkeep(&["status"]).ok();
    machine.portkeep(&["upgrade"]).ok();

    let holding = machine.hold(&[]);
    let down = machine.portkeep(&["down"]).ok();
    assert_eq!(down.out, "down; 1 reservation ended\n");
    assert!(machine.nothing_pinned());
    holding.end();
    let again = machine.portkeep(&["down", "--json"]).ok();
    assert_eq!(again.json()["was_up"], false);
    assert_eq!(machine.portkeep(&["list"]).code, Some(3));

    let up = machine.portkeep(&["up", "--quota", "unlimited"]).ok();
    assert!(up.out.contains("\nquota         unlimited\n"), "{up:?}");
    assert_eq!(machine.portkeep(&["status", "--json"]).ok().json()["quota"], serde_json::Value::Null);
    let other = machine.portkeep(&["up", "--quota", "1024"]);
    assert!(other.err.contains("with quota unlimited, not 1024"), "{other:?}");
    machine.portkeep(&["down"]).ok();
}

#[test]
fn of_two_ups_at_once_one_builds_and_the_other_finds() {
    let machine = machine!("two-ups");
    let mut ups = Vec::new();
    for _ in 0..2 {
        ups.push(machine.command(&["up"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    }
    let said: Vec<Outcome> = ups.into_iter().map(|up| Outcome::from(up.wait_with_output().unwrap()).ok()).collect();
    assert_eq!(said.iter().filter(|said| said.out.starts_with("up\n")).count(), 1, "{said:?}");
    machine.portkeep(&["down"]).ok();
    assert!(machine.nothing_pinned());
}

#[test]
fn a_command_finds_its_ports() {
    let machine = machine!("environment");
    machine.portkeep(&["up"]).ok();
    let script = r#"echo "$PORT/$PORT0/$PORT1/$PORTS/$MY_APP_PORT/$PORTKEEP_ENFORCEMENT/$0/$1""#;
    let said =
        machine.portkeep(&["run", "-n2", "--label", "my-app", "--", "sh", "-c", script, "x{PORT1}y", "{PORTS}"]).ok();
    assert_eq!(said.out, "61000/61000/61001/61000,61001/61000/kernel/x61001y/61000,61001\n");
    assert_eq!(said.err, "");
    let wrong = machine.portkeep(&["run", "--", "echo", "{PORT1}"]);
    assert_eq!((wrong.code, wrong.out.as_str()), (Some(125), ""));
    assert!(wrong.err.contains("--count"), "{wrong:?}");
}

#[test]
fn the_command_and_its_children_bind_and_outsiders_do_not() {
    let machine = machine!("children");
    machine.portkeep(&["up"]).ok();
    for (transport, option) in [("tcp", "--tcp"), ("udp", "--udp"), ("tcp", "--both"), ("udp", "--both")] {
        let script = format!("sh -c '{}'; echo port $PORT; read line", binds(transport, "$PORT"));
        let mut child = machine
            .command(&["run", option, "--", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = loop {
            let line = lines.next().unwrap().unwrap();
            if let Some(port) = line.strip_prefix("port ") {
                break port.parse().unwrap();
            }
            said += &line;
            said.push('\n');
        };
        assert_eq!(answer(&said), "bound", "{option}");
        assert_eq!(machine.outsider_binds(transport, port), "AddrInUse", "{option}");
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(machine.portkeep(&["list", "--json"]).ok().json(), serde_json::json!([]));
    }
    assert_eq!(machine.subgroups(), Vec::<String>::new());
}

#[test]
fn exit_status_and_signals_pass_through() {
    let machine = machine!("signals");
    machine.portkeep(&["up"]).ok();
    let code = |script: &str| machine.portkeep(&["run", "--", "sh", "-c", script]).code;
    assert_eq!(code("exit 0"), Some(0));
    assert_eq!(code("exit 77"), Some(77));
    assert_eq!(code("kill -KILL $$"), Some(128 + 9));
    assert_eq!(machine.portkeep(&["run", "--", "/no/such/command"]).code, Some(127));
    assert_eq!(machine.portkeep(&["run", "--", "/etc/passwd"]).code, Some(126));

    for (signal, name, number) in [
        (Signal::TERM, "TERM", 15),
        (Signal::INT, "INT", 2),
        (Signal::HUP, "HUP", 1),
        (Signal::QUIT, "QUIT", 3),
        (Signal::USR1, "USR1", 10),
        (Signal::USR2, "USR2", 12),
    ] {
        let script = format!("trap 'exit {}' {name}; echo ready; while :; do sleep 0.05; done", 40 + number);
        let mut child = machine.command(&["run", "--", "sh", "-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(40 + number), "{name}");
    }
    assert_eq!(machine.subgroups(), Vec::<String>::new());
}

/// Ends a process that a test left running on purpose.
fn kill(pid: &str) {
    kill_process(Pid::from_raw(pid.trim().parse().unwrap()).unwrap(), Signal::KILL).unwrap();
}

fn reservations(machine: &Machine) -> usize {
    machine.portkeep(&["list", "--json"]).ok().json().as_array().unwrap().len()
}

#[test]
fn r12_a_program_that_goes_on_in_the_background_keeps_its_ports() {
    let machine = machine!("left-over");
    let go = machine.folder.path().join("go");
    let said = machine.folder.path().join("said");
    // It binds only after `run` has returned. Kernel enforcement is up only for it.
    let later = format!(
        "while [ ! -e {0} ]; do sleep 0.02; done; {1} > {2}; mv {2} {2}.all; sleep 60",
        go.display(),
        binds("tcp", "$PORT"),
        said.display()
    );
    let script = format!("sh -c '{later}' >/dev/null 2>&1 & echo $PORT $!");
    let run = machine.portkeep(&["run", "--", "sh", "-c", &script]).ok();
    let (port, pid) = run.out.trim().split_once(' ').unwrap();
    // Beside the shell there can be its `sleep`.
    let several = run.err.matches("pid ").count() > 1;
    let until = if several { "for them until they end" } else { "for it until it ends" };
    assert!(run.err.contains(&format!("pid {pid} (sh)")) && run.err.contains(until), "{run:?}");
    assert_eq!(machine.outsider_binds("tcp", port.parse().unwrap()), "AddrInUse");
    assert_eq!(reservations(&machine), 1);
    std::fs::write(&go, "").unwrap();
    let all = machine.folder.path().join("said.all");
    eventually(|| all.exists());
    assert_eq!(answer(&std::fs::read_to_string(&all).unwrap()), "bound");
    assert_eq!(reservations(&machine), 1);
    kill(pid);
    // Its `sleep` is the last process.
    for cgroup in machine.subgroups() {
        let procs =
            std::fs::read_to_string(machine.cgroup.path().join(cgroup).join("cgroup.procs")).unwrap_or_default();
        procs.lines().for_each(kill);
    }
    eventually(|| machine.nothing_pinned() && machine.subgroups().is_empty());
}

#[test]
fn r12_a_killed_run_takes_nothing_from_its_command() {
    let machine = machine!("killed-run");
    machine.portkeep(&["up"]).ok();
    let script = format!("echo $$ $PORT; read line; {}; exec sleep 60", binds("tcp", "$PORT"));
    let mut child = machine
        .command(&["run", "--", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    let (pid, port) = line.trim().split_once(' ').unwrap();
    let mut input = child.stdin.take().unwrap();
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert_eq!(machine.outsider_binds("tcp", port.parse().unwrap()), "AddrInUse");
    std::io::Write::write_all(&mut input, b"go\n").unwrap();
    let mut lines = out.lines().map(Result::unwrap);
    let helped = lines.by_ref().find(|line| line.contains("helper: ")).unwrap();
    assert_eq!(answer(&helped), "bound");
    assert_eq!(reservations(&machine), 1);
    kill(pid);
    eventually(|| reservations(&machine) == 0 && machine.subgroups().is_empty());
}

#[test]
fn the_holder_of_a_released_reservation_gets_a_message() {
    let machine = machine!("released");
    machine.portkeep(&["up"]).ok();
    let script = "echo $PORTKEEP_TOKEN; exec sleep 60";
    let mut child = machine
        .command(&["run", "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    machine.portkeep(&["release", line.trim()]).ok();
    let mut said = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("61000/tcp was released by an administrator"), "{said}");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));

    let mut acquire = machine
        .command(&["acquire"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(acquire.stdout.take().unwrap()).read_line(&mut line).unwrap();
    machine.portkeep(&["release", line.split_whitespace().last().unwrap()]).ok();
    let input = acquire.stdin.take();
    let said = Outcome::from(acquire.wait_with_output().unwrap());
    drop(input);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("was released by an administrator"), "{said:?}");
}

#[test]
fn transient_kernel_enforcement_goes_with_the_last_run() {
    let machine = machine!("transient");
    // Two of them, one inside the other: the inner one ends first.
    let nested = "portkeep status --json; portkeep run -- sh -c 'echo $PORT'".replace("portkeep", PORTKEEP);
    let said = machine.portkeep(&["run", "--", "sh", "-c", &nested]).ok();
    let (status, port) = said.out.split_once('\n').unwrap();
    let status: serde_json::Value = serde_json::from_str(status).unwrap();
    assert_eq!(status["transient"], true);
    assert_eq!(status["enforcement_here"], "kernel");
    assert_eq!(port, "61001\n");
    assert_eq!(said.err, "");
    assert!(machine.nothing_pinned());
    assert_eq!(machine.portkeep(&["status"]).code, Some(3));

    // If a command calls `up`, kernel enforcement stays.
    let up = format!("{} up", PORTKEEP);
    machine.portkeep(&["run", "--", "sh", "-c", &up]).ok();
    assert_eq!(machine.portkeep(&["status", "--json"]).ok().json()["transient"], false);
    machine.portkeep(&["down"]).ok();
    assert!(machine.nothing_pinned());
}

#[test]
fn without_rights_ports_are_held_and_the_limits_said() {
    let machine = machine!("held");
    let script = r#"echo "$PORTS $PORTKEEP_ENFORCEMENT""#;
    let said = machine.portkeep_as_nobody(&["run", "-n2", "--", "sh", "-c", script]).ok();
    assert!(said.out.ends_with(" held\n"), "{said:?}");
    assert!(said.err.contains("only held") && said.err.contains("root"), "{said:?}");
    let quiet = machine.portkeep_as_nobody(&["run", "--quiet", "--", "true"]).ok();
    assert_eq!(quiet.err, "");
    for (transport, option) in [("tcp", "--tcp"), ("udp", "--udp"), ("udp", "--both")] {
        // The helper sets SO_REUSEADDR for TCP, as servers do.
        let said = machine.portkeep_as_nobody(&["run", option, "--", "sh", "-c", &copied_binds(&machine, transport)]);
        assert_eq!(answer(&said.out), "bound", "{option}");
    }
}

#[test]
fn acquire_holds_as_run_does() {
    let machine = machine!("acquire-held");
    let copy = machine.for_everybody(PORTKEEP);
    let mut command = machine.as_nobody(&[&copy, "acquire", "--both"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let (port, rest) = line.split_once(' ').unwrap();
    assert_eq!(rest, "tcp+udp held\n");
    let port = port.parse().unwrap();
    // The helper sets SO_REUSEADDR for TCP, as servers do.
    assert_eq!(machine.outsider_binds("tcp", port), "bound");
    assert_eq!(machine.outsider_binds("udp", port), "AddrInUse");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(machine.outsider_binds("udp", port), "bound");
}

/// Like [`binds`] with `$PORT`, but with a copy of the program that the user `nobody` can start.
fn copied_binds(machine: &Machine, transport: &str) -> String {
    let copy = machine.folder.path().join("helper");
    if !copy.exists() {
        std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    }
    let script = binds(transport, "$PORT");
    script.replace(std::env::current_exe().unwrap().to_str().unwrap(), copy.to_str().unwrap())
}

#[test]
fn a_user_without_rights_gets_the_kernels_enforcement_where_it_is_up() {
    let machine = machine!("user");
    machine.portkeep(&["up"]).ok();
    let said = machine.portkeep_as_nobody(&["run", "--", "sh", "-c", &copied_binds(&machine, "tcp")]);
    assert_eq!(answer(&said.out), "bound");
    assert!(said.err.contains("every process of this user"), "{said:?}");
    let strict = machine.portkeep_as_nobody(&["run", "--scope", "cgroup", "--", "true"]);
    assert_eq!(strict.code, Some(125), "{strict:?}");
    let status = machine.portkeep_as_nobody(&["status", "--json"]).ok().json();
    assert_eq!(status["up"], true);
    assert_eq!(status["enforcement_here"], "kernel");
    assert_eq!(status["enforced_in"], serde_json::Value::Null);
    assert!(status["not_seen"].as_str().unwrap().contains("root"));
    assert_eq!(machine.portkeep_as_nobody(&["down"]).code, Some(1));
    assert_eq!(machine.portkeep_as_nobody(&["release", "61000"]).code, Some(1));

    // Queries show others' reservations without their tokens.
    let holding = machine.hold(&["--label", "of root"]);
    let list = machine.portkeep_as_nobody(&["list", "--json"]).ok().json();
    assert_eq!(list[0]["name"], "of root");
    assert_eq!(list[0]["token"], serde_json::Value::Null);
    machine.portkeep_as_nobody(&["list"]).ok();
    holding.let_go();
}

#[test]
fn r11_others_are_let_in_and_shown() {
    let machine = machine!("also");
    machine.portkeep(&["up"]).ok();
    let bind = |port| {
        let script = copied_binds(&machine, "tcp").replace("$PORT", port);
        answer(&Outcome::from(machine.as_nobody(&["sh", "-c", &script]).output().unwrap()).ok().out)
    };
    let holding = machine.hold(&["--ports", "61000", "--also", "user=65534", "--also", "unit=docker.service"]);
    assert_eq!((bind("61000"), bind("61001")), ("bound".into(), "bound".into()));
    let list = machine.portkeep(&["list", "--json"]).ok().json();
    let also = serde_json::json!([{"kind": "user", "value": "nobody"}, {"kind": "unit", "value": "docker.service"}]);
    assert_eq!(list[0]["also"], also);
    let shown = machine.portkeep(&["who", "61000"]).ok().out;
    assert!(shown.contains("  also      user nobody, unit docker.service\n"), "{shown}");
    holding.let_go();
    let holding = machine.hold(&["--ports", "61000", "--also", "user=1"]);
    assert_eq!(bind("61000"), "AddrInUse");
    holding.let_go();
    let refused = machine.portkeep(&["run", "--also", "cgroup=/web.slice", "--", "true"]);
    assert!(refused.err.contains("a cgroup cannot be admitted"), "{refused:?}");
}

#[test]
fn acquire_holds_until_its_input_ends() {
    let machine = machine!("acquire");
    machine.portkeep(&["up"]).ok();
    let holding = machine.hold(&["--ports", "61004-61007/tcp+udp", "--label", "x"]);
    let words: Vec<&str> = holding.line.split(' ').collect();
    assert_eq!(words[..2], ["61004-61007", "tcp+udp"]);
    assert_eq!(words[2].len(), 16);

    let conflict = machine.portkeep(&["acquire", "--ports", "61006", "--udp"]);
    assert_eq!(conflict.code, Some(1));
    let shown = format!("61006/udp belongs to pid {} (portkeep)", holding.child.id());
    assert!(conflict.err.contains(&shown), "{conflict:?}");
    let outside = machine.portkeep(&["acquire", "--ports", "8080"]);
    assert!(outside.err.contains("portkeep agent"), "{outside:?}");
    let too_many = machine.portkeep(&["acquire", "--count", "9999"]);
    assert!(too_many.err.contains("61000-65535"), "{too_many:?}");

    holding.let_go();
    assert_eq!(machine.portkeep(&["list", "--json"]).ok().json(), serde_json::json!([]));

    let mut holding = machine.hold(&["--json"]);
    let json: serde_json::Value = serde_json::from_str(&holding.line).unwrap();
    assert_eq!((&json["count"], &json["transports"]), (&1.into(), &"tcp".into()));
    assert_eq!(json["enforcement"], "kernel");
    kill_process(Pid::from_child(&holding.child), Signal::TERM).unwrap();
    assert!(holding.child.wait().unwrap().success());
    assert_eq!(machine.portkeep(&["list", "--json"]).ok().json(), serde_json::json!([]));
}

#[test]
fn list_who_and_release_show_the_same() {
    let machine = machine!("list");
    machine.portkeep(&["up"]).ok();
    let holding = machine.hold(&["--ports", "61010-61011", "--label", "mine", "--scope", "cgroup"]);
    let list = machine.portkeep(&["list", "--json"]).ok().json();
    let entry = &list[0];
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(entry["ports"], "61010-61011");
    assert_eq!((&entry["start"], &entry["count"]), (&61010.into(), &2.into()));
    assert_eq!(entry["transports"], "tcp");
    assert_eq!(entry["token"], holding.line.split(' ').nth(2).unwrap());
    assert_eq!(entry["state"], "active");
    assert_eq!(entry["netns_name"], "this");
    assert_eq!(entry["owner"]["pid"], holding.child.id());
    assert_eq!(entry["owner"]["comm"], "portkeep");
    assert!(entry["owner"]["command"].as_str().is_none_or(|command| command.contains("acquire --ports 61010-61011")));
    assert_eq!(entry["owner"]["uid"], 0);
    assert_eq!(entry["scope"]["kind"], "cgroup");
    assert_eq!(entry["cgroup"], machine.home());
    assert_eq!(entry["name"], "mine");
    assert_eq!(entry["bound"], 0);
    assert!(entry["since"].as_str().unwrap().ends_with('Z'));
    let table = machine.portkeep(&["list"]).ok().out;
    assert!(table.lines().nth(1).unwrap().starts_with("61010-61011  tcp"), "{table}");

    // A process of the cgroup has a port bound.
    let server = format!("sleep 0; {}", binds("tcp", "61011"));
    let said = machine.program(&["sh", "-c", &server]).output().unwrap();
    assert_eq!(answer(&String::from_utf8_lossy(&said.stdout)), "bound");

    let who = machine.portkeep(&["who", "61011/tcp", "--json"]).ok().json();
    assert_eq!(&who[0]["reservation"], entry);
    assert_eq!(who[0]["bound_by"], serde_json::json!([]));
    assert!(
        machine
            .portkeep(&["who", "61011"])
            .ok()
            .out
            .starts_with(&format!("61011/tcp belongs to pid {} (portkeep)", holding.child.id()))
    );
    let nobody = machine.portkeep(&["who", "61012/udp"]);
    assert_eq!((nobody.code, nobody.out.lines().next()), (Some(3), Some("61012/udp is free")));

    let released = machine.portkeep(&["release", "61011", "--json"]).ok().json();
    assert_eq!(released[0]["ports"], "61010-61011");
    let again = machine.portkeep(&["release", released[0]["token"].as_str().unwrap()]);
    assert_eq!(again.code, Some(3));
    assert_eq!(machine.portkeep(&["list", "--json"]).ok().json(), serde_json::json!([]));
    holding.end();
}

#[test]
fn who_names_the_process_that_has_the_port() {
    let machine = machine!("who");
    machine.portkeep(&["up"]).ok();
    machine.enter_network();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let who = machine.portkeep(&["who", &format!("{port}/tcp"), "--json"]).ok().json();
    assert_eq!(who[0]["reservation"], serde_json::Value::Null);
    assert_eq!(who[0]["bound_by"][0]["process"]["pid"], std::process::id());
}

#[test]
fn nothing_is_mounted_over_files_for_a_mistyped_folder() {
    let machine = machine!("mistyped");
    let wrong = machine.folder.path().join("portkeep");
    let up = machine.portkeep(&["up", "--pin-dir", wrong.to_str().unwrap()]);
    assert_eq!(up.code, Some(1), "{up:?}");
    assert!(up.err.contains("not in a BPF file system"), "{up:?}");
    let run = machine.portkeep(&[
        "run",
        "--pin-dir",
        wrong.to_str().unwrap(),
        "--",
        "sh",
        "-c",
        "echo $PORTKEEP_ENFORCEMENT",
    ]);
    assert_eq!((run.code, run.out.as_str()), (Some(0), "held\n"), "{run:?}");
    let listed = machine.program(&["ls", machine.folder.path().to_str().unwrap()]).output().unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains("bpf"), "{listed:?}");
}

#[test]
fn a_configuration_that_was_named_must_exist() {
    let machine = machine!("named-config");
    let missing = machine.folder.path().join("missing.toml");
    let all: [(&[&str], i32); 6] = [
        (&["up"], 1),
        (&["run", "--", "true"], 125),
        (&["acquire"], 1),
        (&["agent", "--up"], 1),
        (&["check"], 1),
        (&["persist", "list"], 1),
    ];
    for (words, code) in all {
        let said: Outcome = machine.command(words).env("PORTKEEP_CONFIG", &missing).output().unwrap().into();
        assert_eq!((said.code, said.out.as_str()), (Some(code), ""), "{words:?}: {said:?}");
        assert!(said.err.contains(missing.to_str().unwrap()), "{words:?}: {said:?}");
    }
    let said = machine.portkeep(&["up", "--config", missing.to_str().unwrap()]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(machine.nothing_pinned());
    // A configuration file that was not named may be missing.
    machine.portkeep(&["up"]).ok();
}

#[test]
fn a_log_level_that_does_not_exist_is_reported() {
    let machine = machine!("log-level");
    // Without kernel enforcement the agent ends.
    let said: Outcome = machine.command(&["agent"]).env("PORTKEEP_LOG", "loud").output().unwrap().into();
    let warning = "warning: PORTKEEP_LOG: \"loud\" is no level; they are error, warn, info and debug. info is used\n";
    assert!(said.code == Some(3) && said.err.starts_with(warning), "{said:?}");
}

#[test]
fn run_and_acquire_bring_up_what_the_configuration_says() {
    let machine = machine!("transient-config");
    let folder = machine.folder.path().join("root/etc/portkeep");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("portkeep.toml");
    std::fs::write(&file, "pool = \"20000-20999\"\n").unwrap();
    assert_eq!(machine.portkeep(&["run", "--", "echo", "{PORT}"]).ok().out, "20000\n");
    let holding = machine.hold(&[]);
    assert!(holding.line.starts_with("20000 tcp "), "{}", holding.line);
    holding.let_go();
    std::fs::write(&file, "pol = 1\n").unwrap();
    let said = machine.portkeep(&["run", "--", "echo", "{PORT}"]);
    assert_eq!((said.code, said.out.as_str()), (Some(125), ""), "{said:?}");
    assert!(said.err.contains("portkeep.toml:1:1"), "{said:?}");
    assert!(machine.nothing_pinned());
}

#[test]
fn a_command_of_a_socket_activated_run_is_activated() {
    let machine = machine!("activated");
    machine.portkeep(&["up"]).ok();
    let script = r#"echo "$LISTEN_PID $$ $LISTEN_FDS""#;
    // As systemd does: the number is that of `run`.
    let run = format!("LISTEN_FDS=1 LISTEN_PID=$$ exec {} run -- sh -c '{script}'", PORTKEEP);
    let said: Outcome = machine.program(&["sh", "-c", &run]).output().unwrap().into();
    let said = said.ok();
    let words: Vec<&str> = said.out.split_whitespace().collect();
    assert!(words.len() == 3 && words[0] == words[1], "{said:?}");
    let run = format!("LISTEN_FDS=1 LISTEN_PID=$$ exec {} run -- /no/such/command", PORTKEEP);
    assert_eq!(machine.program(&["sh", "-c", &run]).output().unwrap().status.code(), Some(127));
    // Sockets for another process are not the command's.
    let said: Outcome =
        machine.command(&["run", "--", "sh", "-c", script]).env("LISTEN_PID", "1").output().unwrap().into();
    assert!(said.out.starts_with("1 "), "{said:?}");
}

#[test]
fn the_environment_can_require_the_kernel() {
    let machine = machine!("require");
    for words in [&["run", "--", "true"][..], &["acquire"]] {
        let copy = machine.for_everybody(PORTKEEP);
        let mut command = machine.as_nobody(&[&[copy.as_str()], words].concat());
        let said: Outcome = command.env("PORTKEEP_REQUIRE", "kernel").output().unwrap().into();
        assert!(matches!(said.code, Some(1 | 125)) && said.err.contains("--require-kernel"), "{said:?}");
    }
    let said: Outcome =
        machine.command(&["run", "--", "true"]).env("PORTKEEP_REQUIRE", "held").output().unwrap().into();
    assert_eq!(said.code, Some(125), "{said:?}");
    assert!(said.err.contains("PORTKEEP_REQUIRE"), "{said:?}");
}

/// In a network namespace of its own, whose ephemeral ports the test sets. `check` runs without PORTKEEP_ROOT.
#[test]
fn a_pool_in_the_ephemeral_range_is_reported_and_kept_from_automatic_choices() {
    if !kernel_or_skip("commands::overlap") {
        return;
    }
    let machine = Machine::new(PORTKEEP, "overlap");
    let sysctl = |name: &str| format!("/proc/sys/net/ipv4/{name}");
    let set = |name: &str, value: &str| {
        let script = format!("echo '{value}' > {}", sysctl(name));
        assert!(machine.program(&["sh", "-c", &script]).status().unwrap().success());
    };
    let reserved = || {
        let read = machine.program(&["cat", &sysctl("ip_local_reserved_ports")]).output().unwrap();
        String::from_utf8(read.stdout).unwrap().trim().to_owned()
    };
    let bare = machine.portkeep(&["up"]).ok();
    assert_eq!(bare.err, "");
    assert_eq!((reserved().as_str(), machine.portkeep(&["status", "--json"]).json()["overlap"].is_null()), ("", true));
    machine.portkeep(&["down"]).ok();

    set("ip_local_port_range", "1024 65535");
    set("ip_local_reserved_ports", "7000,65000-65535");
    let up = machine.portkeep(&["up"]).ok();
    assert!(up.err.contains("warning: the pool 61000-65535 overlaps") && !up.err.contains("until"), "{up:?}");
    assert_eq!(reserved(), "7000,61000-65535");
    let status = machine.portkeep(&["status", "--json"]).ok().json();
    assert_eq!((&status["overlap"]["ports"], &status["overlap"]["reserved"]), (&"61000-65535".into(), &4536.into()));
    assert!(machine.portkeep(&["status"]).ok().out.contains("overlaps"));
    let check: Outcome = machine.command(&["check"]).env_remove("PORTKEEP_ROOT").output().unwrap().into();
    assert!(check.out.contains("warning: the pool 61000-65535 overlaps"), "{check:?}");
    let remembered = std::fs::read_to_string(machine.folder.path().join("run/reserved-ports.json"));
    let down = machine.portkeep(&["down"]).ok();
    assert_eq!(reserved(), "7000,65000-65535", "{down:?} {remembered:?}");

    // Enforcement that `run` brings up ends with it.
    let cat = format!("cat {}", sysctl("ip_local_reserved_ports"));
    let said = machine.portkeep(&["run", "--", "sh", "-c", &cat]).ok();
    assert_eq!(said.out, "7000,61000-65535\n");
    // The process that guards the cgroup of `run` may be the last to need it.
    eventually(|| reserved() == "7000,65000-65535");

    // If the whole range is in the pool, half of it is left to outgoing connections.
    set("ip_local_reserved_ports", "");
    set("ip_local_port_range", "61000 65535");
    let up = machine.portkeep(&["up"]).ok();
    assert!(up.err.contains("until an agent runs, automatic choices come from the others even if"), "{up:?}");
    assert_eq!(reserved(), "63268-65535");
    machine.portkeep(&["down"]).ok();
    assert_eq!(reserved(), "");
}

#[test]
fn check_reports_what_would_use_up_the_ephemeral_ports() {
    if !kernel_or_skip("commands::exhausts") {
        return;
    }
    let machine = Machine::new(PORTKEEP, "exhausts");
    let file = machine.folder.path().join("much.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let words = ["check", file.to_str().unwrap()];
        Outcome::from(machine.command(&words).env_remove("PORTKEEP_ROOT").output().unwrap())
    };
    // 28,232 ephemeral ports, of which 4,096 have to be left.
    let declared = |force: &str| {
        format!(
            "[[reservation]]\nname = \"first\"\ntcp = \"32768-50000\"\n\
             [[reservation]]\nname = \"second\"\nudp = \"50001-58000\"\n{force}"
        )
    };
    let said = check(&declared(""));
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.out.contains("much.toml:4:1: error: `second`: this would leave 2999 of the 28232"), "{said:?}");
    assert!(said.out.contains("force = true"), "{said:?}");
    check(&declared("force = true\n")).ok();
    check("[[reservation]]\nname = \"first\"\ntcp = \"1024-32767\"\n").ok();

    let said = check("pool = \"32768-60999\"\n");
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.out.contains("pool: this would leave 0 of the 28232"), "{said:?}");
    let said = check("pool = \"60000-65535\"\n").ok();
    assert!(said.out.contains("warning: the pool 60000-65535 overlaps"), "{said:?}");
}
