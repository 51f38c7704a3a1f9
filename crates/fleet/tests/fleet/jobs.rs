//! Jobs where nothing fails, and requests that cannot be granted.

use std::{thread, time::Duration};

use portkeep_testkit::eventually_or;
use serde_json::Value;

use crate::world::{Fleet, LEASE, RANGE};

const FIVE: [&str; 5] = ["a", "b", "c", "d", "e"];
const REFUSED: &str = "AddrInUse";

#[test]
fn f1_a_job_has_the_same_block_on_every_host() {
    let Some(fleet) = Fleet::start("f1", 3, &FIVE) else { return };
    let words =
        ["--hosts", "a,b,c,d,e", "--count", "4", "--align", "4", "--both", "--name", "train42", "--user", "nobody"];
    let before = fleet.all_requests();
    let job = fleet.acquire("a", &words);
    let after = fleet.all_requests();
    let more = |method: &str| after.get(method).unwrap_or(&0) - before.get(method).unwrap_or(&0);
    // The answers of the watch come without a request. The other requests are a lease, the facts, the decision, and an
    // answer of each host.
    assert!(more("LeaseGrant") <= 1 && more("Watch") <= 1 && more("Txn") <= 2 + 5, "{before:?} {after:?}");
    let start = job.start();
    assert_eq!((start, job.json["count"].as_u64(), job.json["state"].as_str()), (20000, Some(4), Some("active")));
    for host in FIVE {
        assert_eq!(fleet.enforced(host).len(), 1, "{}", fleet.log(host));
        assert_eq!(fleet.outsider(host, start + 3), REFUSED, "{host}");
        fleet.serve(host, start).end();
    }
    let shown = fleet.json("b", &["show", "train42"]);
    assert_eq!(shown["ports"], "20000-20003");
    assert_eq!(shown["hosts"].as_array().unwrap().len(), 5);
    assert_eq!(fleet.json("c", &["wait", "train42"]), shown);
    job.end();
    fleet.is_free();
    for host in FIVE {
        assert_eq!(fleet.outsider(host, start), "bound", "{host}");
    }
    let status = fleet.json("a", &["status"]);
    assert_eq!((status["range"].as_str(), status["free"].as_u64()), (Some(RANGE), Some(200)));
}

/// The state of a job and the reason of one host.
fn state(fleet: &Fleet, name: &str, host: &str) -> (String, String) {
    let list = fleet.json("a", &["list"]);
    let job = list.as_array().unwrap().iter().find(|job| job["name"] == name).cloned().unwrap_or(Value::Null);
    let part = job["hosts"].as_array().and_then(|hosts| hosts.iter().find(|part| part["host"] == host).cloned());
    let reason = part.unwrap_or_default()["reason"].as_str().unwrap_or_default().to_owned();
    (job["state"].as_str().unwrap_or("none").to_owned(), reason)
}

#[test]
fn f4_a_number_is_free_when_every_host_says_so_and_then_rests() {
    let Some(fleet) = Fleet::start("f4", 1, &["a", "b"]) else { return };
    let words = ["--hosts", "a,b", "--count", "2", "--user", "nobody", "--name"];
    let job = fleet.acquire("a", &[&words[..], &["first"]].concat());
    let start = job.start();
    let server = fleet.serve("b", start + 1);
    job.end();
    // A process of the job still has a port: outsiders stay off all of its ports there, and the block is not free.
    let seen = || state(&fleet, "first", "b");
    eventually_or(|| format!("{:?}", seen()), || seen().1.contains(&format!("{}/tcp is in use by", start + 1)));
    assert_eq!(seen().0, "ended");
    assert_eq!(fleet.outsider("b", start), REFUSED);
    eventually_or(|| fleet.log("a"), || fleet.outsider("a", start) == "bound");
    let at = start.to_string();
    let again = ["acquire", "--hosts", "a", "--ports", &at, "--name", "second"];
    fleet.fleet("a", &again).fails(1, &["belong to the job \"first\""]);
    server.end();
    eventually_or(|| format!("{:?}", seen()), || seen().0 == "resting");
    fleet.fleet("a", &again).fails(1, &["were those of the job \"first\" a moment ago, and rest"]);
    // Next-fit: the numbers after it come first.
    let next = fleet.acquire("a", &[&words[..], &["third"]].concat());
    assert_eq!(next.start(), start + 2);
    next.end();
    fleet.is_free();
    let both = format!("{start}-{}/tcp+udp", start + 1);
    let again = fleet.acquire("a", &["--hosts", "a", "-p", &both]);
    assert_eq!((again.start(), again.json["count"].as_u64()), (start, Some(2)));
    assert_eq!(again.json["transports"], "both");
    again.end();
}

