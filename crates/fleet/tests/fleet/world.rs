//! A fleet: machines with kernel enforcement, agents and daemons, connected with a cluster of etcd.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    net::Ipv4Addr,
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use portkeep_testkit::{
    Outcome, eventually_or, kernel_or_skip,
    machine::{Machine, Running},
};
use serde_json::Value;

use crate::etcd::{Cluster, Member, Switch, etcd_or_skip};

pub(crate) const FLEET: &str = env!("CARGO_BIN_EXE_portkeep-fleet");
/// The ports of the fleets of these tests.
pub(crate) const RANGE: &str = "20000-20199";
/// Seconds.
pub(crate) const LEASE: u64 = 5;
pub(crate) const REST: u64 = 2;

/// The command that the hosts run.
fn portkeep() -> &'static str {
    static BUILT: OnceLock<String> = OnceLock::new();
    BUILT.get_or_init(|| {
        // The measurements are of optimized programs.
        let (options, folder): (&[_], _) = if cfg!(debug_assertions) {
            (&["--bin=portkeep"], "debug")
        } else {
            (&["--bin=portkeep", "--release"], "release")
        };
        portkeep_tool::build(options).expect("it builds");
        portkeep_tool::target_folder().join(folder).join("portkeep").display().to_string()
    })
}

/// A host of the fleet.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) machine: Machine,
    pub(crate) daemon: Option<Running>,
    pub(crate) agent: Option<Running>,
}

pub(crate) struct Fleet {
    // Dropped in this order: daemons, then etcd, then the network.
    pub(crate) hosts: Vec<Host>,
    pub(crate) cluster: Cluster,
    pub(crate) switch: Switch,
    /// More lines of the configuration.
    pub(crate) settings: String,
    _turn: MutexGuard<'static, ()>,
}

/// Each test waits more than it computes. On a small machine, more than two tests at a time would make each other late.
static TWO_AT_A_TIME: [Mutex<()>; 2] = [const { Mutex::new(()) }; 2];
static TURN: AtomicUsize = AtomicUsize::new(0);

impl Fleet {
    /// A fleet with so many members of etcd and these hosts, all up; `None` if that is not possible.
    #[track_caller]
    pub(crate) fn start(test: &str, members: u8, hosts: &[&str]) -> Option<Self> {
        let mut fleet = Self::with(test, members, "http", &[], "")?;
        fleet.cluster.ready();
        for host in hosts {
            fleet.add(host);
        }
        hosts.iter().for_each(|host| fleet.joined(host));
        Some(fleet)
    }

    /// Only etcd, with these options. It may not answer yet.
    #[track_caller]
    pub(crate) fn with(
        test: &str,
        members: u8,
        scheme: &'static str,
        options: &[String],
        settings: &str,
    ) -> Option<Self> {
        if !kernel_or_skip(test) || !etcd_or_skip(test) {
            return None;
        }
        let turn = &TWO_AT_A_TIME[TURN.fetch_add(1, Ordering::Relaxed) % TWO_AT_A_TIME.len()];
        let turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let switch = Switch::new();
        let cluster = Cluster::start(&switch, members, scheme, options);
        Some(Self { hosts: Vec::new(), cluster, switch, settings: settings.to_owned(), _turn: turn })
    }

    /// A machine that is up, with its daemon.
    pub(crate) fn add(&mut self, name: &str) {
        self.add_machine(name, true);
        self.start_daemon(name);
    }

    pub(crate) fn add_machine(&mut self, name: &str, enforced: bool) {
        // As on any machine, /run is in memory: the agent keeps there what lasts until the reboot.
        let mounts = r#"mount -t bpf bpf "$0/bpf" && chmod 755 "$0/bpf" && mkdir "$0/run" &&
            mount -t tmpfs -o mode=755 tmpfs "$0/run""#;
        let machine = Machine::made(portkeep(), "fleet", mounts);
        let number = u8::try_from(11 + self.hosts.len()).unwrap();
        self.switch.connect(&format!("h-{name}"), machine.holder(), Ipv4Addr::new(10, 77, 0, number));
        self.hosts.push(Host { name: name.to_owned(), machine, daemon: None, agent: None });
        if enforced {
            self.start_agent(name);
        }
        self.write_configuration(name);
    }

