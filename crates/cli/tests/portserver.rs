//! `portkeep portserver`: portpicker's protocol, answered with reserved ports.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use portkeep_testkit::{
    eventually, kernel_or_skip,
    machine::{self, Machine},
    skip,
};

const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");
/// Set on machines that must run the tests with packages of PyPI: there, a test that cannot run fails.
const REQUIRE: &str = "PORTKEEP_REQUIRE_PYTHON";

/// Started by the tests as an outsider.
#[test]
#[ignore = "plays an outsider for the other tests"]
fn helper_binds() {
    machine::help();
}

/// The beginning of each script: `ask` sends a request and returns the answer.
const CLIENT: &str = r#"
import os, socket, subprocess, sys, time

def connect():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect("\0portkeep")
    return s

def ask(request):
    with connect() as s:
        s.sendall(request)
        return s.recv(100)

def line(pid):
    return b"%d\n" % pid

def bind(port, kind=socket.SOCK_STREAM):
    s = socket.socket(socket.AF_INET, kind)
    s.bind(("", port))
    return s

me = line(os.getpid())
"#;

/// A machine with enforcement and a port server.
struct Served {
    machine: Machine,
    server: Option<Child>,
}

impl Served {
    fn new(test: &str) -> Option<Self> {
        if !kernel_or_skip(test) {
            return None;
        }
        let machine = Machine::new(PORTKEEP, test);
        machine.portkeep(&["up"]).ok();
        let log = fs::File::create(machine.folder.path().join("portserver.log")).unwrap();
        let server = machine.command(&["portserver"]).stderr(log).stdout(Stdio::null()).spawn().unwrap();
        let served = Self { machine, server: Some(server) };
        eventually(|| served.log().contains("serving"));
        Some(served)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.machine.folder.path().join("portserver.log")).unwrap()
    }

    fn script(&self, text: &str) -> String {
        let script = format!("{CLIENT}\n{text}");
        let done = self.machine.program(&["python3", "-c", &script]).output().unwrap();
        assert!(done.status.success(), "{}\n{}", String::from_utf8_lossy(&done.stderr), self.log());
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    }

    fn reserved(&self) -> usize {
        self.machine.portkeep(&["list", "--json"]).ok().out.lines().filter(|line| line.contains("portserver")).count()
    }

    /// A signal to the server; its workers notice by themselves.
    fn end(&mut self, signal: &str) {
        let Some(mut server) = self.server.take() else { return };
        let _ = Command::new("kill").args([signal, &server.id().to_string()]).status();
        let _ = server.wait();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.end("-TERM");
    }
}

#[test]
fn answers_are_reserved_ports() {
    let Some(served) = Served::new("portserver_answers") else { return };
    let port = served.script(
        r#"
a, b = int(ask(me)), int(ask(me))
assert a != b
for port in (a, b):
    bind(port), bind(port, socket.SOCK_DGRAM)
# A child binds what its parent asked for.
c = int(ask(me))
child = subprocess.run([sys.executable, "-c", "import socket, sys; socket.socket().bind(('', int(sys.argv[1])))", str(c)])
assert child.returncode == 0
# For another process of this user, until that ends.
other = subprocess.Popen(["sleep", "600"])
d = int(ask(line(other.pid)))
assert subprocess.run(["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", sys.executable, "-c",
    "import socket, sys, errno\ntry: socket.socket().bind(('', int(sys.argv[1])))\n"
    "except OSError as e: sys.exit(e.errno != errno.EADDRINUSE)\nelse: sys.exit(2)", str(d)]).returncode == 0
other.kill(), other.wait()
print(d)
"#,
    );
    assert!((61000..=65535).contains(&port.parse().unwrap()));
    // All of its processes have ended.
    eventually(|| served.reserved() == 0);
    assert_eq!(served.machine.outsider_binds("tcp", port.parse().unwrap()), "bound");
}

