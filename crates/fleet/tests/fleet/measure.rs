//! The table of docs/internals/fleet.md. Ignored: `PORTKEEP_WRITE_TABLES=1 cargo test -p portkeep-fleet --test fleet -- --ignored
//! measure` writes it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, thread,
    time::{Duration, Instant},
};

use portkeep_fleet::simulate::{Daemons, Times, measure};
use portkeep_testkit::random::Random;

use crate::world::{Fleet, RANGE};

const WRITE: &str = "PORTKEEP_WRITE_TABLES";
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/internals/fleet.md");
/// Hosts of the simulated fleet, and of each of its jobs.
const HOSTS: usize = 200;
const OF_JOB: usize = 64;
const REST: Duration = Duration::from_secs(20);

/// Processor time of all members, in seconds.
fn processor(fleet: &Fleet) -> f64 {
    let ticks = |pid: u32| -> f64 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()
    };
    fleet.cluster.members.iter().map(|member| ticks(member.pid())).sum::<f64>() / 100.0
}

/// Requests of all kinds to all members since `before`, but for watches that stay.
fn more(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> u64 {
    after.iter().map(|(method, count)| count - before.get(method).unwrap_or(&0)).sum()
}

fn milliseconds(times: &[Duration], part: f64) -> f64 {
    times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1000.0
}

/// In the network of the cluster.
fn there<T: Send>(fleet: &Fleet, work: impl FnOnce() -> T + Send) -> T {
    let enter = || {
        fleet.cluster.members[0].namespace.enter();
        work()
    };
    thread::scope(|scope| scope.spawn(enter).join().unwrap())
}

#[test]
#[ignore = "it measures"]
fn measure_the_fleet() {
    let mut table = String::new();
    let Some(fleet) = Fleet::start("measure", 3, &["a", "b", "c", "d", "e"]) else { return };
    let five = || ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec();
    let endpoints = fleet.cluster.endpoints();
    let times = there(&fleet, || measure(&endpoints, RANGE.parse().unwrap(), 2, 60, 1, |_| five()).unwrap());
    let Times { granted, calls, refused, .. } = &times;
    assert!(refused.is_empty(), "{refused:?}");
    writeln!(table, "A block on five hosts with kernels, as a requester sees it, {} times:\n", granted.len()).unwrap();
    writeln!(table, "| | |\n| --- | --- |").unwrap();
    // The answers of the hosts come while it waits.
    writeln!(
        table,
        "| round trips, one after the other, the answer of the slowest host included | {} |",
        *calls as usize / granted.len() + 1
    )
    .unwrap();
    writeln!(table, "| time, median | {:.0} ms |", milliseconds(granted, 0.5)).unwrap();
    writeln!(table, "| time, 95 of 100 | {:.0} ms |\n", milliseconds(granted, 0.95)).unwrap();
    drop(fleet);

    let Some(fleet) = Fleet::start("measure", 3, &[]) else { return };
    let endpoints = fleet.cluster.endpoints();
    let folder = tempfile::tempdir().unwrap();
    let hosts: Vec<String> = (0..HOSTS).map(|number| format!("host{number}")).collect();
    let range = "10000-59999".parse().unwrap();
    let began = Instant::now();
    let daemons = there(&fleet, || Daemons::start(&endpoints, range, folder.path(), &hosts).unwrap());
    writeln!(
        table,
        "{HOSTS} hosts that only record, jobs of {OF_JOB} hosts and 8 ports. All join in {:.1} s.\n",
        began.elapsed().as_secs_f64()
    )
    .unwrap();

    writeln!(table, "| requesters at once | decisions a second | time of a job, median | 95 of 100 | requests to etcd for a job, from decision to rest | etcd's processor time for a job |").unwrap();
    writeln!(table, "| --- | --- | --- | --- | --- | --- |").unwrap();
    for requesters in [1, 4, 16] {
        let choose = |number: usize| {
            let mut random = Random::new(number as u64);
            let first = random.below(HOSTS as u64) as usize;
            (0..OF_JOB).map(|offset| hosts[(first + offset * 3) % HOSTS].clone()).collect()
        };
        let (before, busy) = (fleet.all_requests(), processor(&fleet));
        let jobs = 60 * requesters.min(4);
        let times = there(&fleet, || measure(&endpoints, range, 8, jobs, requesters, choose).unwrap());
        fleet.is_at_rest();
        let (after, later) = (fleet.all_requests(), processor(&fleet));
        assert!(times.refused.is_empty(), "{:?}", times.refused);
        let each = |total: f64| total / jobs as f64;
        writeln!(
            table,
            "| {requesters} | {:.0} | {:.0} ms | {:.0} ms | {:.0} | {:.0} ms |",
            jobs as f64 / times.elapsed.as_secs_f64(),
            milliseconds(&times.granted, 0.5),
            milliseconds(&times.granted, 0.95),
            each(more(&before, &after) as f64),
            each((later - busy) * 1000.0),
        )
        .unwrap();
    }
    let (before, busy) = (fleet.all_requests(), processor(&fleet));
    thread::sleep(REST);
    let (after, later) = (fleet.all_requests(), processor(&fleet));
    let second = |total: f64| total / REST.as_secs_f64();
    writeln!(
        table,
        "\nAt rest, with a lease of 30 s: {:.0} requests a second to etcd, all of them renewals, and {:.1} % of a processor.",
        second(more(&before, &after) as f64),
        second(later - busy) * 100.0
    )
    .unwrap();
    drop(daemons);
    println!("{table}");
    if std::env::var_os(WRITE).is_some() {
        let page = fs::read_to_string(PAGE).unwrap();
        let (head, rest) = page.split_once("<!-- begin scale -->").unwrap();
        let (_, tail) = rest.split_once("<!-- end scale -->").unwrap();
        fs::write(PAGE, format!("{head}<!-- begin scale -->\n{table}<!-- end scale -->{tail}")).unwrap();
    }
}
