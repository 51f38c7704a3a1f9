//! Containers: root that is not root. In a user namespace; without capabilities; behind a seccomp filter. And with the
//! host's kernel enforcement up, which serves them as everybody else.

use std::process::{Command, Stdio};

use portkeep_testkit::{Outcome, REQUIRE, machine::Machine, skip};

use crate::{PORTKEEP, helper::Helper, machine, works};

const HOST: &str = "in a container, have the host run `portkeep up`";
const CONTAINER: [&str; 7] = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc"];
/// The rights that Docker takes away from root, as far as it matters here.
const DROPPED: [&str; 3] =
    ["setpriv", "--bounding-set=-sys_admin,-bpf,-perfmon,-net_admin,-sys_ptrace,-sys_resource", "--inh-caps=-all"];

fn inside<'a>(container: &[&'a str], words: &[&'a str]) -> Vec<&'a str> {
    [container, &[PORTKEEP], words].concat()
}

/// Whether they are allowed on this machine.
fn user_namespaces(test: &str) -> bool {
    let allowed = Command::new("unshare").args(["--user", "true"]).stderr(Stdio::null()).status().unwrap().success();
    if !allowed {
        skip(test, "no user namespaces are allowed", REQUIRE);
    }
    allowed
}

/// The messages for root in such a container, and that it gets held ports.
#[track_caller]
fn is_reported(machine: &Machine, container: &[&str], why: &str) {
    let say = |words: &[&str]| Outcome::from(machine.program(&inside(container, words)).output().unwrap());
    say(&["up"]).fails(1, &["bringing kernel enforcement up", why]);
    say(&["agent", "--up"]).fails(1, &["bringing kernel enforcement up", why]);
    let said = say(&["run", "--", "sh", "-c", "echo $PORTKEEP_ENFORCEMENT"]).ok();
    assert_eq!(said.out, "held\n", "{said:?}");
    let said = said.reports(&["cannot be brought up", why, "only held"]);
    assert_eq!(said.err.lines().count(), 1, "the verifier's log is not for this: {said:?}");
    let said = say(&["acquire"]).ok();
    assert!(said.out.ends_with(" tcp held\n"), "{said:?}");
    say(&["run", "--require-kernel", "--", "echo", "started"]).fails(125, &["--require-kernel", why]);
    let status = say(&["status"]);
    assert_eq!(status.code, Some(3), "{status:?}");
    assert!(status.out.contains(why), "it promised what it cannot do: {status:?}");
    machine.is_clean();
}

#[test]
fn root_of_a_user_namespace_is_sent_to_the_host() {
    let machine = machine!("userns");
    if !user_namespaces("container::root_of_a_user_namespace") {
        return;
    }
    is_reported(&machine, &CONTAINER, "it requires root of the host, not of a user namespace");
    is_reported(&machine, &CONTAINER, HOST);
    works(&machine);
}

/// Found here: without CAP_PERFMON, messages had the whole log of the verifier, even the one line of `run`.
#[test]
fn root_without_capabilities_sees_which_are_missing() {
    let machine = machine!("capabilities");
    is_reported(
        &machine,
        &DROPPED,
        "it requires CAP_BPF and CAP_NET_ADMIN and CAP_PERFMON, which this process does not have",
    );
    for (left_out, name) in [("bpf", "CAP_BPF"), ("net_admin", "CAP_NET_ADMIN"), ("perfmon", "CAP_PERFMON")] {
        let bounding = format!("--bounding-set=-sys_admin,-{left_out}");
        let without = ["setpriv", &bounding, "--inh-caps=-all"];
        is_reported(&machine, &without, &format!("it requires {name}, which"));
    }
    works(&machine);
}

#[test]
fn a_filter_on_bpf_is_named() {
    let machine = machine!("filter");
    for words in ["up", "agent --up"] {
        let said = machine.helper(&[], &format!("without-bpf {PORTKEEP} {words}"));
        said.fails(1, &["bpf(2) is denied here by a seccomp filter or a security module", HOST]);
    }
    let said = machine.helper(&[], &format!("without-bpf {PORTKEEP} run -- env")).ok();
    assert!(said.out.contains("PORTKEEP_ENFORCEMENT=held"), "{said:?}");
    said.reports(&["bpf(2) is denied", "only held"]);
    machine.is_clean();
    works(&machine);
}

/// The command of `run` is started in its cgroup by clone3. If clone3 is denied, `run` moves there and back.
#[test]
fn a_command_gets_its_cgroup_without_clone3() {
    let machine = machine!("clone3");
    machine.portkeep(&["up"]).ok();
    let own = machine.home();
    let said =
        machine.helper(&[], &format!("without-clone3 {PORTKEEP} run --scope cgroup -- cat /proc/self/cgroup")).ok();
    assert!(said.out.lines().any(|line| line.starts_with(&format!("0::{own}/portkeep-run-"))), "{said:?}");
    assert_eq!(machine.portkeep(&["list", "--json"]).ok().json(), serde_json::json!([]));
    machine.portkeep(&["down"]).ok();
    machine.is_clean();
}

/// Found here: `down` and `agent` said that kernel enforcement was not up, although `status` said that it was.
#[test]
fn containers_use_the_kernel_enforcement_of_their_host() {
    let machine = machine!("host");
    if !user_namespaces("container::containers_use") {
        return;
    }
    machine.portkeep(&["up"]).ok();
    let own = machine.for_everybody(std::env::current_exe().unwrap().to_str().unwrap());
    let outsider = format!("PORTKEEP_TEST_BIND=\"tcp $PORT\" {own} --exact helper_binds --ignored --nocapture");
    let check = format!("{PORTKEEP} list; {PORTKEEP} who $PORT; {outsider}");
    // The pins of the host are not there, as in a container whose /sys/fs/bpf is its own.
    let hide = format!(r#"mount -t tmpfs none "{}" && exec "$@""#, machine.folder.path().join("bpf").display());
    let userns = [&CONTAINER[..], &["sh", "-c", &hide, "sh"]].concat();
    let mount_first = ["unshare", "--mount", "sh", "-c", &hide, "sh"];
    let dropped = [&mount_first[..], &DROPPED].concat();
    let filtered_part = format!("without-bpf {PORTKEEP} run -- env");
    for container in [&userns, &dropped] {
        let say = |words: &[&str]| Outcome::from(machine.program(&inside(container, words)).output().unwrap());
        let said = say(&["run", "--label", "inside", "--scope", "user", "--", "sh", "-c", &check]).ok();
        assert!(said.out.contains("inside") && said.out.contains("helper: bound"), "{said:?}");
        assert_eq!(said.err, "", "{said:?}");
        let said = say(&["acquire", "--strict", "--require-kernel", "--count", "4"]).ok();
        assert!(said.out.starts_with("610"), "{said:?}");
        say(&["status"]).ok();
        say(&["list"]).ok();
        for words in [&["down"][..], &["agent"], &["release", "61000"]] {
            say(words).fails(1, &["kernel enforcement is up, but not pinned in", "in a container, the host"]);
        }
        say(&["up"]).fails(1, &["kernel enforcement serves this cgroup already", "reservations can be made here"]);
        // The host's reservations are in force in the container, which shares its network here.
        let holding = machine.hold(&["--ports", "61100"]);
        say(&["acquire", "--ports", "61100"]).fails(1, &["61100/tcp belongs to"]);
        holding.let_go();
    }
    // Without capabilities and behind the filter, as engines do it.
    let said = machine.helper(&DROPPED, &filtered_part).ok();
    assert!(said.out.contains("PORTKEEP_ENFORCEMENT=kernel"), "{said:?}");
    assert_eq!(said.err, "");
    let library = machine.helper(&DROPPED, "library 5").ok();
    assert!(library.out.starts_with("5 kernel\n5 kernel\n"), "{library:?}");
    machine.portkeep(&["down"]).ok();
    machine.is_clean();
}
