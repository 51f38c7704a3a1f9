//! Three servers as Debian packages them, each given no more than its port and a folder.

use std::{
    fs,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;

use portkeep_testkit::eventually_or;

use crate::unit::{Account, Unit};

pub(crate) const HTTPS: u16 = 443;
pub(crate) const HTTPS_ALT: u16 = 8443;
pub(crate) const INTRANET: u16 = 7080;
pub(crate) const REDIS: u16 = 6379;
pub(crate) const POSTGRES: u16 = 5432;

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Where the servers are.
pub(crate) struct Binaries {
    nginx: PathBuf,
    redis: PathBuf,
    /// The folder of PostgreSQL's programs.
    postgres: PathBuf,
    accounts: [Account; 3],
}

impl Binaries {
    /// The missing ones, if any.
    pub(crate) fn find() -> Result<Self, String> {
        let there = |path: &str| {
            let path = PathBuf::from(path);
            if path.exists() { Ok(path) } else { Err(format!("there is no {}", path.display())) }
        };
        let account = |name: &str| Account::named(name).ok_or(format!("there is no user {name}"));
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let postgres =
            versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("initdb").exists()).max();
        Ok(Self {
            nginx: there("/usr/sbin/nginx")?,
            redis: there("/usr/bin/redis-server")?,
            postgres: postgres.ok_or("there is no PostgreSQL in /usr/lib/postgresql")?,
            accounts: [account("www-data")?, account("redis")?, account("postgres")?],
        })
    }
}

