//! Least privilege, found by trying: each command runs as root, and loses one capability after the other if it works
//! without it. It requires the remaining ones, and a unit file may limit it to them. Another test checks what an
//! ordinary user sees of the files.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use portkeep_kernel::Instance;
use portkeep_testkit::{Outcome, kernel_or_skip, machine::Machine};

const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");

/// The rights that could be needed, the most powerful ones first: of two that would do, the lesser is kept.
const CANDIDATES: [&str; 10] = [
    "sys_admin",
    "dac_override",
    "dac_read_search",
    "sys_ptrace",
    "sys_resource",
    "setpcap",
    "net_bind_service",
    "perfmon",
    "net_admin",
    "bpf",
];

/// Root, bounded to these capabilities and nothing else.
fn bounded(capabilities: &[&str]) -> Vec<String> {
    let set: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    vec!["setpriv".into(), format!("--bounding-set=-all{set}"), "--inh-caps=-all".into(), "--".into()]
}

fn with(machine: &Machine, capabilities: &[&str], words: &[&str]) -> Outcome {
    let mut all = bounded(capabilities);
    all.extend([PORTKEEP].iter().chain(words).map(|word| (*word).to_owned()));
    let words: Vec<&str> = all.iter().map(String::as_str).collect();
    machine.program(&words).output().unwrap().into()
}

/// The least set with which it works: every one of them is needed.
fn least(what: &str, works: impl Fn(&[&str]) -> bool) -> Vec<&'static str> {
    if works(&[]) {
        return Vec::new();
    }
    let mut left = CANDIDATES.to_vec();
    assert!(works(&left), "{what} does not work with all of them");
    for name in CANDIDATES {
        let fewer: Vec<_> = left.iter().copied().filter(|other| *other != name).collect();
        if works(&fewer) {
            left = fewer;
        }
    }
    left.sort_unstable();
    left
}

const PRETEND: &str = "PORTKEEP_TEST_PRETEND";

/// Started by the next test where the pins can be seen.
#[test]
#[ignore = "prepares an upgrade for the next test"]
fn pretends_another_build() {
    if std::env::var_os(PRETEND).is_some() {
        let folder = std::env::var_os("PORTKEEP_PIN_DIR").unwrap();
        let instance = Instance::open(folder.as_ref());
        // If this runs a second time, it is another build already.
        if let Ok(instance) = instance {
            instance.pretend_build(1).unwrap();
        }
    }
}

#[test]
fn each_command_needs_these_capabilities_and_no_others() {
    if !kernel_or_skip("privileges::each_command_needs") {
        return;
    }
    let machine = Machine::new(PORTKEEP, "least");
    let of = |words: &'static [&'static str]| least(words[0], |caps| with(&machine, caps, words).code == Some(0));

    let up = least("up", |caps| {
        let worked = with(&machine, caps, &["up"]).code == Some(0);
        machine.portkeep(&["down"]);
        worked
    });
    assert_eq!(up, ["bpf", "net_admin", "perfmon"]);
    let down = least("down", |caps| {
        machine.portkeep(&["up"]).ok();
        with(&machine, caps, &["down"]).code == Some(0)
    });
    assert_eq!(down, [""; 0], "the files are root's, and opening a pin takes no more");

    machine.portkeep(&["up"]).ok();
    assert_eq!(of(&["upgrade"]), [""; 0], "nothing to do");
    let helper = std::env::current_exe().unwrap();
    let pretend = [helper.to_str().unwrap(), "--exact", "pretends_another_build", "--ignored"];
    let upgrade = least("upgrade", |caps| {
        assert!(machine.program(&pretend).env(PRETEND, "1").output().unwrap().status.success());
        with(&machine, caps, &["upgrade"]).code == Some(0)
    });
    assert_eq!(upgrade, ["bpf", "net_admin", "perfmon"]);
    machine.portkeep(&["upgrade"]).ok();
    let holding = machine.hold(&["--label", "seen"]);
    for words in [&["status"][..], &["list"], &["who", "61000"], &["run", "--", "true"]] {
        let needed = least(words[0], |caps| with(&machine, caps, words).code == Some(0));
        assert_eq!(needed, [""; 0], "{words:?}");
    }
    holding.let_go();
    // The agent is asked for a port outside the pool, by a process with all capabilities in a network namespace that is
    // not the agent's. An agent that only runs proves nothing.
    let agent = least("agent", |caps| {
        let mut words = bounded(caps);
        words.extend([PORTKEEP, "agent"].map(str::to_owned));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut agent = machine.program(&words).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let worked = running(&machine, &mut agent) && {
            let mut acquire = machine.program(&["unshare", "--net", PORTKEEP, "acquire", "--ports", "20000"]);
            Outcome::from(acquire.output().unwrap()).code == Some(0)
        };
        let _ = agent.kill();
        agent.wait().unwrap();
        worked
    });
    // `sys_admin` includes bpf, net_admin and perfmon.
    assert_eq!(agent, ["sys_admin", "sys_ptrace"]);
    machine.portkeep(&["down"]).ok();
}

