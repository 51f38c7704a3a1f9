//! Real servers keep their declared ports. nginx, redis and PostgreSQL from Debian, unchanged, are stopped, killed,
//! restarted and upgraded over and over. Meanwhile others, root included, bind the same ports in every way there is,
//! and outgoing connections use up every port that the kernel may choose. At no instant does an outsider get one of the
//! ports, and each server gets its own ports at its first try.
//!
//! `PORTKEEP_SERVERS_ROUNDS` sets how many rounds (6 unless set). `PORTKEEP_REQUIRE_SERVERS` makes it a failure
//! that a server is not installed.

mod hostile;
mod outgoing;
mod outsiders;
mod services;
mod tally;
mod unit;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use portkeep_core::{Errno, Transports};
use portkeep_testkit::{
    World,
    agent::{AgentFolder, AgentProcess},
    skip,
};
use rustix::process::{getpid, set_child_subreaper};

use hostile::ways;
use outsiders::{Outsiders, as_outsider};
use services::{Binaries, HTTPS, HTTPS_ALT, INTRANET, Nginx, POSTGRES, Postgres, REDIS, Redis};
use tally::Board;

/// Set on machines where the servers are installed: there, the test fails if one is missing.
const REQUIRE: &str = "PORTKEEP_REQUIRE_SERVERS";

/// A port that only its own server may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Declared {
    port: u16,
    transports: Transports,
}

const DECLARED: [Declared; 5] = [
    Declared { port: HTTPS, transports: Transports::Tcp },
    Declared { port: HTTPS_ALT, transports: Transports::Both },
    Declared { port: INTRANET, transports: Transports::Tcp },
    Declared { port: REDIS, transports: Transports::Tcp },
    Declared { port: POSTGRES, transports: Transports::Tcp },
];

/// The declarations of the packages: for a unit, a group, a user, a cgroup.
fn declare(place: &AgentFolder, cgroup: &str) {
    place.drop_in(
        "nginx.toml",
        &format!(
            "[[reservation]]\nname = \"https\"\ntcp = {HTTPS}\nunit = \"nginx.service\"\n\
             [[reservation]]\nname = \"https-alt\"\nboth = {HTTPS_ALT}\nunit = \"nginx.service\"\n\
             [[reservation]]\nname = \"intranet\"\ntcp = {INTRANET}\ngroup = \"www-data\"\n"
        ),
    );
    place.drop_in("redis.toml", &format!("[[reservation]]\nname = \"redis\"\ntcp = {REDIS}\nuser = \"redis\"\n"));
    let postgres = format!("[[reservation]]\nname = \"postgres\"\ntcp = {POSTGRES}\ncgroup = {cgroup:?}\n");
    place.drop_in("postgres.toml", &postgres);
}

/// Ends all processes of the servers if this process is killed. Otherwise each unit ends its own.
fn guard(sandbox: &Path) -> Child {
    let script = "cat >/dev/null; for slice in system.slice database.slice; do echo 1 >\"$0/$slice/cgroup.kill\"; done";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(sandbox).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // If a test is killed by its process group, this process must go on.
    std::os::unix::process::CommandExt::process_group(&mut command, 0).spawn().unwrap()
}

/// The servers, and what was done with them.
struct Servers {
    nginx: Nginx,
    redis: Redis,
    postgres: Postgres,
    starts: usize,
}

impl Servers {
    /// Stop and start every server in several ways. In between every outsider has the time to try everything.
    fn round(&mut self, outsiders: &Outsiders<'_>) {
        let Self { nginx, redis, postgres, starts } = self;
        for (ended, after) in [(true, "a stop"), (false, "a crash")] {
            if ended {
                nginx.stop()
            } else {
                nginx.unit.crash()
            }
            if ended {
                redis.stop()
            } else {
                redis.unit.crash()
            }
            if ended {
                postgres.stop()
            } else {
                postgres.unit.crash()
            }
            outsiders.have_their_chance();
            nginx.start(after);
            redis.start(after);
            postgres.start(after);
            *starts += 3;
        }
        nginx.give_up_intranet();
        outsiders.have_their_chance();
        nginx.take_intranet_again();
        nginx.upgrade();
        postgres.stop_at_once();
        // At once: a service manager with Restart=always.
        postgres.start("an immediate stop");
        *starts += 3;
        assert!(nginx.capabilities().iter().all(String::is_empty), "{:?}", nginx.capabilities());
    }
}

/// The disturbance of the agent in a round. After an odd number of these calls no agent runs.
fn trouble(place: &AgentFolder, agent: Option<AgentProcess>, round: usize) -> Option<AgentProcess> {
    // Outside the range, so that no process has it already.
    let unrelated = format!("[[reservation]]\nname = \"unrelated\"\nboth = {}\nuser = 4711\n", 9100 + round);
    match agent {
        Some(agent) => {
            place.drop_in("unrelated.toml", &unrelated);
            assert_eq!(place.reload().errors, [""; 0]);
            agent.hang_up();
            place.withdraw("unrelated.toml");
            place.reload();
            agent.kill();
            None
        }
        None => {
            place.drop_in("unrelated.toml", &unrelated);
            let agent = place.agent();
            assert_eq!(place.in_force().len(), DECLARED.len() + 1);
            Some(agent)
        }
    }
}

