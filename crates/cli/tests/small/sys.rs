//! A read-only `/sys`; a BPF file system that is not there, cannot be mounted, or is read-only.

use portkeep_testkit::{Outcome, machine::Machine};

use crate::{PORTKEEP, machine, works};

const USUAL: &str = r#"mount -t bpf bpf "$0/bpf""#;
/// `/sys`, the BPF file system below it and every cgroup hierarchy, as container engines mount them.
const READ_ONLY: &str = r#"
mount -t bpf bpf "$0/bpf"
for at in $(awk '$2 ~ "^/sys(/|$)" { print $2 }' /proc/self/mounts); do mount -o remount,bind,ro "$at"; done
"#;

#[test]
fn with_a_read_only_sys_the_command_has_no_cgroup_of_its_own() {
    let machine = machine!("ro-sys", Machine::made(PORTKEEP, "ro-sys", READ_ONLY));
    machine.portkeep(&["up"]).ok();
    let said = machine.portkeep(&["run", "--", "sh", "-c", "echo $PORTKEEP_ENFORCEMENT"]).ok();
    assert_eq!(said.out, "kernel\n");
    said.reports(&["no cgroup of its own for the command", "Read-only file system", "every process of this user"]);
    let said = machine.portkeep(&["run", "--scope", "cgroup", "--", "echo", "started"]);
    assert_eq!(said.out, "");
    said.fails(125, &["making cgroup", "Read-only file system"]);
    let agent = machine.agent(machine.command(&["agent"]));
    assert_eq!(machine.portkeep(&["acquire", "--ports", "20000"]).ok().out.split(' ').next(), Some("20000"));
    drop(agent);
    machine.portkeep(&["down"]).ok();
    machine.is_clean();
}

#[test]
fn a_read_only_bpf_file_system_is_named() {
    let script = format!("{USUAL}; mount -o remount,bind,ro \"$0/bpf\"");
    let machine = machine!("ro-bpf", Machine::made(PORTKEEP, "ro-bpf", &script));
    let why = &["the file system is read-only", "remount it writable", "--pin-dir", "portkeep-lock"];
    machine.portkeep(&["up"]).fails(1, why);
    let said = machine.portkeep(&["run", "--", "sh", "-c", "echo $PORTKEEP_ENFORCEMENT"]).ok();
    assert_eq!(said.out, "held\n");
    said.reports(why);
    machine.portkeep(&["down"]).fails(1, &["the file system is read-only"]);
    machine.shell(r#"mount -o remount,bind,rw "$0/bpf""#).ok();
    works(&machine);
}

/// At the usual place, in a mount namespace of the test's own.
#[test]
fn a_bpf_file_system_is_mounted_where_there_is_none_and_unmounted_again() {
    let script = "while umount /sys/fs/bpf 2>/dev/null; do :; done";
    let machine = machine!("no-bpffs", Machine::made(PORTKEEP, "no-bpffs", script));
    let mounted = || machine.shell("awk '$2 == \"/sys/fs/bpf\"' /proc/self/mounts").ok().out;
    let say = |words: &[&str]| Outcome::from(machine.command(words).env_remove("PORTKEEP_PIN_DIR").output().unwrap());
    assert_eq!(mounted(), "");
    let said = say(&["run", "--", "sh", "-c", "echo $PORTKEEP_ENFORCEMENT"]).ok();
    assert_eq!((said.out.as_str(), mounted().as_str()), ("kernel\n", ""));
    say(&["up"]).ok();
    assert_ne!(mounted(), "");
    say(&["down"]).ok();
    assert_eq!(mounted(), "");
    // An `up` that fails half-way unmounts it, too.
    let few = ["prlimit", "--nofile=16", PORTKEEP, "up"];
    Outcome::from(machine.program(&few).env_remove("PORTKEEP_PIN_DIR").output().unwrap()).fails(1, &["ulimit -n"]);
    assert_eq!(mounted(), "");
}

/// Found here: folders that had been made for the mount stayed.
#[test]
fn up_makes_nothing_if_no_bpf_file_system_can_be_mounted() {
    let machine = machine!("no-mount", Machine::made(PORTKEEP, "no-mount", ":"));
    let pins = machine.folder.path().join("made/for/bpf/portkeep");
    let no_mount = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", PORTKEEP];
    for (words, code) in [(&["up"][..], 1), (&["run", "--", "true"], 0)] {
        let said = Outcome::from(
            machine.program(&[&no_mount, words].concat()).env("PORTKEEP_PIN_DIR", &pins).output().unwrap(),
        );
        said.fails(code, &["no BPF file system is mounted", "mount -t bpf bpf /sys/fs/bpf"]);
    }
    assert!(!machine.folder.path().join("made").exists());
    // A folder with something in it is never mounted over.
    let precious = machine.folder.path().join("bpf/precious");
    std::fs::write(&precious, "").unwrap();
    machine.portkeep(&["up"]).fails(1, &["not empty, so none is mounted over it", "--pin-dir"]);
    assert!(precious.exists());
    std::fs::remove_file(&precious).unwrap();
    works(&machine);
}
