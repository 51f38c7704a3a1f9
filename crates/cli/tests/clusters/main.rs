//! The recipes of `packaging/` for many hosts, each with the program that it is for: Slurm's daemons, Docker in place
//! of a kubelet, the CNI plugin portmap, Ansible. Nomad does not run: there is only the cgroup of its tasks.

mod declared;
mod hostport;
mod slurm;

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use portkeep_testkit::{
    kernel_or_skip,
    machine::{self, Machine},
    skip,
};

const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging").canonicalize().unwrap()
}

/// Whether the kernel enforces and these programs are installed; otherwise the reason is on standard error.
#[track_caller]
fn ready(test: &str, programs: &[&str], required: &str) -> bool {
    if !kernel_or_skip(test) {
        return false;
    }
    let is_there = |program: &&str| {
        let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
        found.is_ok_and(|status| status.success())
    };
    match programs.iter().find(|program| !is_there(program)) {
        Some(missing) => {
            skip(test, &format!("no {missing}"), required);
            false
        }
        None => true,
    }
}

/// Two networks that reach each other, as 10.9.0.1 and 10.9.0.2.
fn connect(first: &Machine, second: &Machine) {
    let mut there = second.program(&["sh", "-c", "echo there; exec cat"]);
    let mut there = there.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(there.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    let up = "ip address add 10.9.0.$1/24 dev eth0 && ip link set eth0 up";
    let pair = format!("ip link add eth0 type veth peer name eth0 netns {}", there.id());
    first.shell(&format!("{pair} && set -- 1 && {up}")).ok();
    second.shell(&format!("set -- 2; {up}")).ok();
    drop(there.stdin.take());
    there.wait().unwrap();
}

#[test]
#[ignore = "plays an outsider for the other tests"]
fn helper_binds() {
    machine::help();
}
