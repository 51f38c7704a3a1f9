//! The session in the README prints what it shows.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use portkeep_testkit::{kernel_or_skip, machine::Machine, skip};

const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");

const README: &str = include_str!("../../../README.md");

/// A command of the session and the last lines of its output.
struct Step {
    command: String,
    shown: Vec<String>,
}

fn session() -> Vec<Step> {
    let block = README.split("<!-- session -->\n```console\n").nth(1).unwrap().split("```").next().unwrap();
    let mut steps: Vec<Step> = Vec::new();
    for line in block.lines() {
        match line.strip_prefix("# ") {
            Some(command) => steps.push(Step { command: command.to_owned(), shown: Vec::new() }),
            None => steps.last_mut().unwrap().shown.push(line.to_owned()),
        }
    }
    steps
}

/// Process ids and ages differ from run to run.
fn without_chance(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let mut plain = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let is_pid = index > 0 && words[index - 1] == "pid";
        plain.push(if is_pid { "PID" } else { word });
    }
    let line = plain.join(" ");
    line.split_once(", reserved ").map_or(line.clone(), |(head, _)| format!("{head}, reserved TIME"))
}

#[test]
fn the_session_prints_what_the_readme_shows() {
    if !kernel_or_skip("readme::the_session_prints_what_the_readme_shows") {
        return;
    }
    if Command::new("python3").arg("--version").stdout(Stdio::null()).status().is_err() {
        skip("readme::the_session_prints_what_the_readme_shows", "no python3", "PORTKEEP_REQUIRE_SERVERS");
        return;
    }
    // Its own ports: the pool of the machine may be in use.
    let machine = Machine::new(PORTKEEP, "readme");
    let steps = session();
    // With job control, as at a prompt. A reader types slower than `run` reserves.
    let mut script = String::from("set -m\ncd \"$FOLDER\"\n");
    for Step { command, .. } in &steps {
        script += &format!("{command}\necho \"@@ $?\"\n");
        if command.ends_with('&') {
            script += "until portkeep who 61001 >/dev/null 2>&1; do sleep 0.05; done\n";
        }
    }
    let mut shell = machine.program(&["bash", "-c", "exec bash 2>&1"]);
    let path = format!("{}:{}", Path::new(PORTKEEP).parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut shell = shell
        .env("PATH", path)
        .env("FOLDER", machine.folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    machine.portkeep(&["down"]).ok();

    let mut rest = output.as_str();
    for Step { command, shown } in &steps {
        let (printed, after) = rest.split_once("@@ ").unwrap_or_else(|| panic!("{command}: {output}"));
        let (status, after) = after.split_once('\n').unwrap();
        rest = after;
        if shown.is_empty() {
            assert_eq!(status, "0", "{command}: {output}");
            continue;
        }
        let printed: Vec<String> = printed.lines().map(without_chance).collect();
        let shown: Vec<String> = shown.iter().map(|line| without_chance(line)).collect();
        assert!(printed.ends_with(&shown), "{command}: {printed:?} instead of {shown:?}");
    }
}