/// Ports with connections that the servers closed a moment ago.
fn in_time_wait() -> BTreeSet<u16> {
    let text =
        ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap()).concat();
    let fields = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let waiting = fields.filter(|fields| fields[3] == "06");
    waiting.map(|fields| u16::from_str_radix(fields[1].rsplit(':').next().unwrap(), 16).unwrap()).collect()
}

/// The binds that the outsiders could not do. Every process can do them if nothing is declared.
fn bind_all_in_every_way(root: bool) {
    let time_wait = in_time_wait();
    for way in ways(root) {
        for declared in DECLARED.iter().filter(|declared| way.is_for(declared)) {
            let port = declared.port;
            let expected = match way.bind(port) {
                Ok(_) => port >= 1024 || root,
                Err(error) if error.raw_os_error() == Some(Errno::EACCES.0) => port < 1024 && !root,
                Err(error) if error.raw_os_error() == Some(Errno::EADDRINUSE.0) => {
                    !way.ignores_time_wait() && time_wait.contains(&port)
                }
                Err(_) => false,
            };
            assert!(expected, "{port} by {way:?}: {:?}", way.bind(port));
        }
    }
}

#[test]
fn declared_ports_survive_stops_crashes_hostile_binds_and_outgoing_connections() {
    let test = "servers";
    let binaries = match Binaries::find() {
        Ok(binaries) => binaries,
        Err(reason) => return skip(test, &reason, REQUIRE),
    };
    let Some(world) = World::enter(test) else { return };
    set_child_subreaper(Some(getpid())).unwrap();
    let range = outgoing::RANGE;
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", format!("{} {}", range.start(), range.end())).unwrap();
    fs::write("/proc/sys/net/core/somaxconn", "4096").unwrap();
    let rounds = std::env::var("PORTKEEP_SERVERS_ROUNDS").map_or(6, |text| text.parse().expect("a number of rounds"));

    let sandbox = world.sandbox().cgroup().path();
    let place = AgentFolder::new();
    let board = Board::new(place.path());
    let folder = |name: &str| place.path().join(name);
    let mut guard = guard(sandbox);
    let mut servers = Servers {
        nginx: Nginx::new(&binaries, sandbox.join("system.slice/nginx.service"), folder("nginx")),
        redis: Redis::new(&binaries, sandbox.join("system.slice/redis.service"), folder("redis")),
        postgres: Postgres::new(&binaries, sandbox.join("database.slice/pg"), folder("postgres")),
        starts: 3,
    };

    // In force before anybody starts, as at boot.
    declare(&place, &servers.postgres.unit.cgroup());
    let mut agent = Some(place.agent());
    assert_eq!(place.in_force().len(), DECLARED.len());
    let outsiders = Outsiders::start(&board, &DECLARED, sandbox);
    outsiders.have_their_chance();
    servers.nginx.start("boot");
    servers.redis.start("boot");
    servers.postgres.start("boot");
    for round in 0..rounds {
        servers.round(&outsiders);
        agent = trouble(&place, agent, round);
        assert_eq!(board.wrong(), "");
    }
    servers.nginx.stop();
    servers.redis.stop();
    servers.postgres.stop();
    outsiders.have_their_chance();
    let shown = outsiders.stop();
    assert_eq!(board.wrong(), "");
    eprintln!("{} starts of the rightful owners, none refused; lost: 0\n{shown}", servers.starts);

    // The reservations were the reason: without them every bind succeeds.
    for file in ["nginx.toml", "redis.toml", "postgres.toml"] {
        place.withdraw(file);
    }
    let agent = agent.take().unwrap_or_else(|| place.agent());
    place.reload();
    assert_eq!(place.in_force().iter().filter(|name| *name != "unrelated").count(), 0);
    for root in [true, false] {
        as_outsider(root, sandbox, || bind_all_in_every_way(root));
    }
    let listener = outgoing::listener();
    let listening = portkeep_testkit::process::Child::fork(|_| outgoing::listen(listener.try_clone().unwrap()));
    as_outsider(false, sandbox, || {
        let chosen: BTreeSet<u16> = outgoing::all_chosen().collect();
        let wanted: BTreeSet<u16> =
            DECLARED.iter().map(|declared| declared.port).filter(|p| range.contains(p)).collect();
        assert!(!chosen.is_disjoint(&wanted), "none of {wanted:?} is among the {} that were chosen", chosen.len());
        let left: Vec<&u16> = wanted.difference(&chosen).filter(|port| !in_time_wait().contains(port)).collect();
        assert_eq!(left, [&0; 0], "not among the {} that were chosen", chosen.len());
    });
    drop((listening, listener));

    let _ = fs::remove_file(place.path().join("root/etc/portkeep/ports.d/unrelated.toml"));
    place.reload();
    agent.stop();
    drop(servers);
    world.assert_empty();
    drop(guard.stdin.take());
    guard.wait().unwrap();
}
