//! Many hosts in one process: daemons whose fences only record, with a real etcd. Ignored:
//! `PORTKEEP_WRITE_TABLES=1 cargo test --release -p portkeep-fleet measure -- --ignored` writes the tables of
//! docs/internals/fleet.md.

#[expect(dead_code, reason = "other tests require more of it")]
#[path = "../fleet/etcd.rs"]
mod cluster;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use portkeep::{
    Align, PortRange, Transports,
    persistent::{Account, Audience, protocol::Refused},
};
use portkeep_testkit::{
    eventually_or,
    random::Random,
    report::{machine, put},
};

use crate::{
    arbiter::WantedBlock,
    config::Config,
    daemon::{Daemon, DaemonInput},
    etcd::Client,
    fence::{Fence, Reserved},
    memory::{Memory, random_id},
    record::Job,
    request::{self, JobRequest},
};
use cluster::{Cluster, Switch, etcd_or_skip};

const WRITE: &str = "PORTKEEP_WRITE_TABLES";
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/internals/fleet.md");
/// Hosts of the fleet, and of each of its jobs.
const HOSTS: usize = 200;
const OF_JOB: usize = 64;
const COUNT: u16 = 8;
const RANGE: &str = "10000-59999";
const REST: Duration = Duration::from_secs(10);

/// A fence that only records and keeps nobody off. If two jobs have one port, that is an error here, too.
#[derive(Debug, Default)]
struct Recorder(BTreeMap<(String, i64), Reserved>);

impl Fence for Recorder {
    fn obstacle(&mut self) -> Option<String> {
        None
    }

    fn reserve(&mut self, job: &Job, revision: i64) -> Result<(), Refused> {
        let Job { name, ports, transports, .. } = job;
        let reserved = Reserved { name: name.clone(), revision, ports: *ports, transports: *transports };
        assert!(
            !self.0.values().any(|other| other.ports.overlaps(*ports)),
            "{reserved:?} has two owners: {:?}",
            self.0
        );
        self.0.insert((name.clone(), revision), reserved);
        Ok(())
    }

    fn reserved(&mut self) -> Result<Vec<Reserved>, String> {
        Ok(self.0.values().cloned().collect())
    }

    fn release(&mut self, reserved: &Reserved) -> Result<(), String> {
        self.0.remove(&(reserved.name.clone(), reserved.revision));
        Ok(())
    }

    fn in_use(&mut self, _: PortRange, _: Transports) -> Result<Option<String>, String> {
        Ok(None)
    }
}

fn config(endpoints: &str, folder: &Path) -> Config {
    let endpoints: Vec<String> = endpoints.split(',').map(|url| format!("{url:?}")).collect();
    let text = format!("endpoints = [{}]\nrange = \"{RANGE}\"\nrest = 2\nstate_dir = {folder:?}", endpoints.join(", "));
    Config::parse(&text).unwrap()
}

/// Daemons in this process. Dropped, they end.
struct Daemons(Vec<(Sender<DaemonInput>, JoinHandle<()>)>);

impl Daemons {
    /// One for each name; all belong to the fleet.
    fn start(config: &Config, hosts: &[String]) -> Self {
        let (joined, all) = mpsc::channel();
        let mut daemons = Vec::new();
        for host in hosts {
            let client = Arc::new(Client::new(config).unwrap());
            let memory = Memory::open(config, host).unwrap();
            let (outbox, inbox) = mpsc::channel();
            let mut daemon =
                Daemon::new(client, config.clone(), host.clone(), memory, Recorder::default(), (outbox.clone(), inbox));
            daemon.quiet = true;
            let joined = joined.clone();
            daemon.ready = Box::new(move |_| {
                let _ = joined.send(());
            });
            daemons.push((outbox, thread::spawn(move || daemon.run().unwrap())));
        }
        drop(joined);
        hosts.iter().for_each(|_| all.recv().expect("a daemon has ended"));
        Self(daemons)
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        for (outbox, _) in &self.0 {
            let _ = outbox.send(DaemonInput::Stop);
        }
        for (_, thread) in self.0.drain(..) {
            let _ = thread.join();
        }
    }
}

fn hosts() -> Vec<String> {
    (0..HOSTS).map(|number| format!("host{number}")).collect()
}

