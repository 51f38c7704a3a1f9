//! The commands of the guide, as they are written there.

use std::{fs, process::Stdio};

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
    let Some(fleet) = Fleet::start("guide", 3, &["a", "b", "c"]) else { return };
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
        if !["a", "b", "c"].contains(&host) {
            continue;
        }
        let start = |line: &str| {
            let mut command = fleet.host(host).machine.program(&["sh", "-c", line]);
            command.env("PATH", &path).env("PORTKEEP_FLEET_CONFIG", fleet.configuration(host));
            command
        };
        tried += 1;
        if let Some(line) = line.strip_suffix('&') {
            // Its output is not waited for, and it ends with the test.
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
