//! `run --ephemeral`: private ephemeral ranges, with the port pickers that people use, unchanged.

use std::{
    io::{BufRead, BufReader},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use portkeep_testkit::{Outcome, eventually, kernel_or_skip, machine::Machine, skip};

const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");

/// Set on machines that have the compilers and interpreters of all languages: there, a missing one is a failure.
const REQUIRE: &str = "PORTKEEP_REQUIRE_LANGUAGES";

/// A machine with kernel enforcement.
fn ready(test: &str) -> Option<Machine> {
    let machine = kernel_or_skip(test).then(|| Machine::new(PORTKEEP, test))?;
    machine.portkeep(&["up"]).ok();
    Some(machine)
}

fn has(test: &str, tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(tool).exists());
    if !found {
        skip(test, &format!("no {tool}"), REQUIRE);
    }
    found
}

/// "61000-61099" as `PORTKEEP_EPHEMERAL` has it.
fn range(text: &str) -> RangeInclusive<u16> {
    let (first, last) = text.trim().split_once('-').unwrap_or_else(|| panic!("no range: {text:?}"));
    first.parse().unwrap()..=last.parse().unwrap()
}

/// The first line is the range, the others are ports that were picked: all different, and all inside.
#[track_caller]
fn picked(text: &str, count: usize) {
    let mut lines = text.lines();
    let range = range(lines.next().unwrap_or_else(|| panic!("{text:?}")));
    let mut ports: Vec<u16> = lines.map(|line| line.parse().unwrap_or_else(|_| panic!("{text:?}"))).collect();
    assert_eq!(ports.len(), count, "{text:?}");
    assert!(ports.iter().all(|port| range.contains(port)), "{text:?}");
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), count, "a port came twice: {text:?}");
}

const PYTHON: &str = r#"
import os, socket, subprocess, sys
print(os.environ["PORTKEEP_EPHEMERAL"], flush=True)
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM) * 10:
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    # Another program binds the number later.
    later = "import socket, sys; socket.socket(2, int(sys.argv[2])).bind(('', int(sys.argv[1])))"
    subprocess.run([sys.executable, "-c", later, str(port), str(int(kind))], check=True)
    print(port if kind == socket.SOCK_STREAM else port, flush=True)
"#;

#[test]
fn python_binds_to_port_0_and_closes() {
    let Some(machine) = ready("ephemeral-python") else { return };
    if !has("ephemeral-python", "python3") {
        return;
    }
    let outcome = machine.portkeep(&["run", "--ephemeral", "100", "--", "python3", "-c", PYTHON]).ok();
    assert_eq!(outcome.err, "");
    let range = range(outcome.out.lines().next().unwrap());
    let ports: Vec<u16> = outcome.out.lines().skip(1).map(|line| line.parse().unwrap()).collect();
    assert_eq!(ports.len(), 20);
    assert!(ports.iter().all(|port| range.contains(port)), "{outcome:?}");
}

/// Packages of PyPI in a folder for `PYTHONPATH`.
fn pip(test: &str, machine: &Machine, packages: &[&str]) -> Option<PathBuf> {
    let target = machine.folder.path().join("python");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore"]);
    pip.arg("--target").arg(&target).args(packages);
    if !pip.status().is_ok_and(|status| status.success()) {
        skip(test, &format!("{} cannot be installed from PyPI", packages.join(" and ")), REQUIRE);
        return None;
    }
    Some(target)
}

#[test]
fn portpicker_of_pypi() {
    let Some(machine) = ready("ephemeral-portpicker") else { return };
    let Some(target) = pip("ephemeral-portpicker", &machine, &["portpicker"]) else { return };
    let script = r#"
import os, portpicker
print(os.environ["PORTKEEP_EPHEMERAL"])
for _ in range(20): print(portpicker.pick_unused_port())
"#;
    let mut command = machine.command(&["run", "-e100", "--", "python3", "-c", script]);
    let outcome = Outcome::from(command.env("PYTHONPATH", &target).env_remove("PORTSERVER_ADDRESS").output().unwrap());
    picked(&outcome.ok().out, 20);
}