/// Each of `requesters` threads requests one job after the other, until `jobs` are done. Returns how long each waited
/// for its ports, in order.
fn ask(config: &Config, jobs: usize, requesters: usize) -> Vec<Duration> {
    let next = Mutex::new(0..jobs);
    let one = || {
        let client = Arc::new(Client::new(config).unwrap());
        let mut granted = Vec::new();
        loop {
            let Some(number) = next.lock().unwrap_or_else(PoisonError::into_inner).next() else { return granted };
            let first = Random::new(number as u64).index(HOSTS);
            let wanted = JobRequest {
                name: format!("job-{}", random_id().unwrap()),
                hosts: (0..OF_JOB).map(|offset| hosts()[(first + offset * 3) % HOSTS].clone()).collect(),
                block: WantedBlock::Any { count: COUNT, align: Align::ANY },
                transports: Transports::Tcp,
                audience: Audience::User(Account::Id(65534)),
                by: "a measurement".into(),
                patience: Duration::from_secs(60),
            };
            let began = Instant::now();
            let held = request::acquire(&client, config, &wanted, |_| {}).unwrap();
            granted.push(began.elapsed());
            held.end().unwrap();
        }
    };
    let mut all: Vec<Duration> = thread::scope(|scope| {
        let threads: Vec<_> = (0..requesters).map(|_| scope.spawn(one)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    all.sort_unstable();
    all
}

/// Processor time of all members, in seconds.
fn processor(cluster: &Cluster) -> f64 {
    let ticks = |pid: u32| -> f64 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()
    };
    cluster.members.iter().map(|member| ticks(member.pid())).sum::<f64>() / 100.0
}

/// Requests to all members.
fn requests(cluster: &Cluster) -> f64 {
    cluster.members.iter().flat_map(|member| member.requests().into_values()).sum::<u64>() as f64
}

fn milliseconds(times: &[Duration], part: f64) -> f64 {
    times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1000.0
}

/// In the network of the cluster.
fn there<T: Send>(cluster: &Cluster, work: impl FnOnce() -> T + Send) -> T {
    let enter = || {
        cluster.members[0].namespace.enter();
        work()
    };
    thread::scope(|scope| scope.spawn(enter).join().unwrap())
}

#[test]
#[ignore = "it measures"]
fn measure_many_hosts() {
    if !etcd_or_skip("measure") {
        return;
    }
    let switch = Switch::new();
    let cluster = Cluster::start(&switch, 3, "http", &[]);
    cluster.ready();
    let folder = tempfile::tempdir().unwrap();
    let config = config(&cluster.endpoints(), folder.path());
    let began = Instant::now();
    let daemons = there(&cluster, || Daemons::start(&config, &hosts()));
    let mut table = format!(
        "{HOSTS} hosts that only record, jobs of {OF_JOB} hosts and {COUNT} ports, on {}. All join in {:.1} s.\n\n",
        machine(),
        began.elapsed().as_secs_f64()
    );
    table += "| requesters at once | decisions a second | time of a job, median | 95 of 100 | \
              requests to etcd for a job, from decision to rest | etcd's processor time for a job |\n\
              | --- | --- | --- | --- | --- | --- |\n";
    for requesters in [1, 4, 16] {
        let (before, busy, began) = (requests(&cluster), processor(&cluster), Instant::now());
        let jobs = 20 * requesters.min(2);
        let granted = there(&cluster, || ask(&config, jobs, requesters));
        let elapsed = began.elapsed();
        eventually_or(|| format!("{:?}", cluster.keys_of("part")), || cluster.keys_of("part").is_empty());
        let each = |total: f64| total / jobs as f64;
        writeln!(
            table,
            "| {requesters} | {:.0} | {:.0} ms | {:.0} ms | {:.0} | {:.0} ms |",
            jobs as f64 / elapsed.as_secs_f64(),
            milliseconds(&granted, 0.5),
            milliseconds(&granted, 0.95),
            each(requests(&cluster) - before),
            each((processor(&cluster) - busy) * 1000.0),
        )
        .unwrap();
    }
    let (before, busy) = (requests(&cluster), processor(&cluster));
    thread::sleep(REST);
    let second = |total: f64| total / REST.as_secs_f64();
    writeln!(
        table,
        "\nAt rest, with a lease of 30 s: {:.0} requests a second to etcd, all of them renewals, and \
         {:.1} % of a processor.",
        second(requests(&cluster) - before),
        second(processor(&cluster) - busy) * 100.0
    )
    .unwrap();
    println!("{table}");
    drop(daemons);
    if std::env::var_os(WRITE).is_some() {
        put(Path::new(PAGE), "scale", &table).unwrap();
    }
}