#[test]
fn a_listing_shows_the_server_without_internal_options() {
    let Some(served) = Served::new("portserver_listed") else { return };
    let list = served.script(&format!(
        "port = ask(me)\nprint(subprocess.run(['{PORTKEEP}', 'list', '--json'], capture_output=True, text=True).stdout)"
    ));
    assert!(list.contains(r#""command":"portkeep portserver","#), "{list}");
}

#[test]
fn malformed_requests_get_nothing() {
    let Some(served) = Served::new("portserver_malformed") else { return };
    served.script(
        r#"
gone = subprocess.Popen(["true"])
gone.wait()
for request in (b"1\n", b"0\n", b"-3\n", b"x\n", b"\n", b"9" * 21, b"9" * 5000, b"12 13\n", line(gone.pid)):
    assert ask(request) == b"", request
# As many bytes as one likes: the answer is empty, and no reset.
assert ask(b"9" * 200000) == b""
# A request that comes byte by byte is answered when it is complete, and its end may be that of the input.
for end in (b"\n", None):
    slow = connect()
    for byte in me.strip():
        slow.sendall(bytes([byte]))
        time.sleep(0.02)
    slow.sendall(end) if end else slow.shutdown(socket.SHUT_WR)
    assert int(slow.recv(100))
# An incomplete one gets nothing.
slow = connect()
slow.sendall(me.strip())
assert slow.recv(100) == b""
# Those that send nothing, or go away, keep nobody waiting.
silent = [connect() for _ in range(400)]
for _ in range(20):
    connect().close()
# A user with that many connections may lose some of its own.
while True:
    try:
        assert int(ask(me))
        break
    except ConnectionResetError:
        time.sleep(0.1)
"#,
    );
}

#[test]
fn each_reason_is_printed_and_counted() {
    let Some(mut served) = Served::new("portserver_reasons") else { return };
    served.script(
        r#"
for _ in range(5):
    assert ask(b"x\n") == b""
    assert ask(b"0\n") == b""
kept = int(ask(me))
"#,
    );
    let number = |text: &str| -> u32 {
        let log = served.log();
        let lines = log.lines().filter(|line| line.contains(text));
        lines.map(|line| line.rsplit_once(" (").map_or(1, |(_, n)| n.split(' ').next().unwrap().parse().unwrap())).sum()
    };
    for text in ["is not the number of a process", "names process 0"] {
        eventually(|| number(text) == 5);
    }
    let server = served.server.as_ref().unwrap().id().to_string();
    assert!(Command::new("kill").args(["-USR1", &server]).status().unwrap().success());
    eventually(|| {
        served.log().contains("1 user has asked for ports") && served.log().contains("0 ports for 0 processes")
    });
    served.end("-TERM");
}

#[test]
fn the_address_is_a_name_or_a_file_that_goes_with_the_server() {
    let test = "portserver_address";
    if !kernel_or_skip(test) {
        return;
    }
    let machine = Machine::new(PORTKEEP, test);
    machine.portkeep(&["up"]).ok();
    for (address, said) in [
        ("", "--address \"\" names no socket"),
        ("@", "--address \"@\" names no socket"),
        (&format!("/tmp/{}", "x".repeat(200)), "xxx\" is too long"),
        (&format!("@{}", "x".repeat(200)), "xxx\" is too long"),
    ] {
        let outcome = machine.portkeep(&["portserver", "--address", address]);
        assert!(outcome.err.contains(said), "{address}: {}", outcome.err);
    }
    let path = machine.folder.path().join("socket");
    let address = path.to_str().unwrap();
    // A file that is no socket stays.
    fs::write(&path, "text").unwrap();
    let outcome = machine.portkeep(&["portserver", "--address", address]);
    assert!(outcome.err.contains(address), "{}", outcome.err);
    assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    fs::remove_file(&path).unwrap();
    // One that a killed server has left is replaced, and goes with the next server.
    for signal in ["-KILL", "-TERM"] {
        let mut server = machine.command(&["portserver", "--address", address]).stderr(Stdio::null()).spawn().unwrap();
        eventually(|| std::os::unix::net::UnixStream::connect(&path).is_ok());
        assert!(Command::new("kill").args([signal, &server.id().to_string()]).status().unwrap().success());
        server.wait().unwrap();
        assert_eq!(path.exists(), signal == "-KILL");
    }
}

/// The socket comes as standard input, as from systemd.
#[test]
fn a_socket_may_come_as_standard_input() {
    let test = "portserver_activated";
    if !kernel_or_skip(test) {
        return;
    }
    let machine = Machine::new(PORTKEEP, test);
    machine.portkeep(&["up"]).ok();
    let path = machine.folder.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let stdin = Stdio::from(std::os::fd::OwnedFd::from(listener));
    let mut server = machine.command(&["portserver"]).stdin(stdin).stderr(Stdio::null()).spawn().unwrap();
    let ask =
        format!("{CLIENT}\ns = socket.socket(socket.AF_UNIX)\ns.connect({path:?})\ns.sendall(me)\nint(s.recv(100))");
    let done = machine.program(&["python3", "-c", &ask]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Command::new("kill").arg(server.id().to_string()).status().unwrap();
    server.wait().unwrap();
}

#[test]
fn every_user_has_a_server_and_a_quota_of_its_own() {
    let Some(mut served) = Served::new("portserver_users") else { return };
    served.script(
        r#"
mine = int(ask(me))
child = os.fork()
if not child:
    os.setgid(65534)
    os.setuid(65534)
    own = line(os.getpid())
    port = int(ask(own))
    bind(port)
    assert ask(me) == b"", "of another user"
    try:
        bind(mine)
        os._exit(1)
    except OSError:
        pass
    # As many as the quota has: each is a TCP and a UDP port.
    got = 1
    while ask(own):
        got += 1
    os._exit(0 if got == 512 else 2)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
# Others are not affected.
assert int(ask(me))
"#,
    );
    eventually(|| served.reserved() == 0);
    // Killed, the server leaves nothing behind: its workers end with it.
    let mut client =
        served.machine.program(&["python3", "-c", &format!("{CLIENT}\nask(me)\ntime.sleep(600)")]).spawn().unwrap();
    eventually(|| served.reserved() == 1);
    served.end("-KILL");
    eventually(|| served.reserved() == 0);
    client.kill().unwrap();
    client.wait().unwrap();
}

/// The test of portpicker's own suite that fails, and only it: a bound TCP socket on a reserved port has SO_REUSEADDR, so
/// until it listens `is_port_free` can bind the port beside it. The guide to testing says so.
const DIFFERENT: &str = "FAIL: testIsPortFree (";

/// portpicker itself with its tests, as PyPI has it.
#[test]
fn portpicker_gets_reserved_ports_and_its_own_tests_pass() {
    let test = "portserver_portpicker";
    let Some(served) = Served::new(test) else { return };
    let folder = served.machine.folder.path();
    let fetched = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest"])
        .arg(folder)
        .arg("portpicker")
        .output();
    match fetched {
        Ok(done) if done.status.success() => {}
        Ok(done) => return skip(test, &String::from_utf8_lossy(&done.stderr), REQUIRE),
        Err(error) => return skip(test, &format!("no pip: {error}"), REQUIRE),
    }
    let unpack = ["-c", "tar -xzf portpicker-*.tar.gz --strip-components 1"];
    assert!(Command::new("sh").current_dir(folder).args(unpack).status().unwrap().success());
    let source = folder.join("src");
    let python = |words: &[&str]| {
        let mut command = served.machine.program(&[&["python3"], words].concat());
        command.env("PYTHONPATH", &source).env("PORTSERVER_ADDRESS", "@portkeep");
        command.output().unwrap()
    };

    let script = r#"
import os, socket, portpicker
ports = [portpicker.pick_unused_port() for _ in range(20)]
assert len(set(ports)) == 20 and all(61000 <= port <= 65535 for port in ports), ports
for port in ports:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        socket.socket(socket.AF_INET6, kind).bind(("", port))
"#;
    let done = python(&["-c", script]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));

    let done = python(&[source.join("tests/portpicker_test.py").to_str().unwrap()]);
    let report = String::from_utf8_lossy(&done.stderr);
    assert!(report.contains("\nRan 2"), "some twenty tests: {report}");
    let failed: Vec<&str> =
        report.lines().filter(|line| line.starts_with("FAIL") || line.starts_with("ERROR")).collect();
    assert!(matches!(failed[..], [one, "FAILED (failures=1)"] if one.starts_with(DIFFERENT)), "{report}");
}

#[test]
fn without_enforcement_there_is_no_server() {
    if !kernel_or_skip("portserver_without") {
        return;
    }
    let machine = Machine::new(PORTKEEP, "portserver_without");
    let outcome = machine.portkeep(&["portserver"]);
    assert!(outcome.err.contains("portkeep up"), "{}", outcome.err);
}
