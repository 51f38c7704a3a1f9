//! Everything that can fail fails.

use std::{fs, thread, time::Duration};

use portkeep_testkit::{eventually, eventually_or};
use rustix::process::Signal;
use serde_json::Value;

use crate::world::{Fleet, LEASE};

const JOB: [&str; 8] = ["--hosts", "a,b,c", "--count", "2", "--user", "nobody", "--name", "train"];
const REFUSED: &str = "AddrInUse";

/// All hosts have the job's ports, or soon have them again.
#[track_caller]
pub(crate) fn is_active(fleet: &Fleet, name: &str) {
    let hosts = || fleet.json("a", &["list"]).as_array().unwrap().iter().find(|job| job["name"] == name).cloned();
    let active = |job: Value| job["hosts"].as_array().unwrap().iter().all(|host| host["state"] == "active");
    eventually_or(|| format!("{:?}", hosts()), || hosts().is_some_and(active));
}

/// Outsiders are kept off on these hosts.
#[track_caller]
pub(crate) fn is_enforced(fleet: &Fleet, hosts: &[&str], port: u16) {
    for host in hosts {
        assert_eq!(fleet.outsider(host, port), REFUSED, "{host}: {}", fleet.log(host));
    }
}

#[track_caller]
fn is_up(fleet: &Fleet, host: &str, up: bool) {
    let seen = || {
        fleet.json("a", &["status"])["hosts"].as_array().unwrap().iter().find(|h| h["host"] == host).unwrap()["up"]
            .clone()
    };
    eventually_or(|| format!("{host} is up: {}", seen()), || seen() == up);
}

#[test]
fn f5_the_death_of_a_daemon_or_of_a_requester_leaks_nothing() {
    let Some(mut fleet) = Fleet::start("f5", 1, &["a", "b", "c"]) else { return };
    let job = fleet.acquire("a", &JOB);
    let port = job.start();
    fleet.kill_daemon("b");
    is_enforced(&fleet, &["a", "b", "c"], port);
    // A daemon that comes back goes on with the reservation, whatever a power failure has left of its file.
    fs::write(fleet.host("b").machine.folder.path().join("fleet/b.json"), "{\"cluster\"").unwrap();
    fleet.start_daemon("b");
    is_up(&fleet, "b", true);
    eventually(|| fleet.log("b").matches("belongs to the fleet").count() == 2);
    assert_eq!(fleet.enforced("b").len(), 1, "{}", fleet.log("b"));
    is_active(&fleet, "train");
    // The requester dies, and a daemon while it is dead.
    fleet.kill_daemon("b");
    job.kill();
    eventually_or(|| fleet.log("a"), || fleet.enforced("a").is_empty() && fleet.enforced("c").is_empty());
    assert_eq!(fleet.enforced("b").len(), 1);
    assert_eq!(fleet.json("a", &["list"])[0]["state"], "ended");
    fleet.start_daemon("b");
    fleet.is_free();
}

#[test]
fn f5_an_agent_that_answers_too_late_leaves_no_reservation() {
    let Some(fleet) = Fleet::start("f5a", 1, &["a", "b"]) else { return };
    let agent = fleet.host("b").agent.as_ref().unwrap().pid();
    crate::etcd::signal(agent, Signal::STOP);
    let refused = fleet.fleet("a", &["acquire", "--hosts", "a,b", "--timeout", "40"]);
    crate::etcd::signal(agent, Signal::CONT);
    refused.fails(1, &["b: the agent did not answer"]);
    fleet.is_free();
    fleet.acquire("a", &["--hosts", "a,b"]).end();
    fleet.is_free();
}

#[test]
fn f5_a_decision_whose_answer_is_lost_counts() {
    let Some(fleet) = Fleet::start("f5l", 1, &["a", "b"]) else { return };
    let lossy = fleet.cluster.lossy();
    let endpoints = format!("{lossy},{}", fleet.cluster.endpoints());
    let job = fleet.acquire("a", &["--endpoints", &endpoints, "--hosts", "a,b", "--name", "train"]);
    assert_eq!((job.start(), fleet.enforced("a").len(), fleet.enforced("b").len()), (20000, 1, 1));
    job.end();
    fleet.is_free();
}

