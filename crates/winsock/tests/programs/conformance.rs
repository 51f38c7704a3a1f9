//! The conformance suite in every environment that it knows. Each row is tested in at least one of them: a rule that is
//! never tested would always seem to hold.

use std::{collections::BTreeSet, fs, os::unix::process::CommandExt, path::Path, process::Command};

use portkeep_core::Errno;
use portkeep_kernel::Settings;
use portkeep_testkit::{Sandbox, TestCgroup, World, new_namespace};
use rustix::process::Signal;

use crate::{
    compiler::{Kit, STRICT, kit, source, start_agent, text},
    skipped,
};

/// The output of one run.
#[derive(Default)]
struct Heard {
    asked: BTreeSet<String>,
    left_out: BTreeSet<(String, String)>,
}

impl Heard {
    #[track_caller]
    fn hear(&mut self, world: &str, mut command: Command) {
        let output = command.arg(world).output().expect("the suite starts");
        let text = text(&output);
        let failures: Vec<_> = text.lines().filter(|line| !line.starts_with("asked: ")).collect();
        assert!(output.status.success(), "in the world {world:?}: {}\n{}", output.status, failures.join("\n"));
        for line in text.lines() {
            if let Some(rule) = line.strip_prefix("asked: ") {
                self.asked.insert(rule.to_owned());
            } else if let Some((rule, why)) = line.strip_prefix("left out: ").and_then(|line| line.rsplit_once(": ")) {
                self.left_out.insert((rule.to_owned(), why.to_owned()));
            }
        }
    }
}

/// A user without any right.
const NOBODY: u32 = 65534;

fn as_nobody(mut command: Command) -> Command {
    command.uid(NOBODY).gid(NOBODY);
    command
}

/// The suite, moved into a cgroup before it starts.
fn within(kit: &Kit, cgroup: &Path, program: &Path) -> Command {
    let mut command = kit.command("sh");
    command.arg("-c").arg("echo $$ >\"$0\" && exec \"$@\"").arg(cgroup.join("cgroup.procs")).arg(program);
    command
}

#[test]
fn every_row_of_the_contract_holds() {
    let test = "every_row_of_the_contract_holds";
    let Some(kit) = kit(test) else { return };
    let Some(world) = World::enter(test) else { return };
    // Ping sockets for everybody, in this namespace.
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").expect("a sysctl of our own namespace");
    let program = kit.build("cc", &[STRICT, &["-pthread"]].concat(), &source("conformance.c"));
    let mut heard = Heard::default();
    heard.hear("no-agent", kit.command(&program));

    let agent = start_agent(&world);
    heard.hear("agent", kit.command(&program));
    heard.hear("user", as_nobody(kit.command(&program)));
    agent.stop();

    let agent = start_agent(&world);
    agent.signal(Signal::STOP);
    heard.hear("stopped", kit.command(&program));
    drop(agent);

    let mut settings = Settings::default();
    settings.deny_errno = Errno::EACCES;
    let strict = Sandbox::beside("eacces", &settings);
    heard.hear("eacces", within(kit, strict.cgroup().path(), &program));
    drop(strict);
    world.assert_empty();

    // No kernel enforcement: a cgroup beside the sandbox, and a namespace without reservations.
    new_namespace();
    let outside = TestCgroup::new("held").expect("a cgroup");
    heard.hear("held", within(kit, outside.path(), &program));

    let list = kit.command(&program).arg("list").output().expect("the suite starts");
    let rules: Vec<String> = text(&list).lines().map(str::to_owned).collect();
    let once: BTreeSet<_> = rules.iter().collect();
    assert_eq!(once.len(), rules.len(), "two rows of one name");
    assert!(rules.len() > 100, "{rules:?}");
    for rule in rules.iter().filter(|rule| !heard.asked.contains(*rule)) {
        let why = heard.left_out.iter().find(|(left_out, _)| left_out == rule);
        let (_, why) = why.unwrap_or_else(|| panic!("no world asks: {rule}"));
        skipped(test, &format!("{rule}: {why}"));
    }
}
