//! Every `--json` output is described, and every command with `--json` is tried. The other tests check what they see of it
//! against the same schema.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    process::Stdio,
};

use portkeep_testkit::{
    eventually, kernel_or_skip,
    machine::{self, Machine, Running},
    schema,
};
use serde_json::{Value, json};

const PAGE: &str = include_str!("../../../docs/reference/json.md");

/// The commands with `--json`, by name.
fn commands() -> Vec<String> {
    let has_json = |command: &clap::Command| command.get_arguments().any(|arg| arg.get_long() == Some("json"));
    let table = portkeep_cli::command();
    let mut found = Vec::new();
    for command in table.get_subcommands() {
        let name = command.get_name();
        found.extend(has_json(command).then(|| name.to_owned()));
        let inner = command.get_subcommands().filter(|inner| has_json(inner));
        found.extend(inner.map(|inner| format!("{name} {}", inner.get_name())));
    }
    found
}

#[test]
fn the_schema_and_the_page_describe_every_command() {
    for command in commands() {
        assert!(schema::has(&command), "{command} is not in the schema");
        assert!(PAGE.contains(&format!("| `{command}` |")), "{command} is not in json.md");
    }
}

#[test]
fn the_page_describes_every_key() {
    let schema: Value = serde_json::from_str(include_str!("../../../docs/reference/portkeep.schema.json")).unwrap();
    for (name, object) in schema["$defs"].as_object().unwrap() {
        for key in object["properties"].as_object().into_iter().flat_map(|properties| properties.keys()) {
            assert!(PAGE.contains(&format!("`{key}`")), "{key} of {name} is not in json.md");
        }
    }
}