/// True once it is the agent, false if it gave up.
fn running(machine: &Machine, agent: &mut Child) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(10) {
        if agent.try_wait().unwrap().is_some() {
            return false;
        }
        if machine.portkeep(&["status", "--json"]).ok().json()["agent"] == true {
            return true;
        }
    }
    false
}

#[test]
fn an_ordinary_user_needs_none_and_cannot_administer() {
    if !kernel_or_skip("privileges::an_ordinary_user") {
        return;
    }
    let machine = Machine::new(PORTKEEP, "ordinary");
    machine.portkeep(&["up"]).ok();
    let holding = machine.hold(&["--label", "roots"]);
    for words in [&["status"][..], &["list"], &["who", "61000"], &["acquire"], &["run", "--", "true"]] {
        machine.portkeep_as_nobody(words).ok();
    }
    for words in [&["down"][..], &["upgrade"], &["agent"], &["release", "61000"]] {
        let said = machine.portkeep_as_nobody(words);
        assert!(![Some(0), None].contains(&said.code), "{words:?}: {said:?}");
        assert!(!said.err.contains("panicked"), "{said:?}");
    }
    machine.portkeep(&["status"]).ok();
    // Still there, and still root's.
    assert!(machine.portkeep(&["who", "61000"]).ok().out.contains("roots"));
    holding.let_go();
    machine.portkeep(&["down"]).ok();
}

#[test]
fn pins_and_locks_are_roots_alone() {
    if !kernel_or_skip("privileges::pins") {
        return;
    }
    let machine = Machine::new(PORTKEEP, "modes");
    machine.portkeep(&["up"]).ok();
    let mut agent = machine.command(&["agent"]).stderr(Stdio::null()).spawn().unwrap();
    assert!(running(&machine, &mut agent));
    let pins = machine.pins();
    let find = machine.program(&["find", pins.to_str().unwrap(), "-printf", "%m %U %y\n"]).output().unwrap();
    let list = String::from_utf8_lossy(&find.stdout).into_owned();
    let modes: Vec<Vec<&str>> = list.lines().map(|line| line.split(' ').collect()).collect();
    assert!(modes.len() > 20, "{list}");
    for mode in &modes {
        let [bits, uid, kind] = mode[..] else { panic!("{mode:?}") };
        let open = u32::from_str_radix(bits, 8).unwrap() & 0o077;
        assert_eq!((open, uid), (0, "0"), "a {kind} of mode {bits}");
    }
    for entry in std::fs::read_dir(machine.folder.path().join("run")).unwrap() {
        let entry = entry.unwrap();
        let (file, path) = (entry.metadata().unwrap(), entry.path());
        // Every user may connect to the socket. For each request the agent checks whether the user may change anything.
        let open = if entry.file_name() == "agent.sock" { 0o666 } else { 0o644 };
        assert_eq!((file.uid(), file.permissions().mode() & 0o777 & !open), (0, 0), "{}", path.display());
    }
    agent.kill().unwrap();
    agent.wait().unwrap();
    machine.portkeep(&["down"]).ok();
}
