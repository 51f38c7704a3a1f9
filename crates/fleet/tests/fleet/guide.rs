//! The commands of the guide, as they are written there.

use std::fs;

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
    let mut tried = 0;
    for (host, line) in section.lines().filter_map(|line| line.split_once("# ")) {
        if !["a", "b", "c"].contains(&host) {
            continue;
        }
        let mut command = fleet.host(host).machine.program(&["sh", "-c", line]);
        let configuration = fleet.configuration(host);
        // A command in the background has its output elsewhere: nothing waits for it.
        let output = command.env("PATH", &path).env("PORTKEEP_FLEET_CONFIG", configuration);
        let output = match line.strip_suffix('&') {
            Some(_) => output.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).output(),
            None => output.output(),
        };
        let output = output.unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        let out = String::from_utf8(output.stdout).unwrap();
        if line.contains("echo $MASTER_ADDR") {
            assert!(section.contains(&out), "{out}");
        }
        tried += 1;
    }
    assert!(tried > 6, "{tried}");
    fleet.is_at_rest();
}