/// The fixture opens and closes a socket for each port; the test binds them all a moment later.
#[test]
fn unused_tcp_port_factory_of_pytest_asyncio() {
    let Some(machine) = ready("ephemeral-pytest-asyncio") else { return };
    let Some(target) = pip("ephemeral-pytest-asyncio", &machine, &["pytest", "pytest-asyncio"]) else { return };
    let (test, out) = (machine.folder.path().join("test_ports.py"), machine.folder.path().join("picked"));
    let text = r#"
import asyncio, os, pytest

@pytest.mark.asyncio
async def test_all_can_be_bound(unused_tcp_port_factory):
    ports = [unused_tcp_port_factory() for _ in range(20)]
    servers = [await asyncio.start_server(lambda *_: None, "127.0.0.1", port) for port in ports]
    with open(os.environ["OUT"], "w") as out:
        print(os.environ["PORTKEEP_EPHEMERAL"], *ports, sep="\n", file=out)
    for server in servers: server.close()
"#;
    std::fs::write(&test, text).unwrap();
    let pytest =
        ["run", "-e100", "--", "python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", test.to_str().unwrap()];
    let mut command = machine.command(&pytest);
    Outcome::from(command.env("PYTHONPATH", &target).env("OUT", &out).output().unwrap()).ok();
    picked(&std::fs::read_to_string(&out).unwrap(), 20);
}

/// Jupyter chooses the five ports of each kernel in this way.
#[test]
fn local_port_cache_of_jupyter_client() {
    let Some(machine) = ready("ephemeral-jupyter") else { return };
    let Some(target) = pip("ephemeral-jupyter", &machine, &["jupyter_client"]) else { return };
    let script = r#"
import os, socket
from jupyter_client.connect import LocalPortCache
print(os.environ["PORTKEEP_EPHEMERAL"])
ports = [LocalPortCache.instance().find_available_port("127.0.0.1") for _ in range(20)]
sockets = [socket.create_server(("127.0.0.1", port)) for port in ports]
print(*ports, sep="\n")
"#;
    let mut command = machine.command(&["run", "-e100", "--", "python3", "-c", script]);
    picked(&Outcome::from(command.env("PYTHONPATH", &target).output().unwrap()).ok().out, 20);
}

#[test]
fn get_port_of_npm() {
    let Some(machine) = ready("ephemeral-get-port") else { return };
    if !has("ephemeral-get-port", "npm") {
        return;
    }
    let folder = machine.folder.path().join("js");
    std::fs::create_dir(&folder).unwrap();
    let mut npm = Command::new("npm");
    npm.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(&folder).arg("get-port");
    if !npm.stdout(Stdio::null()).status().is_ok_and(|status| status.success()) {
        return skip("ephemeral-get-port", "get-port cannot be installed from npm", REQUIRE);
    }
    let script = folder.join("pick.mjs");
    let text = "import getPort from 'get-port';\nconsole.log(process.env.PORTKEEP_EPHEMERAL);\n\
                for (let i = 0; i < 20; i++) console.log(await getPort());\n";
    std::fs::write(&script, text).unwrap();
    let outcome = machine.portkeep(&["run", "-e", "100", "--", "node", script.to_str().unwrap()]).ok();
    picked(&outcome.out, 20);
}

/// Go asks for MPTCP where the kernel has it, and listens at once.
#[test]
fn go_listens_on_port_0() {
    let Some(machine) = ready("ephemeral-go") else { return };
    if !has("ephemeral-go", "go") {
        return;
    }
    let (source, program) = (machine.folder.path().join("pick.go"), machine.folder.path().join("pick"));
    let text = r#"package main
import ("fmt"; "net"; "os")
func main() {
	fmt.Println(os.Getenv("PORTKEEP_EPHEMERAL"))
	for i := 0; i < 20; i++ {
		l, err := net.Listen("tcp", ":0")
		if err != nil { panic(err) }
		fmt.Println(l.Addr().(*net.TCPAddr).Port)
		l.Close()
	}
}
"#;
    std::fs::write(&source, text).unwrap();
    let mut compiler = Command::new("go");
    compiler.args(["build", "-o"]).arg(&program).arg(&source);
    compiler.env("GOCACHE", machine.folder.path().join("cache")).env("CGO_ENABLED", "0").env("GO111MODULE", "off");
    assert!(compiler.status().unwrap().success());
    picked(&machine.portkeep(&["run", "-e", "100", "--", program.to_str().unwrap()]).ok().out, 20);
}