#[test]
fn f7_a_host_that_is_cut_off_keeps_its_ports_and_blocks_nobody() {
    let Some(fleet) = Fleet::start("f7", 3, &["a", "b", "c"]) else { return };
    let job = fleet.acquire("a", &JOB);
    let port = job.start();
    let server = fleet.serve("b", port);
    fleet.switch.cut("h-b");
    is_up(&fleet, "b", false);
    is_enforced(&fleet, &["a", "b", "c"], port + 1);
    let shown = fleet.json("a", &["show", "train"]);
    assert_eq!((&shown["state"], &shown["hosts"][1]["state"]), (&"active".into(), &"lost".into()), "{shown}");
    // The other hosts go on. Requests for the lost host report that; requests on the lost host report since when etcd
    // cannot be reached.
    fleet.acquire("c", &["--hosts", "a,c", "--name", "other"]).end();
    fleet.fleet("a", &["acquire", "--hosts", "a,b"]).fails(3, &["b cannot be reached"]);
    let refused = fleet.fleet("b", &["acquire", "--hosts", "b"]);
    refused.fails(1, &["etcd cannot be reached since 20", "what is reserved stays reserved"]);
    fleet.switch.heal("h-b");
    is_up(&fleet, "b", true);
    assert_eq!(fleet.enforced("b").len(), 1, "{}", fleet.log("b"));
    // A job that ends meanwhile is noticed afterwards. Its block is not free before.
    fleet.switch.cut("h-b");
    is_up(&fleet, "b", false);
    server.end();
    job.end();
    eventually(|| fleet.enforced("a").is_empty() && fleet.enforced("c").is_empty());
    is_enforced(&fleet, &["b"], port);
    assert_eq!(fleet.json("a", &["list"])[0]["state"], "ended");
    fleet.switch.heal("h-b");
    // Requesters that were cut off have time to take their jobs back.
    let list = || fleet.json("a", &["list"]).to_string();
    eventually_or(list, || list().contains("this host was cut off"));
    fleet.is_free();
}

#[test]
fn f7_a_requester_that_was_cut_off_takes_its_job_back() {
    let Some(fleet) = Fleet::start("f7b", 1, &["a", "b", "c"]) else { return };
    let job = fleet.acquire("c", &JOB);
    let port = job.start();
    let server = fleet.serve("b", port);
    fleet.switch.cut("h-c");
    // Its lease ends. Where the job's ports are in use they stay reserved.
    eventually_or(|| format!("{:?}", fleet.cluster.keys()), || fleet.cluster.keys_of("job").is_empty());
    is_enforced(&fleet, &["b", "c"], port + 1);
    fleet.switch.heal("h-c");
    eventually_or(|| fleet.log("a"), || !fleet.cluster.keys_of("job").is_empty());
    is_active(&fleet, "train");
    is_enforced(&fleet, &["a", "b", "c"], port + 1);
    server.end();
    job.end();
    fleet.is_free();
}

#[test]
fn f6_members_of_etcd_may_die_or_hang() {
    let Some(fleet) = Fleet::start("f6", 3, &["a", "b", "c"]) else { return };
    let job = fleet.acquire("a", &JOB);
    let port = job.start();
    let leader = fleet.cluster.leader();
    fleet.cluster.members[leader].kill();
    fleet.acquire("b", &["--hosts", "a,b,c", "--name", "after-a-death", "--timeout", "40"]).end();
    fleet.cluster.members[leader].start();
    fleet.cluster.ready();
    let leader = fleet.cluster.leader();
    fleet.cluster.members[leader].signal(Signal::STOP);
    fleet.acquire("b", &["--hosts", "a,b,c", "--name", "after-a-pause", "--timeout", "40"]).end();
    // The majority is lost.
    let other = (leader + 1) % 3;
    fleet.cluster.members[other].signal(Signal::STOP);
    let refused = fleet.fleet("a", &["acquire", "--hosts", "a,b", "--json"]);
    refused.fails(1, &["etcd cannot be reached since 20", "what is reserved stays reserved"]);
    thread::sleep(Duration::from_secs(LEASE + 2));
    is_enforced(&fleet, &["a", "b", "c"], port);
    fleet.fleet("a", &["status"]).fails(1, &["etcd cannot be reached since 20", "last saw revision"]);
    for member in [leader, other] {
        fleet.cluster.members[member].signal(Signal::CONT);
    }
    fleet.cluster.ready();
    for host in ["a", "b", "c"] {
        is_up(&fleet, host, true);
    }
    is_enforced(&fleet, &["a", "b", "c"], port);
    is_active(&fleet, "train");
    job.end();
    fleet.is_free();
}

