//! The commands of the guide, as they are written there.

use std::{
    fs,
    io::{BufRead, BufReader, Lines},
    process::{ChildStdout, Stdio},
};

use portkeep_testkit::machine::Running;

use crate::world::{FLEET, Fleet};

const GUIDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guides/clusters.md");

/// The part of the guide about the fleet.
fn section() -> String {
    let guide = fs::read_to_string(GUIDE).unwrap();
    let (_, rest) = guide.split_once("\n## One block on every host: portkeep-fleet\n").unwrap();
    rest.split("\n## ").next().unwrap().to_owned()
}

fn block<'a>(section: &'a str, language: &str) -> &'a str {
    let (_, rest) = section.split_once(&format!("```{language}\n")).unwrap();
    rest.split("```").next().unwrap()
}

#[test]
fn f1_the_guide_is_right() {
    let Some(fleet) = Fleet::start("guide", 3, &HOSTS) else { return };
    let section = section();
    // Its configuration names files that are not here.
    let configuration = fleet.host("a").machine.folder.path().join("guide.toml");
    fs::write(&configuration, block(&section, "toml")).unwrap();
    let outcome =
        fleet.host("a").machine.program(&[FLEET, "--config", configuration.to_str().unwrap(), "list"]).output();
    let said = String::from_utf8(outcome.unwrap().stderr).unwrap();
    assert!(said.contains("reading /etc/portkeep/fleet"), "{said}");

    let folder = std::path::Path::new(FLEET).parent().unwrap().display().to_string();
    let path = format!("{folder}:{}", std::env::var("PATH").unwrap());
    let (mut tried, mut background) = (0, Vec::new());
    for (host, line) in section.lines().filter_map(|line| line.split_once("# ")) {
        if !HOSTS.contains(&host) {
            continue;
        }
        let start = |line: &str| {
            let mut command = fleet.host(host).machine.program(&["sh", "-c", line]);
            command.env("PATH", &path).env("PORTKEEP_FLEET_CONFIG", fleet.configuration(host));
            command
        };
        tried += 1;
        if let Some(line) = line.strip_suffix('&') {
            // The test does not wait for the output of this command, which ends with the test.
            let mut command = start(&format!("exec {line}"));
            background.push(Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()));
            continue;
        }
        let output = start(line).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        let out = String::from_utf8(output.stdout).unwrap();
        if line.contains("echo $MASTER_ADDR") {
            assert!(section.contains(&out), "{out}");
        }
    }
    assert!(tried > 6, "{tried}");
    fleet.is_at_rest();
}

/// The Python of the system, which every user can start.
const PYTHON: &str = "/usr/bin/python3";
const RANK: &str = include_str!("rank.py");
const HOSTS: [&str; 3] = ["a", "b", "c"];

#[test]
fn f7_a_job_like_that_of_torchrun_runs_while_a_cable_is_cut() {
    let Some(fleet) = Fleet::start("torchrun", 3, &HOSTS) else { return };
    // Hosts find each other by name.
    let names: String = HOSTS.iter().zip(11..).map(|(host, number)| format!("10.77.0.{number} {host}\n")).collect();
    for host in HOSTS {
        let machine = &fleet.host(host).machine;
        fs::write(machine.folder.path().join("hosts"), &names).unwrap();
        fs::write(machine.folder.path().join("rank.py"), RANK).unwrap();
        machine.shell(r#"mount --bind "$0/hosts" /etc/hosts"#).ok();
    }
    let rank = |host: &str| fleet.host(host).machine.folder.path().join("rank.py").display().to_string();
    let words = ["run", "--hosts", "a,b,c", "--count", "2", "--name", "torch", "--user", "nobody", "--", "setpriv"];
    let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups", PYTHON];
    let mut first = fleet.command("a", &[&words[..], &nobody, &[&rank("a"), "0", "3"]].concat());
    let mut first = Running(first.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let start = |host: &str, number: &str| {
        let job = fleet.json(host, &["wait", "torch", "--timeout", "60"]);
        let mut command = fleet.host(host).machine.as_nobody(&[PYTHON, &rank(host), number, "3"]);
        command.env("MASTER_ADDR", job["hosts"][0]["host"].as_str().unwrap());
        Running(command.env("MASTER_PORT", job["start"].to_string()).spawn().unwrap())
    };
    let mut others = [start("b", "1"), start("c", "2")];
    let mut steps = BufReader::new(first.0.stdout.take().unwrap()).lines();
    let go_on = |steps: &mut Lines<BufReader<ChildStdout>>| {
        for _ in 0..5 {
            assert!(steps.next().unwrap().unwrap().starts_with("step "));
        }
    };
    go_on(&mut steps);
    let port = fleet.json("a", &["show", "torch"])["start"].as_u64().unwrap() as u16;
    let refuse = || HOSTS.map(|host| [port, port + 1].map(|port| assert_eq!(fleet.outsider(host, port), "AddrInUse")));
    refuse();
    fleet.switch.cut("h-b");
    refuse();
    fleet.switch.heal("h-b");
    go_on(&mut steps);
    refuse();
    drop(first.0.stdin.take());
    steps.for_each(drop);
    for process in others.iter_mut().chain([&mut first]) {
        assert!(process.0.wait().unwrap().success());
    }
    fleet.is_free();
}
