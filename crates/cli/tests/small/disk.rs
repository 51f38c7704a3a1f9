//! A full disk: below the store, below `/run`, below the folder for temporary files, and behind standard output.

use std::fs::File;

use portkeep_testkit::{Outcome, eventually, machine::Machine};

use crate::{PORTKEEP, machine};

/// Three small file systems.
const DISKS: &str = r#"
mount -t bpf bpf "$0/bpf"
for name in state run tmp; do mkdir "$0/$name"; mount -t tmpfs -o size=256k,mode=700 none "$0/$name"; done
"#;
const FILL: &str = r#"for name in state run tmp; do cat /dev/zero >"$0/$name/filler" 2>/dev/null || :; done"#;
const EMPTY: &str = r#"rm "$0"/*/filler"#;

fn machine(name: &str) -> Machine {
    Machine::made(PORTKEEP, name, DISKS)
}

/// The state of a machine that is kept on its disks.
trait State {
    fn files(&self) -> Vec<String>;
    fn in_force(&self) -> Vec<String>;
    fn reserved(&self) -> String;
}

impl State for Machine {
    fn files(&self) -> Vec<String> {
        let listed = self.shell(r#"cd "$0" && find state run tmp -type f"#).ok().out;
        let mut files: Vec<String> =
            listed.lines().filter(|file| !file.ends_with("filler")).map(str::to_owned).collect();
        files.sort();
        files
    }

    fn in_force(&self) -> Vec<String> {
        let listed = self.portkeep(&["persist", "list", "--json"]).ok().json();
        let mut names: Vec<String> =
            listed.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    fn reserved(&self) -> String {
        self.shell("cat /proc/sys/net/ipv4/ip_local_reserved_ports").ok().out.trim().to_owned()
    }
}

fn add<'a>(name: &'a str, port: &'a str) -> [&'a str; 6] {
    ["persist", "add", "--name", name, "--tcp", port]
}

/// Commands that need no disk work on a full one.
#[test]
fn commands_that_need_no_disk_work_on_a_full_one() {
    let machine = machine!("disk-none", machine("disk-none"));
    machine.shell(FILL).ok();
    machine.portkeep(&["up"]).ok();
    for words in [
        &["run", "--", "true"][..],
        &["acquire"],
        &["list"],
        &["status"],
        &["check"],
        &["persist", "list"],
        &["upgrade"],
    ] {
        machine.portkeep(words).ok();
    }
    machine.portkeep(&["down"]).ok();
    machine.is_clean();
    assert_eq!(machine.files(), Vec::<String>::new());
}

/// Found here: an agent that began with a full disk refused to store anything until it was started anew, and left
/// unfinished files behind.
#[test]
fn an_agent_that_began_on_a_full_disk_goes_on_when_there_is_space() {
    let machine = machine!("disk-start", machine("disk-start"));
    machine.shell(FILL).ok();
    machine.portkeep(&["up"]).ok();
    let agent = machine.agent(machine.command(&["agent"]));
    assert!(machine.log().contains("no space is left for"), "{}", machine.log());
    machine.portkeep(&add("a", "8443")).fails(1, &["no space is left for", "persistent.redb", "nothing was changed"]);
    let until_reboot = [&add("b", "8444")[..], &["--until-reboot"]].concat();
    machine.portkeep(&until_reboot).fails(1, &["no space is left for", "active.redb", "nothing was changed"]);
    // Ports of the pool require no disk.
    machine.portkeep(&["acquire", "--require-kernel"]).ok();
    assert_eq!((machine.in_force(), machine.reserved()), (Vec::new(), String::new()));
    assert_eq!(machine.files().into_iter().filter(|file| file.ends_with(".new")).collect::<Vec<_>>(), [""; 0]);
    machine.shell(EMPTY).ok();
    machine.portkeep(&add("a", "8443")).ok();
    machine.portkeep(&until_reboot).ok();
    assert_eq!(machine.in_force(), ["a", "b"]);
    drop(agent);
    // The reservation is on the disk, too.
    let agent = machine.agent(machine.command(&["agent"]));
    assert_eq!(machine.in_force(), ["a", "b"]);
    drop(agent);
    machine.portkeep(&["down"]).ok();
    machine.is_clean();
}

/// The same where reservations of others are in the store that could not be opened: they come into force by
/// themselves.
#[test]
fn declarations_that_a_full_disk_hid_come_into_force_by_themselves() {
    let machine = machine!("disk-return", machine("disk-return"));
    machine.portkeep(&["up"]).ok();
    let agent = machine.agent(machine.command(&["agent"]));
    machine.portkeep(&add("a", "8443")).ok();
    drop(agent);
    machine.portkeep(&["down"]).ok();
    // The lock is a file. If it cannot be made, the store cannot be read either.
    machine.shell(r#"rm "$0"/state/*.lock && mount -o remount,nr_inodes=2 "$0/state" 2>/dev/null || mount -o remount,ro "$0/state""#).ok();
    machine.portkeep(&["up"]).ok();
    let agent = machine.agent(machine.command(&["agent"]));
    assert!(machine.log().contains("what commands created cannot be read"), "{}", machine.log());
    assert_eq!(machine.in_force(), [""; 0]);
    machine.shell(r#"mount -o remount,rw,nr_inodes=100 "$0/state""#).ok();
    eventually(|| machine.in_force() == ["a"]);
    assert!(machine.reserved().contains("8443"));
    drop(agent);
    machine.portkeep(&["down"]).ok();
    machine.is_clean();
}

/// Found here: the agent ran, but the answer to a request for a port was that no agent runs.
#[test]
fn a_disk_that_fills_up_under_the_agent_refuses_and_changes_nothing() {
    let machine = machine!("disk-fills", machine("disk-fills"));
    machine.portkeep(&["up"]).ok();
    let agent = machine.agent(machine.command(&["agent"]));
    machine.portkeep(&add("a", "8443")).ok();
    machine.shell(FILL).ok();
    let before = (machine.in_force(), machine.reserved());
    machine.portkeep(&["acquire", "--ports", "20000"]).fails(1, &["the agent could not find out", "its log says why"]);
    assert!(machine.log().contains("cannot be remembered in"), "{}", machine.log());
    machine
        .portkeep(&add("b", "8444"))
        .fails(1, &["ip_local_reserved_ports", "cannot be remembered in", "No space left"]);
    let import = machine.folder.path().join("import.toml");
    std::fs::write(&import, "[[reservation]]\nname = \"i1\"\ntcp = 7001\n[[reservation]]\nname = \"i2\"\ntcp = 7002\n")
        .unwrap();
    let import = import.to_str().unwrap();
    machine.portkeep(&["persist", "import", import]).fails(1, &["nothing was imported", "No space left"]);
    assert_eq!((machine.in_force(), machine.reserved()), before);
    assert_eq!(machine.portkeep(&["list", "--json"]).ok().json().as_array().unwrap().len(), 1);
    machine.portkeep(&["acquire", "--require-kernel"]).ok();
    // Only the store's disk is full now: a request that is refused there has changed nothing.
    machine.shell(r#"rm "$0/run/filler""#).ok();
    let mut refused = None;
    for number in 0..400 {
        let (name, port) = (format!("f{number}"), format!("{}", 10_000 + number));
        let long = "x".repeat(200);
        let said = machine.portkeep(&[&add(&name, &port)[..], &["--description", &long]].concat());
        if said.code != Some(0) {
            refused = Some((name, port, said));
            break;
        }
    }
    let (name, port, said) = refused.expect("the disk is full before long");
    said.fails(1, &["no space is left for", "nothing was changed"]);
    assert!(!machine.in_force().contains(&name));
    eventually(|| !machine.reserved().contains(&port));
    // With free space all of it works.
    machine.shell(r#"rm "$0"/state/filler "$0"/tmp/filler"#).ok();
    machine.portkeep(&add(&name, &port)).ok();
    machine.portkeep(&["persist", "import", import]).ok();
    machine.portkeep(&["acquire", "--ports", "20000"]).ok();
    let all = machine.in_force();
    drop(agent);
    let agent = machine.agent(machine.command(&["agent"]));
    assert_eq!(machine.in_force(), all);
    machine.portkeep(&["persist", "delete", "a"]).ok();
    drop(agent);
    machine.portkeep(&["down"]).ok();
    machine.is_clean();
}

#[test]
fn a_reservation_can_be_deleted_on_a_full_disk() {
    let machine = machine!("disk-delete", machine("disk-delete"));
    machine.portkeep(&["up"]).ok();
    let agent = machine.agent(machine.command(&["agent"]));
    machine.portkeep(&add("a", "8443")).ok();
    machine.shell(FILL).ok();
    machine.portkeep(&["persist", "delete", "a"]).ok();
    assert_eq!(machine.in_force(), [""; 0]);
    machine.shell(EMPTY).ok();
    drop(agent);
    let agent = machine.agent(machine.command(&["agent"]));
    assert_eq!((machine.in_force(), machine.reserved()), (Vec::new(), String::new()));
    drop(agent);
    machine.portkeep(&["down"]).ok();
    machine.is_clean();
}

/// Found here: the file of an earlier export was emptied first.
#[test]
fn an_export_to_a_full_disk_leaves_the_earlier_one() {
    let machine = machine!("disk-export", machine("disk-export"));
    machine.portkeep(&["up"]).ok();
    let agent = machine.agent(machine.command(&["agent"]));
    machine.portkeep(&add("a", "8443")).ok();
    let file = machine.folder.path().join("tmp/export.toml");
    let file = file.to_str().unwrap();
    machine.portkeep(&["persist", "export", file]).ok();
    let read = || machine.shell(r#"cat "$0/tmp/export.toml""#).ok().out;
    let earlier = read();
    assert!(earlier.contains("8443"), "{earlier}");
    machine.shell(FILL).ok();
    machine.portkeep(&["persist", "export", file]).fails(1, &["writing", "export.toml", "No space left"]);
    let other = machine.folder.path().join("tmp/other.toml");
    machine.portkeep(&["persist", "export", other.to_str().unwrap()]).fails(1, &["other.toml", "No space left"]);
    assert_eq!((read(), machine.files().iter().filter(|file| file.starts_with("tmp/")).count()), (earlier, 1));
    drop(agent);
    machine.portkeep(&["down"]).ok();
    machine.is_clean();
}

/// Found here: the message was only "No space left on device (os error 28)", without the thing that could not be
/// written.
#[test]
fn a_full_standard_output_is_named() {
    let machine = machine!("disk-out", machine("disk-out"));
    machine.portkeep(&["up"]).ok();
    for words in [
        &["status"][..],
        &["status", "--json"],
        &["list"],
        &["list", "--json"],
        &["acquire"],
        &["acquire", "--json"],
        &["persist", "list"],
        &["persist", "export"],
        &["check"],
        &["upgrade"],
        &["excludedportrange", "show", "tcp"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = machine.command(words).stdout(full).output().unwrap();
        Outcome::from(output).fails(1, &["writing to standard output: No space left on device"]);
    }
    assert_eq!(
        machine.portkeep(&["list", "--json"]).ok().json(),
        serde_json::json!([]),
        "acquire kept ports that it could not report"
    );
    machine.portkeep(&["down"]).ok();
    machine.is_clean();
}