#[test]
fn f8_a_host_that_has_lost_its_ports_reserves_them_again_or_says_so() {
    let Some(mut fleet) = Fleet::start("f8", 1, &["a", "b", "c"]) else { return };
    let job = fleet.acquire("a", &JOB);
    let port = job.start();
    // A reboot ends these reservations.
    let reboot = |fleet: &mut Fleet| {
        fleet.kill_daemon("b");
        let name = fleet.enforced("b").remove(0);
        fleet.host("b").machine.portkeep(&["persist", "delete", &name]).ok();
    };
    let part = |fleet: &Fleet| fleet.json("a", &["show", "train"])["hosts"][1].clone();
    reboot(&mut fleet);
    fleet.start_daemon("b");
    eventually_or(|| fleet.log("b"), || fleet.enforced("b").len() == 1);
    is_enforced(&fleet, &["b"], port);
    reboot(&mut fleet);
    let server = fleet.serve("b", port);
    fleet.start_daemon("b");
    eventually_or(
        || format!("{} {}", fleet.log("b"), part(&fleet)),
        || {
            part(&fleet)["state"] == "lost"
                && part(&fleet)["reason"].as_str().is_some_and(|reason| reason.contains("is in use by pid"))
        },
    );
    is_enforced(&fleet, &["a", "c"], port);
    // A host that will not come back.
    fleet.kill_daemon("b");
    is_up(&fleet, "b", false);
    fleet.fleet("a", &["forget", "b"]).ok();
    fleet.fleet("a", &["forget", "b"]).fails(3, &["does not belong to the fleet"]);
    server.end();
    job.end();
    fleet.is_free();
}

#[test]
fn f8_a_running_daemon_notices_that_reservations_are_gone() {
    let Some(mut fleet) = Fleet::start("f8r", 1, &["a", "b", "c"]) else { return };
    let job = fleet.acquire("a", &JOB);
    let port = job.start();
    let name = fleet.enforced("c").remove(0);
    fleet.host("c").machine.portkeep(&["persist", "delete", &name]).ok();
    eventually_or(|| fleet.log("c"), || fleet.enforced("c").len() == 1);
    is_enforced(&fleet, &["c"], port);
    // While enforcement is down, the part is lost. Once it is up, the ports are reserved again.
    let part = |fleet: &Fleet| fleet.json("a", &["show", "train"])["hosts"][2].clone();
    fleet.stop_agent("c");
    fleet.host("c").machine.portkeep(&["down"]).ok();
    eventually_or(
        || format!("{} {}", fleet.log("c"), part(&fleet)),
        || part(&fleet)["state"] == "lost" && part(&fleet)["reason"].to_string().contains("enforcement is not up"),
    );
    fleet.start_agent("c");
    eventually_or(|| fleet.log("c"), || fleet.enforced("c").len() == 1);
    is_enforced(&fleet, &["a", "b", "c"], port);
    is_active(&fleet, "train");
    job.end();
    fleet.is_free();
}

#[test]
fn f3_older_decisions_and_other_clusters_are_refused() {
    let Some(mut fleet) = Fleet::start("f3", 1, &["a", "b"]) else { return };
    let backup = fleet.cluster.folder.path().join("backup");
    let saved = fleet.cluster.etcdctl(&["snapshot", "save", backup.to_str().unwrap()]).output().unwrap();
    assert!(saved.status.success(), "{saved:?}");
    let job = fleet.acquire("a", &["--hosts", "a,b", "--name", "train", "--user", "nobody"]);
    let port = job.start();
    // etcd comes back as it was before the job.
    fleet.cluster.restore(&backup, true);
    for host in ["a", "b"] {
        eventually_or(|| fleet.log(host), || fleet.log(host).contains("older than what this host has seen"));
    }
    is_enforced(&fleet, &["a", "b"], port);
    fleet.kill_daemon("b");
    // Other writers bring it to the same revision again.
    for number in 0..40 {
        let put = fleet.cluster.etcdctl(&["put", "/other", &number.to_string()]).output().unwrap();
        assert!(put.status.success(), "{put:?}");
    }
    let refused = fleet.fleet("b", &["daemon"]);
    refused.fails(1, &["older than what this host has seen", "remove the state file"]);
    // Another cluster.
    fleet.cluster.restore(&backup, false);
    for words in [&["daemon"][..], &["acquire", "--hosts", "a,b"], &["status"]] {
        fleet.fleet("b", words).fails(1, &["this etcd is another cluster", "endpoints"]);
    }
    is_enforced(&fleet, &["a", "b"], port);
    // The administrator decides that the backup counts.
    job.kill();
    fleet.kill_daemon("a");
    for host in ["a", "b"] {
        fs::remove_file(fleet.host(host).machine.folder.path().join(format!("fleet/{host}.json"))).unwrap();
        fleet.start_daemon(host);
    }
    fleet.is_at_rest();
}