    /// Kernel enforcement and the agent.
    pub(crate) fn start_agent(&mut self, name: &str) {
        let host = self.host_mut(name);
        host.machine.portkeep(&["up"]).ok();
        host.agent = Some(host.machine.agent(host.machine.command(&["agent"])));
    }

    /// SIGKILL.
    pub(crate) fn stop_agent(&mut self, name: &str) {
        drop(self.host_mut(name).agent.take());
    }

    /// The configuration of a host.
    pub(crate) fn configuration(&self, name: &str) -> PathBuf {
        self.host(name).machine.folder.path().join("fleet.toml")
    }

    pub(crate) fn write_configuration(&self, name: &str) {
        let folder = self.host(name).machine.folder.path();
        let endpoints: Vec<String> = self.cluster.endpoints().split(',').map(|url| format!("{url:?}")).collect();
        let text = format!(
            "endpoints = [{}]\nrange = \"{RANGE}\"\nlease = {LEASE}\nrest = {REST}\nhost = \"{name}\"\n\
             state_dir = {:?}\n{}",
            endpoints.join(", "),
            folder.join("fleet"),
            self.settings,
        );
        fs::write(self.configuration(name), text).unwrap();
    }

    pub(crate) fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name == name).unwrap()
    }

    fn host_mut(&mut self, name: &str) -> &mut Host {
        self.hosts.iter_mut().find(|host| host.name == name).unwrap()
    }

    pub(crate) fn start_daemon(&mut self, name: &str) {
        let host = self.host(name);
        let log = File::options().create(true).append(true).open(host.machine.folder.path().join("fleet.log")).unwrap();
        let mut command = self.command(name, &["daemon"]);
        let daemon = Running(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        self.host_mut(name).daemon = Some(daemon);
    }

    /// SIGKILL.
    pub(crate) fn kill_daemon(&mut self, name: &str) {
        drop(self.host_mut(name).daemon.take());
    }

    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.host(name).machine.folder.path().join("fleet.log")).unwrap_or_default()
    }

    /// Its daemon belongs to the fleet.
    #[track_caller]
    pub(crate) fn joined(&self, name: &str) {
        eventually_or(|| self.log(name), || self.log(name).contains("belongs to the fleet"));
    }

    /// The fleet's command on a host.
    pub(crate) fn command(&self, host: &str, words: &[&str]) -> Command {
        let configuration = self.configuration(host).display().to_string();
        self.host(host).machine.program(&[&[FLEET, "--config", &configuration], words].concat())
    }

    /// Run the command to its end.
    #[track_caller]
    pub(crate) fn fleet(&self, host: &str, words: &[&str]) -> Outcome {
        let outcome: Outcome = self.command(host, words).output().unwrap().into();
        portkeep_testkit::schema::check(&[&["fleet"], words].concat(), &outcome.out, outcome.code != Some(0));
        outcome
    }

    #[track_caller]
    pub(crate) fn json(&self, host: &str, words: &[&str]) -> Value {
        self.fleet(host, &[words, &["--json"]].concat()).ok().json()
    }

    /// A requester that holds a job until its input ends.
    #[track_caller]
    pub(crate) fn acquire(&self, host: &str, words: &[&str]) -> Job {
        let mut command = self.command(host, &[&["acquire", "--json"], words].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() || line.contains("\"reason\":\"") && !line.contains("\"hosts\"") {
            panic!("{words:?}: {line} {:?}", child.wait_with_output().unwrap());
        }
        let json = serde_json::from_str(&line).unwrap();
        Job { child, json }
    }

    /// Whether an outsider on a host can bind a port: "bound" or the error.
    pub(crate) fn outsider(&self, host: &str, port: u16) -> String {
        self.host(host).machine.outsider_binds("tcp", port)
    }

    /// The reservations of the fleet in a host's kernel, by name.
    pub(crate) fn enforced(&self, host: &str) -> Vec<String> {
        let list = self.host(host).machine.portkeep(&["list", "--json"]).json();
        let names = list.as_array().unwrap().iter().filter_map(|info| info["name"].as_str());
        names.filter(|name| name.starts_with("fleet:")).map(str::to_owned).collect()
    }

    /// How many requests of each kind the first member of etcd has had.
    pub(crate) fn requests(&self) -> BTreeMap<String, u64> {
        self.cluster.members[0].requests()
    }

    /// The number of requests of each kind that all members have had.
    pub(crate) fn all_requests(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for (method, count) in self.cluster.members.iter().flat_map(Member::requests) {
            *all.entry(method).or_default() += count;
        }
        all
    }

    /// No job is left anywhere: not in etcd, and not in a kernel. Blocks may rest.
    #[track_caller]
    pub(crate) fn is_at_rest(&self) {
        let leftover = || {
            let kinds = ["job", "live", "part"];
            kinds.iter().flat_map(|kind| self.cluster.keys_of(kind)).collect::<Vec<String>>()
        };
        let enforced = || self.hosts.iter().flat_map(|host| self.enforced(&host.name)).collect::<Vec<_>>();
        let logs = || self.hosts.iter().map(|host| self.log(&host.name)).collect::<String>();
        eventually_or(
            || format!("{:?} {:?}\n{}", leftover(), enforced(), logs()),
            || leftover().is_empty() && enforced().is_empty(),
        );
    }

    /// Everything is free again.
    #[track_caller]
    pub(crate) fn is_free(&self) {
        self.is_at_rest();
        eventually_or(|| format!("{:?}", self.cluster.keys()), || self.cluster.keys_of("block").is_empty());
    }
}

