//! Declarations that conflict or wait are looked at again as soon as something changes.

use std::{
    fs,
    net::{TcpListener, TcpStream},
};

use portkeep_testkit::{
    eventually, kernel_or_skip,
    machine::{self, Machine},
    sockets::{bind, tcp},
};

fn machine(name: &str) -> Option<Machine> {
    kernel_or_skip(&format!("conflicts::{name}")).then(|| {
        let machine = Machine::new(env!("CARGO_BIN_EXE_portkeep"), name);
        machine.portkeep(&["up"]).ok();
        machine
    })
}

fn drop_in(machine: &Machine, name: &str, text: &str) {
    let folder = machine.folder.path().join("root/etc/portkeep/ports.d");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), text).unwrap();
}

/// Names and states, in the order of the ports.
fn states(machine: &Machine) -> Vec<(String, String)> {
    let listed = machine.portkeep(&["persist", "list", "--json"]).ok().json();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    listed.as_array().unwrap().iter().map(|info| (text(&info["name"]), text(&info["state"]))).collect()
}

fn state(name: &str, state: &str) -> (String, String) {
    (name.into(), state.into())
}

#[test]
fn a_declaration_is_in_force_once_its_rival_is_deleted() {
    let Some(machine) = machine("rival") else { return };
    let _agent = machine.agent(machine.command(&["agent"]));
    machine.portkeep(&["persist", "add", "--name", "cli", "--tcp", "6000-6004", "--user", "nobody"]).ok();
    drop_in(&machine, "f.toml", "[[reservation]]\nname = \"fromfile\"\ntcp = \"6000-6009\"\ngroup = \"daemon\"\n");
    let reloaded = machine.portkeep(&["reload"]).ok();
    assert!(reloaded.out.contains("0 added, 0 changed, 0 removed; 1 not in force"), "{reloaded:?}");
    assert!(reloaded.err.contains("portkeep persist delete"), "{reloaded:?}");
    assert_eq!(states(&machine), [state("cli", "active"), state("fromfile", "conflict")]);
    // `status` shows the same state.
    let status = machine.portkeep(&["status", "--json"]).ok().json();
    assert_eq!(
        (status["waiting"][0]["name"].as_str(), status["waiting"][0]["state"].as_str()),
        (Some("fromfile"), Some("conflict"))
    );

    // Only what the advice says is done.
    machine.portkeep(&["persist", "delete", "cli"]).ok();
    assert_eq!(states(&machine), [state("fromfile", "active")]);
    assert_eq!(machine.outsider_binds("tcp", 6002), "AddrInUse");
}

#[test]
fn a_new_rival_is_named_at_once() {
    let Some(machine) = machine("renamed") else { return };
    let stanza = |name: &str, ports: &str| format!("[[reservation]]\nname = \"{name}\"\ntcp = \"{ports}\"\n");
    drop_in(&machine, "a.toml", &stanza("a", "6000"));
    drop_in(&machine, "b.toml", &stanza("b", "6000-6009"));
    let _agent = machine.agent(machine.command(&["agent"]));
    assert_eq!(states(&machine), [state("a", "active"), state("b", "conflict")]);
    // A declaration in conflict reserves nothing, so this is not refused. The reason must name a reservation that
    // exists.
    machine.portkeep(&["persist", "add", "--name", "c", "--tcp", "6005"]).ok();
    let reason = || {
        let listed = machine.portkeep(&["persist", "list", "--json"]).ok().json();
        let of_b = listed.as_array().unwrap().iter().find(|info| info["name"] == "b").unwrap().clone();
        of_b["reason"].as_str().unwrap().to_owned()
    };
    let shown = reason();
    fs::remove_file(machine.folder.path().join("root/etc/portkeep/ports.d/a.toml")).unwrap();
    machine.portkeep(&["reload"]).ok();
    assert!(shown.contains("`c`") || reason().contains("`c`"), "{shown}, {}", reason());
    machine.portkeep(&["persist", "delete", "c"]).ok();
    assert_eq!(states(&machine), [state("b", "active")]);
}

#[test]
fn a_deletion_also_enters_declarations_that_wait() {
    let Some(machine) = machine("neighbour") else { return };
    machine.enter_network();
    let listener = TcpListener::bind("127.0.0.1:6100").unwrap();
    drop_in(&machine, "w.toml", "[[reservation]]\nname = \"waits\"\ntcp = 6100\n");
    let _agent = machine.agent(machine.command(&["agent"]));
    machine.portkeep(&["persist", "add", "--name", "other", "--tcp", "6200"]).ok();
    assert_eq!(states(&machine), [state("waits", "waiting"), state("other", "active")]);
    let status = machine.portkeep(&["status"]).ok().out;
    assert!(status.contains("waits         waits, 6100/tcp"), "{status}");
    drop(listener);
    machine.portkeep(&["persist", "delete", "other"]).ok();
    assert_eq!(states(&machine), [state("waits", "active")]);
}

/// The agent tries again and again. The kernel shows a shorter rest of TIME_WAIT each time, and that is no other reason.
#[test]
fn a_declaration_that_waits_for_the_end_of_time_wait_is_one_line_in_the_log() {
    let Some(machine) = machine("countdown") else { return };
    machine.enter_network();
    // Without SO_REUSEADDR, which would let the next server bind the port. The server's side closes first.
    let listener = tcp();
    bind(&listener, 6100).unwrap();
    listener.listen(2).unwrap();
    let clients = [(); 2].map(|()| TcpStream::connect("127.0.0.1:6100").unwrap());
    drop([(); 2].map(|()| listener.accept().unwrap()));
    drop((clients, listener));
    drop_in(&machine, "w.toml", "[[reservation]]\nname = \"waits\"\ntcp = 6100\n");
    let _agent = machine.agent(machine.command(&["agent"]));
    let remaining = || {
        machine.portkeep(&["reload"]).ok();
        let listed = machine.portkeep(&["persist", "list", "--json"]).ok().json();
        assert_eq!(listed[0]["state"], "waiting", "{listed}");
        listed[0]["waits_for"][0]["remaining"].as_u64().unwrap()
    };
    let first = remaining();
    eventually(|| remaining() + 2 <= first);
    let log = machine.log();
    assert_eq!(log.lines().filter(|line| line.contains("declared, but not in force")).count(), 1, "{log}");
    assert!(log.contains("6100/tcp is in use by"), "{log}");
}

#[test]
fn status_shows_who_holds_how_much_of_a_quota() {
    let Some(machine) = machine("quotas") else { return };
    let mut held =
        machine.as_nobody(&[&machine.for_everybody(env!("CARGO_BIN_EXE_portkeep")), "acquire", "--count", "7"]);
    let mut held = held.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(held.stdout.take().unwrap()), &mut line).unwrap();
    let status = machine.portkeep(&["status", "--json"]).ok().json();
    let quota = &status["quotas"][0];
    assert_eq!(
        (quota["uid"].as_u64(), quota["used"].as_u64(), quota["limit"].as_u64()),
        (Some(65534), Some(7), Some(1024))
    );
    assert!(machine.portkeep(&["status"]).ok().out.contains("held          7 of 1024 by user nobody"));
    assert!(machine.portkeep_as_nobody(&["status", "--json"]).ok().json()["quotas"].is_null());
    drop(held.stdin.take());
    held.wait().unwrap();
}

#[test]
#[ignore = "plays an outsider for the other tests"]
fn helper_binds() {
    machine::help();
}
