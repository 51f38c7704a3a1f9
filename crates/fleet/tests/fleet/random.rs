//! Random jobs while everything fails, and while outsiders on every host take every port they can get.
//! `PORTKEEP_FLEET_JOBS` is the number of jobs; the short form has 15.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::PathBuf,
    process::Stdio,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use portkeep_testkit::{machine::Running, random::Random, sockets};
use rustix::{
    process::Signal,
    time::{ClockId, clock_gettime},
};

use crate::{etcd::signal, world::Fleet};

const JOBS: &str = "PORTKEEP_FLEET_JOBS";
const SEED: &str = "PORTKEEP_FLEET_SEED";
const HOSTS: [&str; 5] = ["a", "b", "c", "d", "e"];
const REQUESTERS: usize = 3;
/// A part of the range, so that jobs and outsiders meet.
const FIRST: u16 = 20000;
const PORTS: u64 = 200;

/// Nanoseconds of the clock that all processes of the machine share.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// A port that a process had on a host for a while.
#[derive(Clone, Debug)]
struct Had {
    host: String,
    ports: std::ops::RangeInclusive<u16>,
    from: u64,
    to: u64,
}

const LOG: &str = "PORTKEEP_TEST_TAKE";

/// Not a test: take a port of the range for a moment, for ever, and write down which and when.
pub(crate) fn take_ports_in_helper() {
    let Some(path) = std::env::var_os(LOG) else { return };
    let mut log = fs::File::create(path).unwrap();
    let mut random = Random::new(u64::from(std::process::id()));
    loop {
        let port = FIRST + random.below(PORTS) as u16;
        // Some sockets set options that might help to get a port.
        let socket = sockets::tcp();
        if random.one_in(2) {
            socket.set_reuse_address(true).unwrap();
            socket.set_reuse_port(true).unwrap();
        }
        if sockets::bind(&socket, port).and_then(|()| socket.listen(1)).is_ok() {
            let from = now();
            thread::sleep(Duration::from_millis(1 + random.below(20)));
            let to = now();
            drop(socket);
            writeln!(log, "{port} {from} {to}").unwrap();
        }
        thread::sleep(Duration::from_millis(2 + random.below(4)));
    }
}

/// An outsider of a host.
struct Hostile {
    _process: Running,
    log: PathBuf,
}

impl Hostile {
    fn start(fleet: &Fleet, host: &str) -> Self {
        let machine = &fleet.host(host).machine;
        let log = machine.folder.path().join("taken");
        let helper = std::env::current_exe().unwrap();
        let words = [helper.to_str().unwrap(), "--exact", "helper_takes_ports", "--ignored", "--nocapture"];
        let child = machine.program(&words).env(LOG, &log).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { _process: Running(child), log }
    }

    fn had(&self, host: &str) -> Vec<Had> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        // If the outsider was killed while it wrote, the last line is not complete.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let had = |line: &str| {
            let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
            let port = numbers[0] as u16;
            Had { host: host.to_owned(), ports: port..=port, from: numbers[1], to: numbers[2] }
        };
        whole.lines().map(had).collect()
    }
}

/// Reasons that a request may be refused for.
const REASONS: [&str; 10] = [
    "at this moment",
    "is in use by",
    "cannot be reached",
    "has not answered within",
    "free ports in a row",
    "belong to the job",
    "a moment ago, and rest",
    "were released",
    "etcd refused: etcdserver",
    "in between",
];

struct Tally {
    granted: Mutex<Vec<Had>>,
    refused: Mutex<BTreeMap<&'static str, usize>>,
    next: AtomicUsize,
    jobs: usize,
}

fn job(fleet: &Fleet, tally: &Tally, number: usize, random: &mut Random) {
    let mut hosts: Vec<&str> = HOSTS.into_iter().filter(|_| random.one_in(2)).collect();
    if hosts.is_empty() {
        hosts.push(random.of(&HOSTS));
    }
    let (list, name) = (hosts.join(","), format!("job{number}"));
    let count = 1 + random.below(8);
    let at = u64::from(FIRST) + random.below(PORTS);
    let block = format!("{at}-{}", at + count - 1);
    let count = count.to_string();
    let mut words = vec![
        "acquire",
        "--json",
        "--hosts",
        &list,
        "--count",
        &count,
        "--name",
        &name,
        "--user",
        "nobody",
        "--timeout",
        "4",
    ];
    match random.below(6) {
        0 => {
            let at = words.iter().position(|word| *word == "--count").unwrap();
            words.splice(at..at + 2, ["--ports", &block]);
        }
        1 => words.extend(["--align", "4"]),
        2 => words.push("--both"),
        _ => {}
    }
    let from = random.of(&HOSTS);
    let mut child = fleet
        .command(from, &words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line).unwrap();
    let granted = now();
    let json: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
    if json["hosts"].is_null() {
        let message = json["message"].as_str().unwrap_or_else(|| panic!("{words:?}: {line:?}")).to_owned();
        let known = message.contains("range").then_some("range");
        let known = REASONS.iter().find(|reason| message.contains(**reason)).copied().or(known);
        let reason = known.unwrap_or_else(|| panic!("{words:?} was refused without a reason: {message}"));
        *tally.refused.lock().unwrap().entry(reason).or_default() += 1;
        child.wait().unwrap();
        return;
    }
    let start = u16::try_from(json["start"].as_u64().unwrap()).unwrap();
    let ports = start..=start + (count.parse::<u16>().unwrap() - 1);
    thread::sleep(Duration::from_millis(random.below(150)));
    let to = now();
    let had = hosts.iter().map(|host| Had { host: (*host).to_owned(), ports: ports.clone(), from: granted, to });
    tally.granted.lock().unwrap().extend(had);
    match random.below(3) {
        0 => child.kill().unwrap(),
        1 => drop(child.stdin.take()),
        _ => {
            // It may fail, because etcd cannot be reached.
            let _ = fleet.command(random.of(&HOSTS), &["release", &name]).output();
            drop(child.stdin.take());
        }
    }
    child.wait().unwrap();
}

