//! Real members of etcd, each in a network namespace of its own.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::{fd::AsFd, unix::process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Mutex,
    thread,
};

use portkeep_testkit::{eventually_or, machine::Running, skip};
use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use tempfile::TempDir;

/// Set on machines that must run the tests with etcd.
const REQUIRE: &str = "PORTKEEP_REQUIRE_ETCD";

/// Whether there is etcd; if not, says so.
#[track_caller]
pub(crate) fn etcd_or_skip(test: &str) -> bool {
    let there =
        |program, word| Command::new(program).arg(word).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if there("etcd", "--version") && there("etcdctl", "version") {
        return true;
    }
    skip(test, "no etcd and etcdctl (apt-get install etcd-server etcd-client)", REQUIRE);
    false
}

/// A network namespace, with mounts of its own, that lives as long as this.
pub(crate) struct Namespace(Child);

impl Namespace {
    pub(crate) fn new() -> Self {
        let script = "ip link set lo up && echo ready && exec cat >/dev/null";
        let mut child = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-ec", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("unshare of util-linux");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "ip of iproute2");
        Self(child)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Move this thread into it.
    pub(crate) fn enter(&self) {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    /// A program in it.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "--target", &self.pid().to_string(), "--"]).args(words).stdin(Stdio::null());
        command
    }

    #[track_caller]
    pub(crate) fn run(&self, words: &[&str]) {
        let output = self.command(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A switch that all are connected to.
pub(crate) struct Switch(Namespace);

impl Switch {
    pub(crate) fn new() -> Self {
        let namespace = Namespace::new();
        namespace.run(&["ip", "link", "add", "switch", "type", "bridge"]);
        namespace.run(&["ip", "link", "set", "switch", "up"]);
        Self(namespace)
    }

    /// Connect the namespace of a process by a cable of this name.
    pub(crate) fn connect(&self, cable: &str, pid: u32, address: Ipv4Addr) {
        let pid = pid.to_string();
        let ends = ["ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", &pid];
        self.0.run(&ends);
        self.0.run(&["ip", "link", "set", cable, "master", "switch", "up"]);
        let there = |words: &[&str]| {
            let mut command = Command::new("nsenter");
            command.args(["--net", "--target", &pid, "--"]).args(words);
            assert!(command.status().unwrap().success(), "{words:?}");
        };
        there(&["ip", "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        there(&["ip", "link", "set", "eth0", "up"]);
    }

    /// Pull the cable.
    pub(crate) fn cut(&self, cable: &str) {
        self.0.run(&["ip", "link", "set", cable, "down"]);
    }

    /// Put it back.
    pub(crate) fn heal(&self, cable: &str) {
        self.0.run(&["ip", "link", "set", cable, "up"]);
    }
}

/// A member of the cluster.
pub(crate) struct Member {
    pub(crate) namespace: Namespace,
    pub(crate) address: Ipv4Addr,
    arguments: Vec<String>,
    log: std::path::PathBuf,
    process: Mutex<Option<Running>>,
}

/// A cluster of etcd.
pub(crate) struct Cluster {
    pub(crate) members: Vec<Member>,
    pub(crate) folder: TempDir,
    scheme: &'static str,
    /// Options that etcdctl requires.
    pub(crate) credentials: Vec<String>,
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// A request of HTTP, after which the connection closes.
fn one_request(client: &mut TcpStream) -> Option<String> {
    let mut reader = BufReader::new(client);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        if line == "\r\n" {
            break;
        }
        let lower = line.to_lowercase();
        length = lower.strip_prefix("content-length: ").map_or(length, |text| text.trim().parse().unwrap());
        head += &line;
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(format!("{head}Connection: close\r\n\r\n{}", String::from_utf8(body).unwrap()))
}

impl Cluster {
    pub(crate) fn start(switch: &Switch, members: u8, scheme: &'static str, tls: &[String]) -> Self {
        // The data is in memory. On a disk, the syncs of etcd would wait for all other programs that write to it.
        let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        let address = |number: u8| Ipv4Addr::new(10, 77, 0, number);
        let name = |number: u8| format!("e{number}");
        let peers: Vec<String> =
            (1..=members).map(|number| format!("{}=http://{}:2380", name(number), address(number))).collect();
        let mut cluster = Self { members: Vec::new(), folder, scheme, credentials: Vec::new() };
        for number in 1..=members {
            let namespace = Namespace::new();
            switch.connect(&name(number), namespace.pid(), address(number));
            let client = format!("{scheme}://{}:2379", address(number));
            let peer = format!("http://{}:2380", address(number));
            let data = cluster.folder.path().join(name(number));
            let arguments = [
                ["--name", &name(number)],
                ["--data-dir", data.to_str().unwrap()],
                ["--listen-client-urls", &client],
                ["--advertise-client-urls", &client],
                ["--listen-peer-urls", &peer],
                ["--initial-advertise-peer-urls", &peer],
                ["--initial-cluster", &peers.join(",")],
                ["--initial-cluster-token", cluster.folder.path().to_str().unwrap()],
            ];
            let arguments = arguments.concat().into_iter().map(str::to_owned).chain(tls.iter().cloned()).collect();
            let log = cluster.folder.path().join(format!("{}.log", name(number)));
            let member = Member { namespace, address: address(number), arguments, log, process: Mutex::default() };
            member.start();
            cluster.members.push(member);
        }
        cluster
    }

    /// It has a leader and answers.
    #[track_caller]
    pub(crate) fn ready(&self) {
        let log = || std::fs::read_to_string(&self.members[0].log).unwrap_or_default();
        eventually_or(log, || self.etcdctl(&["get", "nothing"]).output().unwrap().status.success());
    }

    pub(crate) fn endpoints(&self) -> String {
        let urls: Vec<String> =
            self.members.iter().map(|member| format!("{}://{}:2379", self.scheme, member.address)).collect();
        urls.join(",")
    }

    /// etcdctl against the whole cluster.
    pub(crate) fn etcdctl(&self, words: &[&str]) -> Command {
        let mut command = self.members[0].namespace.command(&["etcdctl", "--endpoints", &self.endpoints()]);
        command.args(&self.credentials).args(words).env("ETCDCTL_API", "3");
        command
    }

    /// Every key of the fleet with its value.
    #[track_caller]
    pub(crate) fn keys(&self) -> Vec<(String, String)> {
        let output = self.etcdctl(&["get", "--prefix", "/portkeep/"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines = text.lines();
        let mut found = Vec::new();
        while let (Some(key), Some(value)) = (lines.next(), lines.next()) {
            found.push((key.to_owned(), value.to_owned()));
        }
        found
    }

    /// The keys that begin so, without values.
    #[track_caller]
    pub(crate) fn keys_of(&self, kind: &str) -> Vec<String> {
        let prefix = format!("/portkeep/{kind}/");
        self.keys().into_iter().filter_map(|(key, _)| key.strip_prefix(&prefix).map(str::to_owned)).collect()
    }

    /// A cluster of one member comes back from a backup, as the same cluster or as another one.
    pub(crate) fn restore(&mut self, backup: &Path, same: bool) {
        let member = &mut self.members[0];
        member.kill();
        let data = member.data().to_owned();
        std::fs::remove_dir_all(&data).unwrap();
        let token = if same { member.arguments[15].clone() } else { "another".to_owned() };
        let peer = &member.arguments[11];
        let cluster = &member.arguments[13];
        let mut command = Command::new("etcdctl");
        command.args(["snapshot", "restore"]).arg(backup).arg("--data-dir").arg(&data).env("ETCDCTL_API", "3");
        command.args(["--name", "e1", "--initial-cluster", cluster, "--initial-advertise-peer-urls", peer]);
        let output = command.args(["--initial-cluster-token", &token]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        member.start();
        self.ready();
    }

    /// The URL of a proxy before the first member. The proxy loses the answer to the first transaction that writes.
    pub(crate) fn lossy(&self) -> String {
        const PORT: u16 = 2400;
        let member = &self.members[0];
        let address = member.address;
        let listen = || {
            member.namespace.enter();
            let listener = TcpListener::bind((address, PORT)).unwrap();
            // Its threads stay in the namespace.
            thread::spawn(move || {
                let mut lost = false;
                for mut client in listener.incoming().map_while(Result::ok) {
                    let Some(request) = one_request(&mut client) else { continue };
                    let mut etcd = TcpStream::connect((address, 2379)).unwrap();
                    etcd.write_all(request.as_bytes()).unwrap();
                    if !lost && request.contains("\"request_put\"") {
                        lost = true;
                        etcd.read_to_end(&mut Vec::new()).unwrap();
                    } else {
                        thread::spawn(move || io::copy(&mut etcd, &mut client));
                    }
                }
            });
        };
        thread::scope(|scope| scope.spawn(listen).join().unwrap());
        format!("http://{address}:{PORT}")
    }

    /// The leader's place among the members.
    pub(crate) fn leader(&self) -> usize {
        let mut command = self.etcdctl(&["endpoint", "status"]);
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        // "http://10.77.0.1:2379, 8e9e05c52164694d, 3.4.23, 20 kB, true, ..."
        let leads = |line: &str| line.split(", ").nth(4) == Some("true");
        let line = text.lines().find(|line| leads(line)).unwrap_or_else(|| panic!("{text}"));
        self.members.iter().position(|member| line.contains(&format!("{}:", member.address))).unwrap()
    }
}

impl Member {
    pub(crate) fn start(&self) {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = self.namespace.command(&["etcd"]);
        command.args(&self.arguments).env("ETCD_LOGGER", "zap").stdout(log.try_clone().unwrap()).stderr(log);
        *self.process.lock().unwrap() = Some(Running(command.spawn().unwrap()));
    }

    /// How many requests of each kind it has had.
    pub(crate) fn requests(&self) -> BTreeMap<String, u64> {
        let ask = || {
            self.namespace.enter();
            let mut stream = TcpStream::connect((self.address, 2379)).unwrap();
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        };
        let text = thread::scope(|scope| scope.spawn(ask).join().unwrap());
        let lines = text.lines().filter_map(|line| line.strip_prefix("grpc_server_started_total{grpc_method=\""));
        let count = |line: &str| Some((line.split_once('"')?.0.to_owned(), line.rsplit_once(' ')?.1.parse().ok()?));
        lines.filter_map(count).collect()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.lock().unwrap().as_ref().unwrap().pid()
    }

    pub(crate) fn signal(&self, what: Signal) {
        signal(self.pid(), what);
    }

    /// SIGKILL.
    pub(crate) fn kill(&self) {
        drop(self.process.lock().unwrap().take());
    }

    /// Its data moves to a disk of its own, with little room beside etcd's log.
    pub(crate) fn on_a_small_disk(&self) {
        self.kill();
        let script = r#"mkdir "$0.disk" && mount -t tmpfs -o size=192m tmpfs "$0.disk" &&
            cp -a "$0/." "$0.disk" && mount --bind "$0.disk" "$0""#;
        self.on_disk(script);
        self.start();
    }

    /// Fill its disk.
    pub(crate) fn fill_disk(&self) {
        self.on_disk(r#"cat /dev/zero 2>/dev/null > "$0/filler" || true"#);
    }

    pub(crate) fn clear_disk(&self) {
        self.on_disk(r#"rm "$0/filler""#);
    }

    fn on_disk(&self, script: &str) {
        self.namespace.run(&["sh", "-ec", script, self.data().to_str().unwrap()]);
    }

    /// Whether its process lives.
    pub(crate) fn is_running(&self) -> bool {
        self.process.lock().unwrap().as_mut().is_some_and(|process| process.0.try_wait().unwrap().is_none())
    }

    /// The folder of its data.
    pub(crate) fn data(&self) -> &Path {
        Path::new(&self.arguments[3])
    }
}
