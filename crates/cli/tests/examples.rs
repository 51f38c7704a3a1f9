//! The programs of `examples/`, one in each language: compiled, run where the kernel enforces, and asked for an answer.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use portkeep_testkit::{eventually, kernel_or_skip, machine::Machine, skip};

const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");

/// Set on machines that have the compilers and interpreters of all languages: there, a missing one is a failure.
const REQUIRE: &str = "PORTKEEP_REQUIRE_LANGUAGES";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn example(name: &str) -> String {
    repository().join("examples").join(name).to_str().unwrap().to_owned()
}

/// A machine where the kernel enforces, with this thread in its network; `None`, with the reason on standard error, where that or a tool is missing.
fn ready(test: &str, tools: &[&str]) -> Option<Machine> {
    if !kernel_or_skip(test) {
        return None;
    }
    for tool in tools {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|folder| folder.join(tool).exists()) {
            skip(test, &format!("no {tool}"), REQUIRE);
            return None;
        }
    }
    let machine = Machine::new(PORTKEEP, test);
    machine.portkeep(&["up"]).ok();
    machine.enter_network();
    Some(machine)
}

/// A program of the machine that listens. Dropping it ends everything in the machine's cgroup.
struct Server<'a> {
    machine: &'a Machine,
    child: Child,
    /// Open to the end: a program that prints more must not fail.
    _out: BufReader<ChildStdout>,
    ports: Vec<u16>,
}

impl<'a> Server<'a> {
    /// Waits for its line "listening on port ...".
    fn start(machine: &'a Machine, words: &[&str]) -> Self {
        let mut command = machine.program(words);
        command.env("PYTHONPATH", repository().join("python/src")).env("PATH", path_with_portkeep());
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let mut server = Self { machine, child, _out: out, ports: Vec::new() };
        let text = line.strip_prefix("listening on port ").unwrap_or_else(|| panic!("{words:?} printed {line:?}"));
        server.ports = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        server
    }

    /// The port is reserved, and the server answers on it.
    #[track_caller]
    fn answers(&self, port: u16) {
        let who = self.machine.portkeep(&["who", &port.to_string()]).ok();
        assert!(who.out.contains("belongs to pid"), "{who:?}");
        let mut answer = String::new();
        TcpStream::connect(("127.0.0.1", port)).unwrap().read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "hello\n");
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        let _ = fs::write(self.machine.cgroup.path().join("cgroup.kill"), "1");
        let _ = self.child.wait();
    }
}

fn path_with_portkeep() -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = Path::new(PORTKEEP).parent().unwrap().to_owned();
    std::env::join_paths(std::iter::once(own).chain(std::env::split_paths(&path))).unwrap()
}

#[track_caller]
fn says_hello(machine: &Machine, words: &[&str]) {
    let server = Server::start(machine, words);
    assert_eq!(server.ports.len(), 1);
    server.answers(server.ports[0]);
}

#[test]
fn c() {
    c_with("c", "cc", &["-std=c99", "-D_DEFAULT_SOURCE"]);
}

#[test]
fn cpp() {
    c_with("cpp", "c++", &["-std=c++11", "-x", "c++"]);
}

fn c_with(test: &str, compiler: &str, options: &[&str]) {
    let Some(machine) = ready(test, &[compiler]) else { return };
    let program = machine.folder.path().join("server");
    let mut command = Command::new(compiler);
    command.args(options).args(["-Wall", "-Wextra", "-pedantic", "-Werror", "-I"]);
    command.arg(repository().join("crates/portkeep/include")).arg("-o").arg(&program).arg(example("server.c"));
    assert!(command.status().unwrap().success());
    says_hello(&machine, &[program.to_str().unwrap()]);
}

#[test]
fn go() {
    let Some(machine) = ready("go", &["go"]) else { return };
    let program = machine.folder.path().join("server");
    let mut compiler = Command::new("go");
    compiler.args(["build", "-o"]).arg(&program).arg(example("server.go"));
    compiler.env("GOCACHE", machine.folder.path().join("cache")).env("CGO_ENABLED", "0").env("GO111MODULE", "off");
    assert!(compiler.status().unwrap().success());
    says_hello(&machine, &[program.to_str().unwrap()]);
}

#[test]
fn python() {
    let Some(machine) = ready("python", &["python3"]) else { return };
    says_hello(&machine, &["python3", &example("server.py")]);
}

#[test]
fn node_through_run() {
    let Some(machine) = ready("node_through_run", &["node"]) else { return };
    says_hello(&machine, &[PORTKEEP, "run", "--", "node", &example("server.js")]);
}

#[test]
fn node_with_a_descriptor_of_its_parent() {
    let Some(machine) = ready("node_with_a_descriptor_of_its_parent", &["node", "python3"]) else { return };
    says_hello(&machine, &["python3", &example("descriptor.py"), "node", &example("server.js")]);
}

#[test]
fn java() {
    let Some(machine) = ready("java", &["java", "javac"]) else { return };
    says_hello(&machine, &[PORTKEEP, "run", "--", "java", &example("Server.java")]);
}

fn listing(port: u16) -> io::Result<String> {
    let mut connection = TcpStream::connect(("127.0.0.1", port))?;
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn shell() {
    let Some(machine) = ready("shell", &["python3"]) else { return };
    fs::write(machine.folder.path().join("a-file"), "").unwrap();
    let server = Server::start(&machine, &[&example("servers.sh"), machine.folder.path().to_str().unwrap()]);
    assert_eq!(server.ports.len(), 2);
    for port in &server.ports {
        // The servers begin to listen after the line that names their ports.
        eventually(|| listing(*port).is_ok_and(|text| text.contains("a-file")));
    }
}