/// Send a question to a server, and read until the expected answer has come.
fn ask(address: IpAddr, port: u16, question: &[u8], expected: &[u8]) -> io::Result<()> {
    let mut stream = TcpStream::connect((address, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(question)?;
    let mut heard = Vec::new();
    let mut bytes = [0; 1024];
    while !heard.windows(expected.len()).any(|window| window == expected) {
        match stream.read(&mut bytes)? {
            0 => return Err(io::Error::other(format!("it said {:?}", String::from_utf8_lossy(&heard)))),
            length => heard.extend_from_slice(&bytes[..length]),
        }
    }
    Ok(())
}

/// Over IPv4 and IPv6.
#[track_caller]
fn answers(port: u16, question: &[u8], expected: &[u8]) {
    for address in LOOPBACK {
        let mut last = None;
        eventually_or(
            || format!("an answer from {address} port {port}: {last:?}", last = ask(address, port, question, expected)),
            || {
                last = ask(address, port, question, expected).err();
                last.is_none()
            },
        );
    }
}

/// Redis with a port for its user.
pub(crate) struct Redis {
    pub(crate) unit: Unit,
    program: PathBuf,
}

impl Redis {
    pub(crate) fn new(binaries: &Binaries, cgroup: PathBuf, folder: PathBuf) -> Self {
        Self { unit: Unit::new(cgroup, folder, binaries.accounts[1].clone()), program: binaries.redis.clone() }
    }

    pub(crate) fn start(&mut self, after: &str) {
        let port = REDIS.to_string();
        let folder = self.unit.folder().to_str().unwrap().to_owned();
        let arguments =
            ["--port", &port, "--bind", "0.0.0.0 ::", "--protected-mode", "no", "--save", "", "--dir", &folder];
        self.unit.spawn(&self.program, &arguments);
        answers(REDIS, b"PING\r\n", b"+PONG\r\n");
        self.unit.assert_not_refused(after);
    }

    pub(crate) fn stop(&self) {
        let main = *self.unit.processes().first().expect("it runs");
        self.unit.end(main, Signal::TERM);
    }
}

/// PostgreSQL with a port for its cgroup.
pub(crate) struct Postgres {
    pub(crate) unit: Unit,
    program: PathBuf,
}

impl Postgres {
    pub(crate) fn new(binaries: &Binaries, cgroup: PathBuf, folder: PathBuf) -> Self {
        let unit = Unit::new(cgroup, folder, binaries.accounts[2].clone());
        let data = unit.file("data");
        let arguments = ["--no-sync", "--auth", "trust", "--username", "postgres", "--locale", "C", "--pgdata", &data];
        assert!(unit.run(&binaries.postgres.join("initdb"), &arguments).success(), "initdb");
        let settings = [
            "listen_addresses = '*'",
            &format!("port = {POSTGRES}"),
            &format!("unix_socket_directories = '{}'", unit.folder().display()),
            // Without memory that outlives it, and without work that this test does not require.
            "dynamic_shared_memory_type = mmap",
            "fsync = off",
            "shared_buffers = 1MB",
            "autovacuum = off",
        ];
        let file = Path::new(&data).join("postgresql.auto.conf");
        fs::write(file, settings.join("\n")).unwrap();
        Self { unit, program: binaries.postgres.join("postgres") }
    }

    pub(crate) fn start(&mut self, after: &str) {
        self.unit.spawn(&self.program, &["-D", &self.unit.file("data")]);
        let parameters = b"user\0postgres\0database\0postgres\0\0";
        let mut question = (parameters.len() as u32 + 8).to_be_bytes().to_vec();
        // Version 3.0 of the protocol.
        question.extend((3u32 << 16).to_be_bytes());
        question.extend(parameters);
        let query = b"SELECT 'forty-' || 'two'\0";
        question.push(b'Q');
        question.extend((query.len() as u32 + 4).to_be_bytes());
        question.extend(query);
        answers(POSTGRES, &question, b"forty-two");
        self.unit.assert_not_refused(after);
    }

    fn main(&self) -> i32 {
        let text = fs::read_to_string(self.unit.file("data/postmaster.pid")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }

    /// As its unit in Debian stops it.
    pub(crate) fn stop(&self) {
        self.unit.end(self.main(), Signal::INT);
    }

    /// Without a checkpoint, the next start recovers.
    pub(crate) fn stop_at_once(&self) {
        self.unit.end(self.main(), Signal::QUIT);
    }
}

/// nginx with ports for its unit, one of them privileged, and one for its group.
pub(crate) struct Nginx {
    pub(crate) unit: Unit,
    program: PathBuf,
}

impl Nginx {
    pub(crate) fn new(binaries: &Binaries, cgroup: PathBuf, folder: PathBuf) -> Self {
        let unit = Unit::new(cgroup, folder, binaries.accounts[0].clone());
        Self { unit, program: binaries.nginx.clone() }
    }

    fn configure(&self, intranet: bool) {
        let listen = |port: u16, more: &str| format!("listen {port} {more}; listen [::]:{port} ipv6only=on {more};\n");
        let ports = [
            listen(HTTPS, ""),
            // A socket for each worker.
            listen(HTTPS_ALT, "reuseport"),
            if intranet { listen(INTRANET, "") } else { String::new() },
        ];
        let folder = self.unit.folder().display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {folder}/{kind};\n"))
            .concat();
        let text = format!(
            "worker_processes 2;\npid {folder}/pid;\nerror_log {folder}/log notice;\nevents {{}}\nhttp {{\naccess_log off;\n\
             {temporary}server {{\n{}location / {{ return 200 \"it is nginx\"; }}\n}}\n}}\n",
            ports.concat()
        );
        fs::write(self.unit.file("conf"), text).unwrap();
    }

    fn master(&self) -> Option<i32> {
        fs::read_to_string(self.unit.file("pid")).ok()?.trim().parse().ok()
    }

    fn serves(&mut self, ports: &[u16], after: &str) {
        for port in ports {
            answers(*port, b"GET / HTTP/1.0\r\n\r\n", b"it is nginx");
        }
        self.unit.assert_not_refused(after);
    }

    /// It goes into the background once it has its ports. Its exit code says whether it has them.
    pub(crate) fn start(&mut self, after: &str) {
        self.configure(true);
        let status = self.unit.run(&self.program, &["-e", &self.unit.file("log"), "-c", &self.unit.file("conf")]);
        assert!(status.success(), "nginx after {after}: {status}\n{}", self.unit.news());
        self.serves(&[HTTPS, HTTPS_ALT, INTRANET], after);
    }

    /// Graceful, as its unit in Debian stops it.
    pub(crate) fn stop(&self) {
        self.unit.end(self.master().expect("it runs"), Signal::QUIT);
    }

    /// Release one port while it runs.
    pub(crate) fn give_up_intranet(&mut self) {
        self.configure(false);
        self.reload();
        eventually_or(
            || format!("{INTRANET} given up"),
            || LOOPBACK.iter().all(|address| TcpStream::connect((*address, INTRANET)).is_err()),
        );
    }

    /// Bind it again.
    pub(crate) fn take_intranet_again(&mut self) {
        self.configure(true);
        self.reload();
        self.serves(&[INTRANET, HTTPS], "a reload");
    }

    fn reload(&self) {
        self.unit.signal(self.master().expect("it runs"), Signal::HUP);
    }

    /// A new binary takes over the listening sockets of the old one.
    pub(crate) fn upgrade(&mut self) {
        let old = self.master().expect("it runs");
        let before = self.unit.processes();
        self.unit.signal(old, Signal::USR2);
        eventually_or(|| "a new master".into(), || self.master().is_some_and(|master| master != old));
        self.unit.signal(old, Signal::QUIT);
        self.unit.await_end(&before);
        self.serves(&[HTTPS, HTTPS_ALT, INTRANET], "an upgrade");
    }

    /// Capabilities in effect of all its processes, as `/proc` shows them.
    pub(crate) fn capabilities(&self) -> Vec<String> {
        let of = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let lines = self.unit.processes().iter().map(of).collect::<String>();
        let lines = lines.lines().filter_map(|line| line.strip_prefix("CapEff:"));
        lines.map(|line| line.trim().trim_start_matches('0').to_owned()).collect()
    }
}