/// [`Machine::portkeep`] compares each of these with the schema.
#[test]
fn every_command_prints_what_the_schema_says() {
    if !kernel_or_skip("json::every_command") {
        return;
    }
    let machine = Machine::new(env!("CARGO_BIN_EXE_portkeep"), "json");
    let drop_ins = machine.folder.path().join("root/etc/portkeep/ports.d");
    fs::create_dir_all(&drop_ins).unwrap();
    let web = "[[reservation]]\nname = \"web\"\ntcp = 8443\nunit = \"web.service\"\n";
    fs::write(drop_ins.join("a.toml"), web).unwrap();
    fs::write(drop_ins.join("b.toml"), web).unwrap();
    let exported = machine.folder.path().join("exported.toml");
    let mut tried = Vec::new();
    let mut say = |words: &[&str]| {
        tried.push(words[..if words[0] == "persist" || words[0] == "excludedportrange" { 2 } else { 1 }].join(" "));
        machine.portkeep(&[words, &["--json"]].concat())
    };

    // Before it is up there is an answer, too.
    let none = say(&["list"]);
    assert_eq!((none.code, none.json()), (Some(3), json!([])));
    say(&["status"]);
    say(&["down"]).ok();
    say(&["up"]).ok();
    let agent = machine.agent(machine.command(&["agent"]));
    eventually(|| machine.portkeep(&["status", "--json"]).json()["agent_answers"] == true);

    let mut watch = machine.command(&["watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut events = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    let connections = format!("/proc/{}/fd", watch.id());
    let watch = Running(watch);
    // It shows what happens after it has connected.
    eventually(|| {
        let open = fs::read_dir(&connections).into_iter().flatten().flatten();
        open.map(|fd| fs::read_link(fd.path())).any(|to| to.is_ok_and(|to| to.to_string_lossy().starts_with("socket:")))
    });
    say(&["acquire", "--both", "--label", "short"]).ok();
    let holding = machine.hold(&["--count", "2", "--label", "of root", "--json"]);
    schema::check(&["acquire", "--json"], &holding.line, false);
    let held: Value = serde_json::from_str(&holding.line).unwrap();
    let start = held["start"].as_u64().unwrap();
    assert_eq!(machine.outsider_binds("tcp", u16::try_from(start).unwrap()), "bound", "it is of the same user");
    machine.enter_network();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = say(&["who", &listener.local_addr().unwrap().port().to_string()]).ok().json();
    assert_eq!(taken[0]["bound_by"][0]["process"]["pid"], std::process::id());

    say(&["persist", "add", "--name", "mine", "--tcp", "9000-9009", "--user", "root", "--strict"]).ok();
    say(&["persist", "rename", "mine", "ours"]).ok();
    say(&["persist", "rename", "ours", "mine"]).ok();
    say(&["persist", "set", "mine", "--description", "mine"]).ok();
    machine.portkeep(&["persist", "export", exported.to_str().unwrap()]).ok();
    say(&["persist", "import", exported.to_str().unwrap()]).ok();
    let listed = say(&["list"]).ok().json();
    // The same object, whichever command shows it.
    let of_list = listed.as_array().unwrap().iter().find(|info| info["token"] == held["token"]).unwrap();
    let who = say(&["who", &start.to_string()]).ok().json();
    assert_eq!(&who[0]["reservation"], of_list);
    let stays = |info: &Value| {
        [&info["name"], &info["ports"], &info["owner"], &info["scope"], &info["since"]].map(Value::clone)
    };
    assert_eq!(stays(of_list), stays(&held));
    let declared = say(&["persist", "list"]).ok().json();
    let states: Vec<&str> = declared.as_array().unwrap().iter().map(|info| info["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["active", "conflict", "active"]);
    say(&["persist", "show", "web"]).ok();
    say(&["status"]).ok();
    say(&["doctor"]);
    say(&["reload"]);
    say(&["check"]);
    say(&["excludedportrange", "show", "tcp"]).ok();
    say(&["release", &start.to_string()]).ok();
    holding.end();
    say(&["persist", "delete", "mine"]).ok();
    say(&["upgrade"]).ok();

    let mut seen = Vec::new();
    loop {
        seen.push(events.next().expect("the agent runs"));
        let event: Value = serde_json::from_str(seen.last().unwrap()).unwrap();
        if event["reservation"]["name"] == "mine" && event["what"] == "ended" {
            break;
        }
    }
    tried.push("watch".into());
    schema::check(&["watch", "--json"], &seen.join("\n"), false);
    assert!(seen.len() >= 4, "{seen:?}");
    drop(watch);
    drop(agent);
    machine.portkeep(&["down", "--json"]).ok();
    let missed: Vec<String> = commands().into_iter().filter(|command| !tried.contains(command)).collect();
    assert!(missed.is_empty(), "{missed:?} are not tried");
}

/// A failure has one value on standard output, its words on standard error, and the exit status that it has without `--json`.
#[test]
fn a_failure_prints_a_refusal() {
    if !kernel_or_skip("json::a_failure") {
        return;
    }
    let machine = Machine::new(env!("CARGO_BIN_EXE_portkeep"), "refusals");
    let refused = |words: &[&str], reason: &str| {
        let said = machine.portkeep(&[words, &["--json"]].concat());
        let refusal = said.json();
        assert_eq!(refusal["reason"], reason, "{said:?}");
        assert!(said.err.contains(refusal["message"].as_str().unwrap()), "{said:?}");
        assert_eq!(said.code, machine.portkeep(words).code, "{said:?}");
    };
    refused(&["release", "61000"], "not-up");
    refused(&["upgrade"], "not-up");
    refused(&["persist", "add", "--name", "web", "--tcp", "80"], "no-agent");
    refused(&["list", "--no-such-option"], "malformed");
    refused(&["acquire", "--ports", "65535-65536"], "malformed");
    machine.portkeep(&["up"]).ok();
    refused(&["acquire", "--ports", "5000"], "no-agent");
    refused(&["acquire", "--count", "5000"], "no-room");
    let nobody = machine.portkeep_as_nobody(&["down", "--json"]);
    assert_eq!(nobody.json()["reason"], "not-allowed", "{nobody:?}");

    let agent = machine.agent(machine.command(&["agent"]));
    eventually(|| machine.portkeep(&["status", "--json"]).json()["agent_answers"] == true);
    machine.portkeep(&["persist", "add", "--name", "web", "--tcp", "8443"]).ok();
    refused(&["persist", "add", "--name", "web", "--tcp", "8444"], "name-taken");
    refused(&["persist", "add", "--name", "other", "--tcp", "8443"], "in-use");
    refused(&["persist", "add", "--name", "all", "--tcp", "20000-65535"], "exhausts");
    // Its value says the same as the status.
    let none = machine.portkeep(&["persist", "delete", "none", "--json"]);
    assert_eq!((none.code, none.json()), (Some(3), json!([])));
    drop(agent);
    machine.portkeep(&["down"]).ok();
}

#[test]
#[ignore = "plays an outsider for the other tests"]
fn helper_binds() {
    machine::help();
}
