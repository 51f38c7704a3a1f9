//! Disks that are full: of members of etcd, and of a host.

use std::{fs, io::Write, process::Stdio, thread, time::Duration};

use portkeep_testkit::{eventually, eventually_or};

use crate::{
    etcd::Cluster,
    faults::{is_active, is_enforced},
    world::{Fleet, LEASE},
};

const JOB: [&str; 6] = ["--hosts", "a,b", "--user", "nobody", "--name", "train"];

/// Write a megabyte to etcd; why it was not written.
fn write(cluster: &Cluster, number: usize) -> Option<String> {
    let mut command = cluster.etcdctl(&["put", &format!("/other/{number}")]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // etcd may refuse the value before it has read all of it.
    let _ = child.stdin.take().unwrap().write_all(&[b'x'; 1_000_000]);
    let output = child.wait_with_output().unwrap();
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn f6_full_disks_of_etcd_take_no_ports() {
    let Some(mut fleet) = Fleet::start("f6d", 3, &["a", "b"]) else { return };
    for full in [1, 2] {
        fleet.cluster.members[full].on_a_small_disk();
        fleet.cluster.ready();
    }
    let job = fleet.acquire("a", &JOB);
    let port = job.start();
    // A member whose disk is full ends. The other members go on.
    let mut written = 0;
    let mut fill = |fleet: &mut Fleet, member: usize| {
        fleet.cluster.members[member].fill_disk();
        while fleet.cluster.members[member].is_running() {
            write(&fleet.cluster, written);
            written += 1;
            assert!(written < 500, "it takes all");
        }
    };
    fill(&mut fleet, 1);
    fleet.cluster.ready();
    fleet.acquire("b", &["--hosts", "a,b", "--name", "other", "--timeout", "40"]).end();
    // When the second disk is full, the majority is lost.
    fill(&mut fleet, 2);
    let refused = fleet.fleet("a", &["acquire", "--hosts", "a,b", "--json"]);
    refused.fails(1, &["etcd cannot be reached since 20", "what is reserved stays reserved"]);
    thread::sleep(Duration::from_secs(LEASE + 2));
    is_enforced(&fleet, &["a", "b"], port);
    for full in [1, 2] {
        fleet.cluster.members[full].clear_disk();
        fleet.cluster.members[full].start();
    }
    fleet.cluster.ready();
    is_active(&fleet, "train");
    is_enforced(&fleet, &["a", "b"], port);
    job.end();
    fleet.is_free();
}

#[test]
fn f6_an_etcd_that_has_no_space_refuses_and_takes_no_ports() {
    let Some(mut fleet) = Fleet::with("f6s", 1, "http", &["--quota-backend-bytes=4000000".to_owned()], "") else {
        return;
    };
    fleet.cluster.ready();
    for host in ["a", "b"] {
        fleet.add(host);
        fleet.joined(host);
    }
    let job = fleet.acquire("a", &JOB);
    let port = job.start();
    let refused = (0..10).find_map(|number| write(&fleet.cluster, number)).expect("it has space");
    assert!(refused.contains("space exceeded"), "{refused}");
    let refused = fleet.fleet("a", &["acquire", "--hosts", "a,b", "--json"]);
    refused.fails(1, &["etcd refused", "database space exceeded", "etcdctl alarm list"]);
    thread::sleep(Duration::from_secs(LEASE + 2));
    is_active(&fleet, "train");
    is_enforced(&fleet, &["a", "b"], port);
    // A job can end; its block cannot rest.
    job.end();
    eventually_or(|| fleet.log("a"), || fleet.enforced("a").is_empty() && fleet.enforced("b").is_empty());
    let waits = || ["a", "b"].iter().any(|host| fleet.log(host).contains("not vacant yet: etcd refused"));
    eventually_or(|| fleet.log("a") + &fleet.log("b"), waits);
    assert_eq!(fleet.json("a", &["list"])[0]["state"], "ended");
    let etcdctl = |words: &[&str]| {
        let output = fleet.cluster.etcdctl(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    };
    etcdctl(&["del", "--prefix", "/other/"]);
    // The status has a revision at which the keys are deleted already.
    let revision = fleet.json("a", &["status"])["revision"].to_string();
    etcdctl(&["compact", "--physical", &revision]);
    etcdctl(&["defrag"]);
    etcdctl(&["alarm", "disarm"]);
    fleet.is_free();
}

#[test]
fn f5_a_full_disk_of_a_host_hurts_no_job() {
    let Some(mut fleet) = Fleet::start("f5d", 1, &["a"]) else { return };
    fleet.add_machine("b", true);
    let folder = fleet.host("b").machine.folder.path().join("fleet");
    fs::create_dir(&folder).unwrap();
    let shell = |script: &str| fleet.host("b").machine.shell(script);
    shell(r#"mount -t tmpfs -o size=64k tmpfs "$0/fleet""#).ok();
    fleet.start_daemon("b");
    fleet.joined("b");
    // Its file can be read, and not replaced.
    let shell = |script: &str| fleet.host("b").machine.shell(script);
    assert_ne!(shell(r#"cat /dev/zero > "$0/fleet/filler""#).code, Some(0));
    let job = fleet.acquire("a", &JOB);
    is_enforced(&fleet, &["a", "b"], job.start());
    eventually_or(|| fleet.log("b"), || fleet.log("b").contains("warning: cannot write"));
    fleet.kill_daemon("b");
    fleet.start_daemon("b");
    eventually(|| fleet.log("b").matches("belongs to the fleet").count() == 2);
    is_active(&fleet, "train");
    job.end();
    fleet.is_free();
}