#[test]
fn java_opens_server_sockets() {
    let Some(machine) = ready("ephemeral-java") else { return };
    if !has("ephemeral-java", "java") {
        return;
    }
    let source = machine.folder.path().join("Pick.java");
    let text = r#"
public class Pick {
    public static void main(String[] words) throws Exception {
        System.out.println(System.getenv("PORTKEEP_EPHEMERAL"));
        for (int i = 0; i < 20; i++) {
            try (var server = new java.net.ServerSocket(0)) {
                System.out.println(server.getLocalPort());
            }
        }
    }
}
"#;
    std::fs::write(&source, text).unwrap();
    picked(&machine.portkeep(&["run", "-e", "100", "--", "java", source.to_str().unwrap()]).ok().out, 20);
}

#[test]
fn e8_the_range_stands_beside_or_instead_of_fixed_ports() {
    let Some(machine) = ready("ephemeral-beside") else { return };
    let script = r#"echo "$PORTKEEP_EPHEMERAL/$PORT/$PORTS/$PORTKEEP_ENFORCEMENT/${PORTKEEP_TOKEN:+token}""#;
    let alone = machine.portkeep(&["run", "-e", "10", "--", "sh", "-c", script]).ok();
    assert_eq!((alone.out.as_str(), alone.err.as_str()), ("61000-61009///kernel/token\n", ""));
    let beside = machine.portkeep(&["run", "-e", "10", "-n", "2", "--", "sh", "-c", script]).ok();
    assert_eq!(beside.out, "61010-61019/61000/61000,61001/kernel/token\n");
    let wrong = machine.portkeep(&["run", "-e", "10", "--", "echo", "{PORT}"]);
    assert_eq!(wrong.code, Some(125));
    assert!(wrong.err.contains("--count 1"), "{wrong:?}");

    // Listings show it.
    let mut child = machine.command(&["run", "-e", "10", "--tcp", "--", "sh", "-c", "echo up; read line; true"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    let list = machine.portkeep(&["list", "--json"]).ok().json();
    assert_eq!((&list[0]["ephemeral"], &list[0]["transports"]), (&true.into(), &"tcp".into()), "{list}");
    assert!(machine.portkeep(&["list"]).ok().out.contains("cgroup, ephemeral"));
    let start = list[0]["start"].to_string();
    assert!(machine.portkeep(&["who", &start]).ok().out.contains("private ephemeral range"));
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(machine.portkeep(&["list", "--json"]).ok().json(), serde_json::json!([]));
}

/// A shell command that prints a port that the kernel chose, or the error.
const PICK: &str = "python3 -c 'import socket; s = socket.socket(); s.bind((\"\", 0)); print(s.getsockname()[1])'";

#[test]
fn of_nested_ranges_the_inner_one_counts_and_the_outer_one_comes_back() {
    let Some(machine) = ready("ephemeral-nested") else { return };
    if !has("ephemeral-nested", "python3") {
        return;
    }
    let portkeep = PORTKEEP;
    let inner = format!(r#"echo "$PORTKEEP_EPHEMERAL"; {PICK}"#).replace('\'', r"'\''");
    let outer = format!("echo $PORTKEEP_EPHEMERAL; {PICK}; {portkeep} run -e 5 -- sh -c '{inner}'; {PICK}");
    let outcome = machine.portkeep(&["run", "-e", "10", "--", "sh", "-c", &outer]).ok();
    let lines: Vec<&str> = outcome.out.lines().collect();
    let [outer_range, before, inner_range, within, after] = lines[..] else { panic!("{outcome:?}") };
    let inside = |port: &str, text: &str| range(text).contains(&port.parse().unwrap());
    assert!(inside(before, outer_range) && inside(after, outer_range), "{outcome:?}");
    assert!(inside(within, inner_range) && !inside(within, outer_range), "{outcome:?}");
    assert_ne!(before, after);
}

#[test]
fn children_that_outlive_the_command_keep_the_range() {
    let Some(machine) = ready("ephemeral-children") else { return };
    if !has("ephemeral-children", "python3") {
        return;
    }
    let (go, out) = (machine.folder.path().join("go"), machine.folder.path().join("picked"));
    let (go, out) = (go.to_str().unwrap(), out.to_str().unwrap());
    let script = format!(
        "echo $PORTKEEP_EPHEMERAL; (while ! [ -e {go} ]; do sleep 0.05; done; {PICK} >{out}.new; mv {out}.new {out}) \
         </dev/null >/dev/null 2>&1 &"
    );
    let outcome = machine.portkeep(&["run", "-e", "10", "--", "sh", "-c", &script]).ok();
    assert!(outcome.err.contains("left") && outcome.err.contains("running"), "{outcome:?}");
    std::fs::write(go, "").unwrap();
    eventually(|| Path::new(out).exists());
    let port = std::fs::read_to_string(out).unwrap();
    assert!(range(&outcome.out).contains(&port.trim().parse().unwrap()), "{outcome:?} {port}");
    // The reservation ends with the last of them.
    eventually(|| machine.portkeep(&["list", "--json"]).ok().json() == serde_json::json!([]));
}

#[test]
fn impossible_ranges_are_refused_with_a_reason() {
    let Some(machine) = ready("ephemeral-bad") else { return };
    let refused = |words: &[&str], code: i32, texts: &[&str]| {
        let outcome = machine.portkeep(&[&["run"], words, &["--", "true"]].concat());
        assert_eq!(outcome.code, Some(code), "{outcome:?}");
        texts.iter().for_each(|text| assert!(outcome.err.contains(text), "{outcome:?}"));
    };
    refused(&["-e", "0"], 125, &["not a number from 1 to 65535"]);
    refused(&["-e", "5000"], 125, &["61000-65535", "this needs 5000 ports"]);
    refused(&["-e", "5", "--strict"], 125, &["--strict"]);
    // An ordinary user: a quota, and no cgroup of its own here.
    let as_nobody = |words: &[&str]| machine.portkeep_as_nobody(&[&["run"], words, &["--", "true"]].concat());
    let outcome = as_nobody(&["-e", "5"]);
    assert_eq!(outcome.code, Some(125), "{outcome:?}");
    assert!(outcome.err.contains("a cgroup of its own") && outcome.err.contains("--scope user"), "{outcome:?}");
    as_nobody(&["-e", "5", "--scope", "user"]).ok();
    let outcome = as_nobody(&["-e", "1000", "--scope", "user"]);
    assert_eq!(outcome.code, Some(125), "{outcome:?}");
    assert!(outcome.err.contains("2000 ports") && outcome.err.contains("quota"), "{outcome:?}");
    as_nobody(&["-e", "1000", "--tcp", "--scope", "user"]).ok();
    assert_eq!(machine.portkeep(&["list", "--json"]).ok().json(), serde_json::json!([]));
}

#[test]
fn e8_held_mode_says_that_it_cannot() {
    if !kernel_or_skip("ephemeral-held") {
        return;
    }
    let machine = Machine::new(PORTKEEP, "ephemeral-held");
    let script = r#"echo "$PORT/$PORTKEEP_EPHEMERAL/$PORTKEEP_ENFORCEMENT""#;
    let outcome = machine.portkeep_as_nobody(&["run", "-e", "5", "--", "sh", "-c", script]).ok();
    assert_eq!(outcome.out, "//held\n");
    assert!(outcome.err.contains("no private ephemeral range") && outcome.err.contains("root"), "{outcome:?}");
    let required = machine.portkeep_as_nobody(&["run", "-e", "5", "--require-kernel", "--", "true"]);
    assert_eq!(required.code, Some(125), "{required:?}");
    assert!(required.err.contains("--require-kernel requires kernel enforcement"), "{required:?}");
    let beside = machine.portkeep_as_nobody(&["run", "-e", "5", "-n1", "--", "sh", "-c", script]).ok();
    assert!(beside.out.ends_with("//held\n") && beside.out.len() > 8, "{beside:?}");
}