#[test]
fn f2_what_cannot_be_granted_is_refused_and_reserved_nowhere() {
    let Some(mut fleet) = Fleet::start("f2", 1, &["a", "b"]) else { return };
    fleet.add_machine("bare", false);
    fleet.start_daemon("bare");
    fleet.joined("bare");
    let job = fleet.acquire("a", &["--hosts", "a,b", "--count", "2", "--name", "there", "--user", "nobody"]);
    let at = (job.start() + 1).to_string();
    let before = fleet.cluster.keys_of("part");
    let refusals: [(&[&str], i32, &[&str]); 14] = [
        (&["--hosts", "a,x"], 3, &["x does not belong to the fleet"]),
        (&["--hosts", "a,bare"], 1, &["bare: kernel enforcement is not up"]),
        (&["--hosts", "a,a"], 2, &["a host is named twice"]),
        (&["--hosts", "b", "--ports", &at], 1, &["belong to the job \"there\" on a, b, of "]),
        (&["--hosts", "a", "--ports", "20199-20200"], 2, &["not within the fleet's range 20000-20199"]),
        (&["--hosts", "a", "-p", "http"], 2, &["ports 80 are not within the fleet's range"]),
        (&["--hosts", "a", "-p", "20003,20005"], 2, &["one block of ports, and 20003,20005 are several"]),
        (&["--hosts", "a", "-p", "20003/udp", "--tcp"], 2, &["says udp, and tcp is said beside it"]),
        (&["--hosts", "a", "--count", "201"], 1, &["has no 201 free ports in a row"]),
        (&["--hosts", "a", "--ports", "20003", "--align", "4"], 2, &["--align", "cannot be used with"]),
        (&["--hosts", "a", "--name", "there"], 1, &["there is a job \"there\"", "a, b"]),
        (&["--hosts", "a", "--name", "a-name-that-is-longer-than-32-letters"], 2, &["at most 32 characters"]),
        (&["--hosts", "a,b", "--user", "nobody-knows-me"], 2, &["nobody-knows-me"]),
        (&["--hosts", "a", "--unit", "no unit"], 2, &["a unit's name"]),
    ];
    for (words, status, expected) in refusals {
        fleet.fleet("a", &[&["acquire", "--json"], words].concat()).fails(status, expected);
        eventually_or(|| format!("{words:?}: {:?}", fleet.cluster.keys()), || fleet.cluster.keys_of("part") == before);
        for host in ["a", "b"] {
            assert_eq!(fleet.enforced(host).len(), 1, "{words:?}: {}", fleet.log(host));
        }
    }
    fleet.fleet("a", &["show", "nothing"]).fails(3, &["no job \"nothing\""]);
    fleet.fleet("a", &["release", "nothing"]).fails(3, &["no job \"nothing\""]);
    fleet.fleet("a", &["forget", "b"]).fails(1, &["the daemon of b runs"]);
    fleet.fleet("a", &["wait", "nothing", "--timeout", "1"]).fails(3, &["still no job"]);

    // A port in use on one host: the refusal names host, port and holder, and another block is found.
    let before = fleet.acquire("a", &["--hosts", "a"]);
    let taken = before.start() + 1;
    let server = fleet.serve("b", taken);
    let other = fleet.acquire("a", &["--hosts", "a,b", "--count", "2", "--name", "other"]);
    assert_eq!(other.start(), taken + 2, "{:?}", other.json);
    before.end();
    let at = taken.to_string();
    eventually_or(
        || fleet.log("b"),
        || {
            let refused = fleet.fleet("a", &["acquire", "--hosts", "a,b", "--ports", &at]);
            refused.code == Some(1) && refused.err.contains(&format!("b: {taken}/tcp is in use by pid"))
        },
    );
    // Another process ends it.
    fleet.fleet("b", &["release", "other"]).ok();
    let (well, said) = other.ended();
    assert!(!well && said.contains("were released"), "{said}");
    server.end();
    job.end();
    fleet.is_free();
}

#[test]
fn f2_eight_blocks_are_tried() {
    let Some(fleet) = Fleet::start("f2e", 1, &["a", "b"]) else { return };
    let _servers: Vec<_> = (20000..=20008).map(|port| fleet.serve("b", port)).collect();
    fleet.fleet("a", &["acquire", "--hosts", "a,b"]).fails(1, &["b: 20007/tcp is in use by pid"]);
    assert_eq!(fleet.log("b").matches("not reserved").count(), 8, "{}", fleet.log("b"));
    fleet.acquire("a", &["--hosts", "a,b"]).end();
    fleet.is_free();
}

#[test]
fn f10_a_command_finds_its_ports_and_the_hosts() {
    let Some(fleet) = Fleet::start("f10", 1, &["a", "b"]) else { return };
    let script = "echo $PORT $PORTS $PORT1 $MASTER_ADDR $MASTER_PORT $PORTKEEP_FLEET_HOSTS $TRAIN_PORT $1; exit 7";
    let words = ["run", "--hosts", "b,a", "--count", "2", "--name", "train", "--", "sh", "-c", script, "sh", "{PORT1}"];
    let ran = fleet.fleet("a", &words);
    assert_eq!(ran.code, Some(7), "{ran:?}");
    assert_eq!(ran.out, "20000 20000,20001 20001 b 20000 b,a 20000 20001\n");
    fleet.fleet("a", &["run", "--hosts", "a", "--", "/no/such/program"]).fails(127, &["/no/such/program"]);
    fleet.fleet("a", &["run", "--hosts", "x", "--", "true"]).fails(125, &["x does not belong"]);
    fleet.fleet("a", &["run", "--hosts", "a", "--", "echo", "{PORT5}"]).fails(125, &["{PORT5}"]);
    fleet.is_at_rest();
}

#[test]
fn f9_a_fleet_at_rest_renews_leases_and_does_nothing_else() {
    let Some(fleet) = Fleet::start("f9", 1, &["a", "b"]) else { return };
    let job = fleet.acquire("a", &["--hosts", "a,b"]);
    let before = (fleet.json("a", &["status"])["revision"].clone(), fleet.requests());
    thread::sleep(Duration::from_secs(LEASE + 1));
    let requests = fleet.requests();
    for (method, count) in &requests {
        let more = count - before.1.get(method).unwrap_or(&0);
        // Two daemons and a requester renew their leases, each of them three times in the length of a lease.
        let expected = if method == "LeaseKeepAlive" { 6..=12 } else { 0..=0 };
        assert!(expected.contains(&more), "{method}: {more} {requests:?}");
    }
    assert_eq!(fleet.json("a", &["status"])["revision"], before.0);
    job.end();
}
