//! Cgroup v1 only: the v2 hierarchy is not mounted.

use portkeep_testkit::{Outcome, machine::Machine};

use crate::{PORTKEEP, helper::Helper, machine};

/// Every mount of the v2 hierarchy goes, and where `/sys/fs/cgroup` was it, a v1-like tmpfs comes in its place.
const V1_ONLY: &str = r#"
mount -t bpf bpf "$0/bpf"
while at=$(awk '$3 == "cgroup2" { print $2 }' /proc/self/mounts | tail -n 1) && [ -n "$at" ]; do umount -l "$at"; done
mkdir -p "$0/v1"
mount -t tmpfs none "$0/v1"
"#;

/// Found here: `status` promised that `run` would bring it up, and `upgrade` left its lock behind.
#[test]
fn without_cgroup_v2_ports_are_held_and_the_message_says_how_to_mount_it() {
    let machine = machine!("v1", Machine::made(PORTKEEP, "v1", V1_ONLY));
    let why = &["no cgroup v2 hierarchy is mounted here", "mount -t cgroup2"];
    machine.portkeep(&["up"]).fails(1, why);
    machine.portkeep(&["agent", "--up"]).fails(1, why);
    machine.portkeep(&["run", "--require-kernel", "--", "echo", "started"]).fails(125, why);
    let said = machine.portkeep(&["run", "--", "sh", "-c", "echo $PORTKEEP_ENFORCEMENT"]).ok();
    assert_eq!(said.out, "held\n");
    said.reports(why).reports(&["only held"]);
    machine.portkeep(&["acquire", "--count", "2"]).ok().reports(why);
    let status = machine.portkeep(&["status"]);
    assert_eq!(status.code, Some(3));
    assert!(status.out.contains(why[0]) && !status.out.contains("would bring"), "{status:?}");
    machine.portkeep(&["upgrade"]).fails(3, &["is not up"]);
    machine.portkeep(&["agent"]).fails(3, &["is not up"]);
    assert_eq!(machine.portkeep(&["down"]).ok().out, "was not up\n");
    let library = machine.helper(&[], "library 5").ok();
    assert!(library.out.starts_with("5 held\n5 held\n"), "{library:?}");
    machine.is_clean();
}

/// The host's kernel enforcement serves processes that cannot see the hierarchy.
#[test]
fn a_process_that_sees_no_cgroup_v2_is_served_all_the_same() {
    let machine = machine!("v1-served");
    machine.portkeep(&["up"]).ok();
    let hide = r#"while at=$(awk '$3 == "cgroup2" { print $2 }' /proc/self/mounts | tail -n 1) && [ -n "$at" ]; do
                  umount -l "$at"; done; exec "$@""#;
    let portkeep = PORTKEEP;
    let words =
        ["unshare", "--mount", "sh", "-c", hide, "sh", portkeep, "run", "--", "sh", "-c", "echo $PORTKEEP_ENFORCEMENT"];
    let said = Outcome::from(machine.program(&words).output().unwrap()).ok();
    assert_eq!(said.out, "kernel\n");
    said.reports(&["no cgroup of its own for the command", "every process of this user can bind its ports"]);
    machine.portkeep(&["down"]).ok();
    machine.is_clean();
}
