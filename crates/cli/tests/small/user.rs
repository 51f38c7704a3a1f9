//! An ordinary user on a machine where nobody ran `portkeep up`.

use crate::{helper::Helper, machine, works};

#[test]
fn a_user_sees_what_requires_root_and_the_remedy() {
    let machine = machine!("user");
    let by_root = &["bring it up with `portkeep up`, as root"][..];
    let no_agent = &["the agent is not running", "portkeep agent"][..];
    let table: &[(&[&str], i32, &[&str])] = &[
        (&["up"], 1, &["only root can bring kernel enforcement up (try sudo)"]),
        (&["upgrade"], 1, &["upgrading kernel enforcement: it requires root"]),
        (&["agent"], 3, by_root),
        (&["agent", "--up"], 1, &["it requires root"]),
        (&["release", "61000"], 3, by_root),
        (&["list"], 3, &["kernel enforcement is not up"]),
        (&["who", "61000"], 3, &[]),
        (&["status"], 3, &[]),
        (&["persist", "add", "--name", "a", "--tcp", "8443"], 1, no_agent),
        (&["persist", "delete", "a"], 1, no_agent),
        (&["reload"], 1, no_agent),
        (&["watch"], 1, no_agent),
        (&["excludedportrange", "add", "tcp", "5000", "2"], 1, no_agent),
        (&["excludedportrange", "show", "tcp"], 3, &["kernel enforcement is not up"]),
        (&["excludedportrange", "show", "tcp", "persistent"], 0, &["no agent runs"]),
        (&["persist", "list"], 0, &["no agent runs", "kernel enforcement is not up"]),
        (&["check"], 0, &[]),
        (&["down"], 1, &["taking kernel enforcement away: it requires root"]),
    ];
    for (words, code, shown) in table {
        machine.portkeep_as_nobody(words).fails(*code, shown);
    }
    let status = machine.portkeep_as_nobody(&["status"]);
    assert!(status.out.contains("only by holding the ports") && status.out.contains("it requires root"), "{status:?}");
    machine.is_clean();
    works(&machine);
}

#[test]
fn a_user_gets_held_ports_and_a_warning_of_their_limits() {
    let machine = machine!("user-held");
    let said = machine.portkeep_as_nobody(&["run", "--", "sh", "-c", "echo $PORTKEEP_ENFORCEMENT"]).ok();
    assert_eq!(said.out, "held\n");
    said.reports(&["it requires root", "only held", "SO_REUSEADDR"]);
    let said = machine.portkeep_as_nobody(&["run", "--both", "--", "true"]).ok();
    said.reports(&["the UDP ports are released when the command starts"]);
    let said = machine.portkeep_as_nobody(&["acquire", "--count", "3"]).ok();
    assert!(said.out.ends_with(" tcp held\n"), "{said:?}");
    let said = machine.portkeep_as_nobody(&["acquire", "--json"]).ok();
    assert_eq!((&said.json()["enforcement"], &said.json()["token"]), (&"held".into(), &serde_json::Value::Null));
    machine.is_clean();
}

/// Found here: `--strict` and `--scope cgroup` were ignored in held mode, and there was no way to insist.
#[test]
fn held_mode_refuses_options_that_require_the_kernel() {
    let machine = machine!("insist");
    for (code, words) in [
        (1, &["acquire", "--strict"][..]),
        (1, &["acquire", "--scope", "cgroup"]),
        (1, &["acquire", "--require-kernel"]),
        (125, &["run", "--scope", "cgroup", "--", "echo", "started"]),
        (125, &["run", "--require-kernel", "--", "echo", "started"]),
        (125, &["run", "--quiet", "--require-kernel", "--", "echo", "started"]),
    ] {
        let said = machine.portkeep_as_nobody(words).fails(code, &["requires kernel enforcement", "it requires root"]);
        assert_eq!(said.out, "", "{words:?}");
    }
    // If kernel enforcement is up, these options work.
    machine.portkeep(&["up"]).ok();
    machine.portkeep_as_nobody(&["acquire", "--strict", "--require-kernel"]).ok();
    machine.portkeep_as_nobody(&["run", "--require-kernel", "--", "true"]).ok();
    machine.portkeep(&["down"]).ok();
}

/// Found here: it said "binding 80/tcp: Permission denied (os error 13)".
#[test]
fn a_privileged_port_requires_root_in_held_mode() {
    let machine = machine!("privileged");
    let why = &["reserving the privileged port 80 requires root"];
    machine.portkeep_as_nobody(&["acquire", "--ports", "80"]).fails(1, why);
    machine.portkeep_as_nobody(&["run", "--ports", "80", "--", "true"]).fails(125, why);
}

#[test]
fn the_library_holds_ports_for_a_user() {
    let machine = machine!("user-library");
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let said = machine.helper(&nobody, "library 5").ok();
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines[..2], ["5 held", "5 held"], "{said:?}");
    assert_eq!(lines[2], "Some(92): kernel enforcement is not up here");
    assert_eq!(lines[3], "Some(95): a scope wider than the process requires kernel enforcement");
    assert_eq!(lines[4], "2 held");
}
