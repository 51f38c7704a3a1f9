//! `list` and `watch` show what is asked for.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    sync::mpsc::{Receiver, channel},
    thread,
};

use portkeep_testkit::{
    eventually, kernel_or_skip,
    machine::{self, Machine, Running},
};
use serde_json::Value;

const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");

fn machine(name: &str) -> Option<Machine> {
    kernel_or_skip(&format!("selection::{name}")).then(|| Machine::new(PORTKEEP, name))
}

#[test]
fn list_filters_sorts_and_leaves_out() {
    let Some(machine) = machine("list") else { return };
    machine.portkeep(&["up"]).ok();
    let one = machine.hold(&["--count", "2", "--label", "one"]);
    let two = machine.hold(&["--udp", "--label", "two"]);
    let lines = |words: &[&str]| -> Vec<String> {
        let out = machine.portkeep(&[&["list", "--columns", "label", "--no-header"], words].concat()).ok().out;
        out.lines().map(str::to_owned).collect()
    };
    assert_eq!(lines(&["--sort", "label"]), ["one", "two"]);
    assert_eq!(lines(&["--sort", "-label"]), ["two", "one"]);
    assert_eq!(lines(&["--label", "two"]), ["two"]);
    assert_eq!(lines(&["1-65535/tcp"]), ["one"]);
    assert_eq!(lines(&["--uid", "root", "--sort", "label"]), ["one", "two"]);
    assert_eq!(lines(&["--uid", "65534"]), [""; 0]);
    assert_eq!(lines(&["--netns", "this", "--sort", "label"]), ["one", "two"]);
    assert_eq!(lines(&["--unit", "no-such.service"]), [""; 0]);
    let json = machine.portkeep(&["list", "--json", "--label", "one"]).ok().json();
    assert_eq!((json.as_array().unwrap().len(), json[0]["name"].as_str()), (1, Some("one")));
    machine.portkeep(&["list", "no-such-name"]).fails(2, &["no-such-name is neither a port"]);
    machine.portkeep(&["list", "--netns", "nowhere"]).fails(2, &["no network namespace nowhere"]);
    machine.portkeep(&["list", "--uid", "no-such-user"]).fails(2, &["no user \"no-such-user\""]);
    one.let_go();
    two.let_go();
}

#[test]
fn only_a_terminal_gets_colour_and_lines_that_fit() {
    let Some(machine) = machine("terminal") else { return };
    machine.portkeep(&["up"]).ok();
    let label = "a label of its own";
    let holding = machine.hold(&["--count", "3", "--label", label]);
    // The other end of the terminal is what `script` prints.
    let on_a_terminal = |environment: &str| {
        let command = format!("stty cols 80; exec env {environment} {PORTKEEP} list");
        machine.shell(&format!("TERM=xterm script --quiet --return --command '{command}' /dev/null")).ok().out
    };
    let coloured = on_a_terminal("X=1");
    assert!(coloured.contains("\x1b[1mPORTS") && coloured.contains(label), "{coloured:?}");
    let plain = |text: &str| text.replace("\x1b[1m", "").replace("\x1b[0m", "").replace('\r', "");
    assert!(plain(&coloured).lines().all(|line| line.chars().count() <= 80), "{coloured:?}");
    for without in ["NO_COLOR=1", "TERM=dumb"] {
        assert_eq!(on_a_terminal(without).replace('\r', ""), plain(&coloured), "{without}");
    }
    let piped = machine.portkeep(&["list"]).ok().out;
    assert!(!piped.contains('\x1b') && piped.contains("TOKEN"), "{piped:?}");
    holding.let_go();
    // The other commands: messages, and the tables.
    let on_a_terminal = |words: &str| {
        let script = format!("TERM=xterm script --quiet --return --command '{PORTKEEP} {words}' /dev/null");
        machine.shell(&script).out.replace('\r', "")
    };
    let coloured = "\x1b[1;31merror:\x1b[0m there is no reservation none";
    assert!(on_a_terminal("who none").starts_with(coloured));
    assert!(on_a_terminal("acquire --count x").starts_with("\x1b["));
    assert!(on_a_terminal("persist list").contains("\x1b[1mNAME  PORTS"));
    assert!(on_a_terminal("doctor").contains("\x1b[1;36mnote:\x1b[0m no agent runs"));
    assert!(!machine.portkeep(&["who", "none"]).err.contains('\x1b'));
    assert!(!machine.portkeep(&["doctor"]).out.contains('\x1b'));
}