/// Starts daemons anew that have died.
struct ServiceManager<'f> {
    fleet: &'f Fleet,
    started: Mutex<BTreeMap<&'static str, Running>>,
}

impl ServiceManager<'_> {
    /// The daemon of a host, if it lives. A process that has died stays until its successor is started, so its pid is
    /// not used again.
    fn daemon(&self, host: &str) -> Option<u32> {
        let first = || self.fleet.host(host).daemon.as_ref().unwrap().pid();
        let pid = self.started.lock().unwrap().get(host).map_or_else(first, Running::pid);
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        state.rsplit_once(')').filter(|(_, rest)| !rest.starts_with(" Z")).map(|_| pid)
    }

    /// A daemon that lives.
    fn any(&self, random: &mut Random) -> u32 {
        loop {
            match self.daemon(random.of(&HOSTS)) {
                Some(pid) => return pid,
                None => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn run(&self, over: &AtomicBool) {
        let fleet = self.fleet;
        while !over.load(Ordering::Relaxed) {
            for host in HOSTS.into_iter().filter(|host| self.daemon(host).is_none()) {
                let mut command = fleet.command(host, &["daemon"]);
                let log = fleet.host(host).machine.folder.path().join("fleet.log");
                let log = fs::File::options().append(true).open(log).unwrap();
                let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
                self.started.lock().unwrap().insert(host, Running(child));
            }
            thread::sleep(Duration::from_millis(100));
        }
        // They serve until all is free.
        fleet.is_free();
    }
}

/// One thing fails at a time, and works again before the next one fails.
fn misfortune(fleet: &Fleet, manager: &ServiceManager<'_>, random: &mut Random) {
    let pause = Duration::from_millis(200 + random.below(1500));
    let paused = |pid| {
        signal(pid, Signal::STOP);
        thread::sleep(pause);
        signal(pid, Signal::CONT);
    };
    let members = &fleet.cluster.members;
    let member = &members[random.index(members.len())];
    match random.below(5) {
        0 => {
            let cable = format!("h-{}", random.of(&HOSTS));
            fleet.switch.cut(&cable);
            thread::sleep(pause);
            fleet.switch.heal(&cable);
        }
        1 => paused(member.pid()),
        2 => {
            member.kill();
            thread::sleep(pause);
            member.start();
        }
        3 => paused(manager.any(random)),
        // SIGKILL. The service manager acts after that.
        _ => signal(manager.any(random), Signal::KILL),
    }
    thread::sleep(Duration::from_millis(300));
}

#[test]
fn f5_random_jobs_leave_no_port_with_two_owners_and_nothing_behind() {
    let jobs = std::env::var(JOBS).map_or(15, |jobs| jobs.parse().unwrap());
    let seed = std::env::var(SEED).map_or_else(|_| now(), |seed| seed.parse().unwrap());
    let Some(fleet) = Fleet::start("random", 3, &HOSTS) else { return };
    println!("seed {seed}");
    let hostile = HOSTS.map(|host| Hostile::start(&fleet, host));
    let tally = Tally { granted: Mutex::default(), refused: Mutex::default(), next: AtomicUsize::new(0), jobs };
    let (over, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let manager = ServiceManager { fleet: &fleet, started: Mutex::default() };
    let began = Instant::now();
    thread::scope(|scope| {
        let (fleet, tally, over, done) = (&fleet, &tally, &over, &done);
        let manager = &manager;
        let service = scope.spawn(move || manager.run(over));
        let chaos = scope.spawn(move || {
            let mut random = Random::stream(seed, &[99]);
            while !done.load(Ordering::Relaxed) {
                misfortune(fleet, manager, &mut random);
            }
        });
        let requesters: Vec<_> = (0..REQUESTERS)
            .map(|requester| {
                scope.spawn(move || {
                    let mut random = Random::stream(seed, &[requester as u64]);
                    loop {
                        let number = tally.next.fetch_add(1, Ordering::Relaxed);
                        if number >= tally.jobs {
                            return;
                        }
                        job(fleet, tally, number, &mut random);
                    }
                })
            })
            .collect();
        let failed =
            requesters.into_iter().map(|requester| requester.join().is_err()).fold(false, |any, one| any | one);
        done.store(true, Ordering::Relaxed);
        let failed = chaos.join().is_err() || failed;
        over.store(true, Ordering::Relaxed);
        assert!(service.join().is_ok() && !failed, "seed {seed}");
    });
    let granted = tally.granted.into_inner().unwrap();
    let taken: Vec<Had> = HOSTS.iter().zip(&hostile).flat_map(|(host, hostile)| hostile.had(host)).collect();
    let both = |one: &Had, other: &Had| {
        one.host == other.host
            && one.from < other.to
            && other.from < one.to
            && one.ports.start() <= other.ports.end()
            && other.ports.start() <= one.ports.end()
    };
    for (index, one) in granted.iter().enumerate() {
        let other = granted[index + 1..].iter().chain(&taken).find(|other| both(one, other));
        assert!(other.is_none(), "two owners, seed {seed}: {one:?} and {other:?}");
    }
    let refused = tally.refused.into_inner().unwrap();
    println!(
        "{jobs} jobs in {:?}: {} parts granted, refused {refused:?}; outsiders had a port {} times",
        began.elapsed(),
        granted.len(),
        taken.len()
    );
    assert!(!granted.is_empty() && !taken.is_empty());
}