/// A requester that holds a job.
pub(crate) struct Job {
    pub(crate) child: Child,
    pub(crate) json: Value,
}

impl Job {
    pub(crate) fn start(&self) -> u16 {
        u16::try_from(self.json["start"].as_u64().unwrap()).unwrap()
    }

    /// Its input ends.
    #[track_caller]
    pub(crate) fn end(mut self) {
        drop(self.child.stdin.take());
        let output = wait(&mut self.child);
        assert!(output.0, "{}", output.1);
    }

    /// Whether it ended well, and what it said.
    #[track_caller]
    pub(crate) fn ended(mut self) -> (bool, String) {
        wait(&mut self.child)
    }

    pub(crate) fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(child: &mut Child) -> (bool, String) {
    let mut said = String::new();
    let _ = child.stderr.take().unwrap().read_to_string(&mut said);
    (child.wait().unwrap().success(), said)
}

const SERVE: &str = "PORTKEEP_TEST_SERVE";
const BOUND: &str = "it is bound";

/// Not a test: a program that has a port until its input ends.
pub(crate) fn serve_in_helper() {
    let Ok(port) = std::env::var(SERVE) else { return };
    let _listener = std::net::TcpListener::bind(("0.0.0.0", port.parse().unwrap())).unwrap();
    println!("{BOUND}");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// A program of user nobody that has a port.
pub(crate) struct Server(Child, BufReader<ChildStdout>);

impl Fleet {
    /// Bind a TCP port on a host as user nobody.
    #[track_caller]
    pub(crate) fn serve(&self, host: &str, port: u16) -> Server {
        let machine = &self.host(host).machine;
        let helper = machine.for_everybody(std::env::current_exe().unwrap().to_str().unwrap());
        let mut command = machine.as_nobody(&[&helper, "--exact", "helper_serves", "--ignored", "--nocapture"]);
        command.env(SERVE, port.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let bound = out.by_ref().lines().map_while(Result::ok).any(|line| line.ends_with(BOUND));
        assert!(bound, "{port} cannot be bound");
        Server(child, out)
    }
}

impl Server {
    pub(crate) fn end(mut self) {
        drop(self.0.stdin.take());
        let _ = self.1.read_to_end(&mut Vec::new());
        self.0.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