#[test]
fn points_in_time_are_local_for_people_and_utc_for_programs() {
    let Some(machine) = machine("local") else { return };
    machine.portkeep(&["up"]).ok();
    let holding = machine.hold(&[]);
    let port = &holding.line[..5];
    let who = |zone: &str| machine.shell(&format!("TZ={zone} {PORTKEEP} who {port}/tcp | grep since")).ok().out;
    assert!(who("XYZ-3").ends_with(" +03:00\n") && who("UTC").ends_with(" +00:00\n"), "{}", who("XYZ-3"));
    let json = machine.portkeep(&["who", &format!("{port}/tcp"), "--json"]).ok().json();
    assert!(json[0]["reservation"]["since"].as_str().unwrap().ends_with('Z'));
    holding.let_go();
}

#[test]
fn list_watches() {
    let Some(machine) = machine("watched") else { return };
    machine.portkeep(&["up"]).ok();
    let mut watch = machine.command(&["list", "--watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    let _watch = Running(watch);
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap()).unwrap();
    assert_eq!(next(), serde_json::json!([]));
    let holding = machine.hold(&["--label", "new"]);
    assert_eq!(next()[0]["name"], "new");
    holding.let_go();
    assert_eq!(next(), serde_json::json!([]));
}

#[test]
fn held_blocks_are_listed_without_kernel_enforcement() {
    let Some(machine) = machine("held") else { return };
    machine.enter_network();
    assert_eq!(machine.portkeep(&["list"]).code, Some(3));
    let nobodys = machine.for_everybody(PORTKEEP);
    let mut held = machine.as_nobody(&[&nobodys, "acquire", "--both", "--ports", "62000,62002", "--label", "held"]);
    let mut held = held.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut out = BufReader::new(held.stdout.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    let held = Running(held);
    let json = machine.portkeep(&["list", "--json"]).ok().json();
    assert_eq!((json[0]["name"].as_str(), json[0]["enforcement"].as_str()), (Some("held"), Some("held")));
    // A list is one reservation, held or not.
    assert_eq!((json.as_array().map(Vec::len), json[0]["ports"].as_str()), (Some(1), Some("62000,62002")));
    assert_eq!(
        (json[0]["owner"]["pid"].as_u64(), json[0]["transports"].as_str()),
        (Some(held.0.id().into()), Some("both"))
    );
    let text = machine.portkeep(&["list", "--columns", "label,enforced,uid"]).ok().out;
    assert_eq!(text, "LABEL  ENFORCED  UID\nheld   held      65534\n");
    drop(held);
    assert_eq!(machine.portkeep(&["list"]).code, Some(3));
}

#[test]
fn persistent_reservations_have_their_origin_without_an_agent() {
    let Some(machine) = machine("origin") else { return };
    machine.portkeep(&["up"]).ok();
    let folder = machine.folder.path().join("root/etc/portkeep/ports.d");
    std::fs::create_dir_all(&folder).unwrap();
    let text =
        "[[reservation]]\nname = \"a-name-that-is-longer-than-24-bytes\"\ntcp = 8443\ndescription = \"the shop\"\n";
    std::fs::write(folder.join("a.toml"), text).unwrap();
    let agent = machine.agent(machine.command(&["agent"]));
    machine.portkeep(&["persist", "add", "--name", "of-a-command", "--tcp", "8444"]).ok();
    let described = || {
        let list = machine.portkeep(&["list", "--json"]).ok().json();
        let keys = |info: &Value| [&info["name"], &info["origin"], &info["description"]].map(Value::clone);
        list.as_array().unwrap().iter().map(keys).collect::<Vec<_>>()
    };
    let with_agent = described();
    assert_eq!(with_agent[0][0], "a-name-that-is-longer-than-24-bytes");
    assert!(!with_agent[1][1].is_null());
    drop(agent);
    assert_eq!(described(), with_agent);
}

/// The output of `watch` with these words, as it comes.
fn watch(machine: &Machine, words: &[&str]) -> (Running, Receiver<Value>) {
    let mut watch = machine.command(&[&["watch", "--json"], words].concat()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    let (send, receive) = channel();
    thread::spawn(move || lines.for_each(|line| drop(send.send(serde_json::from_str(&line).unwrap()))));
    (Running(watch), receive)
}

/// The first event that it prints, while `happens` is done again and again: it may not listen yet.
fn first(events: &Receiver<Value>, happens: impl Fn()) -> Value {
    let mut found = None;
    eventually(|| {
        happens();
        found = events.try_recv().ok();
        found.is_some()
    });
    found.unwrap()
}

/// The functions of bash that complete the names of reservations, as they are installed.
#[test]
fn bash_completes_the_names_of_reservations() {
    let Some(machine) = machine("names") else { return };
    machine.portkeep(&["up"]).ok();
    let _agent = machine.agent(machine.command(&["agent"]));
    for (name, port) in [("web", "8443"), ("web-2", "8444"), ("dns", "8053")] {
        machine.portkeep(&["persist", "add", port, "--name", name, "--user", "daemon"]).ok();
    }
    let holding = machine.hold(&["--count", "2", "--label", "worker"]);
    let functions = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/pages/src/names.bash");
    let folder = std::path::Path::new(PORTKEEP).parent().unwrap().display();
    let complete = |words: &str| {
        let script = format!(
            "_portkeep() {{ COMPREPLY=(of-the-table); }}; PATH={folder}:$PATH; source {functions}
             COMP_WORDS=(portkeep {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _portkeep_names
             echo ${{COMPREPLY[@]}}"
        );
        let mut bash = machine.program(&["bash", "-c", &script]);
        let said = bash.current_dir(machine.folder.path()).output().unwrap();
        String::from_utf8(said.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(complete("persist show ''"), "dns web web-2");
    assert_eq!(complete("persist delete dns we"), "web web-2");
    assert_eq!(complete("persist set --"), "of-the-table");
    assert_eq!(complete("run --reservation d"), "dns");
    assert_eq!(complete("list --label wo"), "worker");
    assert_eq!(complete("who w"), "web web-2 worker");
    assert_eq!(complete("release 6"), "61000-61001/tcp");
    assert_eq!(complete("persist add --name w"), "of-the-table");
    assert_eq!(complete("up --pool ''"), "of-the-table");
    let trap = machine.folder.path().join("trap");
    let hostile = machine.hold(&["--label", "worker$(>trap)"]);
    assert_eq!(complete("list --label wo"), "worker");
    assert!(!trap.exists(), "a label was carried out");
    hostile.let_go();
    assert_eq!(complete("run -n 2 -- sha256su"), "sha256sum");
    holding.let_go();
}

#[test]
fn watch_filters() {
    let Some(machine) = machine("events") else { return };
    machine.portkeep(&["up"]).ok();
    let _agent = machine.agent(machine.command(&["agent"]));
    machine.portkeep(&["persist", "add", "--name", "web", "--tcp", "8443", "--user", "daemon"]).ok();
    let come_and_go = || {
        machine.portkeep(&["persist", "add", "--name", "other", "--tcp", "8000"]).ok();
        machine.portkeep(&["persist", "delete", "other"]).ok();
    };
    let refused = || {
        come_and_go();
        assert_eq!(machine.outsider_binds("tcp", 8443), "AddrInUse");
    };
    let (_watch, events) = watch(&machine, &["--what", "refused,exhausted"]);
    let event = first(&events, refused);
    assert_eq!((event["what"].as_str(), event["start"].as_u64()), (Some("refused"), Some(8443)));
    let (_watch, events) = watch(&machine, &["8000-8009/tcp"]);
    assert_eq!(first(&events, refused)["start"], 8000);
    let (_watch, events) = watch(&machine, &["--label", "web"]);
    assert_eq!(first(&events, refused)["reservation"]["name"], "web");
    // Its agent writes to no journal.
    let said = machine.portkeep(&["watch", "--since", "today", "--no-follow", "--label", "no-such-label"]);
    match said.code {
        Some(0) => assert_eq!((said.out.as_str(), said.err.as_str()), ("", "note: no entries since today\n")),
        _ => {
            assert!(said.err.contains("journalctl"), "{said:?}");
            portkeep_testkit::note(&format!("SKIPPED selection: no journal was read: {}", said.err));
        }
    }
}

#[test]
#[ignore = "plays an outsider for the other tests"]
fn helper_binds() {
    machine::help();
}
