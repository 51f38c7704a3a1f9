//! The commands about persistent reservations: the real binary and the real agent, in a cgroup, a mount and a network
//! namespace of their own.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    ops::Deref,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use portkeep_core::{Align, Transports, persistent::Audience};
use portkeep_kernel::{Claimed, Instance, Wanted, cgroup, netns};
use portkeep_testkit::{
    Outcome, eventually, kernel_or_skip,
    machine::{self, HELPER, Machine, answer},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");

/// A machine with kernel enforcement up, and most of the time an agent.
struct Setup {
    machine: Machine,
    agent: Option<Child>,
}

impl Deref for Setup {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl Setup {
    fn new(name: &str) -> Self {
        let machine = Machine::new(PORTKEEP, name);
        machine.portkeep(&["up"]).ok();
        let mut setup = Self { machine, agent: None };
        setup.start();
        setup
    }

    fn start(&mut self) {
        let log = fs::File::create(self.folder.path().join("agent.log")).unwrap();
        let child = self.command(&["agent"]).stderr(log).spawn().unwrap();
        self.agent = Some(child);
        let socket = self.folder.path().join("run/agent.sock");
        eventually(|| std::os::unix::net::UnixStream::connect(&socket).is_ok());
        // It listens before it has read everything, and answers after.
        self.declared();
    }

    fn stop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            kill_process(Pid::from_child(&agent), Signal::TERM).unwrap();
            assert!(agent.wait().unwrap().success(), "{}", self.log());
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("agent.log")).unwrap_or_default()
    }

    /// A file of the system that commands and agent are made to read.
    fn file(&self, path: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join("root").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn declared(&self) -> Value {
        self.portkeep(&["persist", "list", "--json"]).ok().json()
    }

    /// As [`Machine::outsider_binds`], by a process of this unit.
    fn unit_binds(&self, unit: &str, port: u16) -> String {
        let place = cgroup::root().unwrap().join(self.enforced().trim_start_matches('/')).join(unit);
        fs::create_dir(&place).unwrap();
        let enter = r#"echo $$ >"$0/cgroup.procs" && exec "$@""#;
        let helper = std::env::current_exe().unwrap();
        let helper = [helper.to_str().unwrap(), "--exact", "helper_binds", "--ignored", "--nocapture"];
        let mut command = self.program(&[&["sh", "-c", enter, place.to_str().unwrap()][..], &helper].concat());
        let output = command.env(HELPER, format!("tcp {port}")).output().unwrap();
        fs::remove_dir(&place).unwrap();
        answer(&String::from_utf8_lossy(&output.stdout))
    }

    /// A process that has a TCP port bound until it is dropped.
    fn server(&self, port: u16) -> Server {
        self.server_of("root", port)
    }

    /// The same of another user.
    fn server_of(&self, user: &str, port: u16) -> Server {
        // If the build folder is in a home folder, other users cannot start the program there.
        let copy = self.folder.path().join("helper");
        if !copy.exists() {
            // Not by this process: a child of another test could have the copy open for writing, and then it cannot start.
            assert!(Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&copy).status().unwrap().success());
        }
        let become_user = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", copy.to_str().unwrap()];
        let helper = ["--exact", "helper_serves", "--ignored", "--nocapture"];
        let mut command = self.program(&[&become_user[..], &helper].concat());
        command.env(SERVE, port.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let there = out.by_ref().lines().map_while(Result::ok).any(|line| line.ends_with(THERE));
        assert!(there, "{user} cannot bind {port}");
        Server { child, _out: out }
    }
}

/// Set for the process that plays a server: its port.
const SERVE: &str = "PORTKEEP_TEST_SERVE";
const THERE: &str = "helper: there";

/// Started by the other tests in the place of a server.
#[test]
#[ignore = "plays a server for the other tests"]
fn helper_serves() {
    let Ok(port) = std::env::var(SERVE) else { return };
    let listener = std::net::TcpListener::bind(("0.0.0.0", port.parse().unwrap()));
    if listener.is_ok() {
        println!("\n{THERE}");
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
    }
}

/// Set for the process that plays a client: its own port.
const CONNECT: &str = "PORTKEEP_TEST_CONNECT";

/// Started by the other tests in the place of a client, with a connection to a server of its own.
#[test]
#[ignore = "plays a client for the other tests"]
fn helper_connects() {
    let Ok(port) = std::env::var(CONNECT) else { return };
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = server.local_addr().unwrap().to_string();
    let client = portkeep_testkit::sockets::tcp();
    portkeep_testkit::sockets::bind(&client, port.parse().unwrap()).unwrap();
    portkeep_testkit::sockets::connect(&client, &peer).unwrap();
    println!("\nhelper: {peer}");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

impl Drop for Setup {
    fn drop(&mut self) {
        if let Some(agent) = &mut self.agent {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        let _ = self.machine.portkeep(&["down"]);
    }
}

struct Server {
    child: Child,
    _out: BufReader<std::process::ChildStdout>,
}

impl Server {
    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

macro_rules! setup {
    ($name:literal) => {
        match kernel_or_skip(concat!("persist::", $name)) {
            true => Setup::new($name),
            false => return,
        }
    };
}

#[test]
#[ignore = "plays an outsider for the other tests"]
fn helper_binds() {
    machine::help();
}

#[track_caller]
fn fails(said: &Outcome, code: i32, shown: &str) {
    assert_eq!(said.code, Some(code), "{said:?}");
    assert!(said.err.contains(shown), "{shown}: {said:?}");
}

#[test]
fn a_reservation_is_added_listed_shown_enforced_and_deleted() {
    let mut setup = setup!("add");
    let added = setup.portkeep(&["persist", "add", "--name", "web", "--tcp", "8443", "--user", "daemon"]).ok();
    assert_eq!(added.out, "8443/tcp is reserved as web for user daemon\n");
    assert_eq!(setup.outsider_binds("tcp", 8443), "AddrInUse");
    let words = ["persist", "add", "--name", "rtp", "--any", "20", "--udp", "--align", "2", "--unit", "sip.service"];
    let rtp = setup.portkeep(&[&words[..], &["--strict", "--description", "media", "--json"]].concat()).ok().json();
    assert_eq!(rtp["transports"], "udp");
    assert_eq!(rtp["audience"], json!({"kind": "unit", "value": "sip.service"}));
    assert_eq!(
        (&rtp["strict"], &rtp["description"], &rtp["origin"]["until_reboot"]),
        (&json!(true), &json!("media"), &json!(false))
    );
    assert_eq!(rtp["token"].as_str().unwrap().len(), 16);
    setup
        .portkeep(&["persist", "add", "--name", "gone", "--both", "9000,9001", "--cgroup", "/x", "--until-reboot"])
        .ok();
    setup.portkeep(&["persist", "add", "--name", "admin", "--tcp", "9100"]).ok();

    let list = setup.portkeep(&["persist", "list"]).ok().out;
    let lines: Vec<Vec<&str>> =
        list.lines().map(|line| line.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect()).collect();
    let ports = rtp["ports"].as_str().unwrap();
    let expected = [
        vec!["NAME", "PORTS", "PROTO", "FOR", "STATE", "FROM"],
        vec!["web", "8443", "tcp", "user daemon", "in force", "`portkeep persist add`, by root"],
        vec![
            "gone",
            "9000-9001",
            "tcp+udp",
            "cgroup /x",
            "in force",
            "`portkeep persist add`, by root, until the next reboot",
        ],
        vec!["admin", "9100", "tcp", "administrators", "in force", "`portkeep persist add`, by root"],
        vec!["rtp", ports, "udp", "unit sip.service, strict", "in force", "`portkeep persist add`, by root"],
    ];
    assert_eq!(lines, expected);
    let declared = setup.declared();
    assert_eq!(declared[0]["name"], "web");
    assert_eq!(
        (&declared[0]["start"], &declared[0]["count"], &declared[0]["state"]),
        (&json!(8443), &json!(1), &json!("active"))
    );
    assert_eq!(declared[3]["token"], rtp["token"]);

    // The audience can bind, and everybody sees who it is.
    let server = setup.server_of("daemon", 8443);
    let show = setup.portkeep(&["persist", "show", "web"]).ok().out;
    let bound = format!("  bound by     pid {} (", server.pid());
    assert!(show.starts_with("web 8443/tcp\n  for          user daemon\n  state        in force\n"), "{show}");
    assert!(show.contains(&bound) && show.contains("  token        "), "{show}");
    let show = setup.portkeep(&["persist", "show", "web", "--json"]).ok().json();
    assert_eq!(show[0]["bound_by"][0]["process"]["pid"], server.pid());
    fails(&setup.portkeep(&["persist", "show", "nothing"]), 3, "there is no persistent reservation nothing");

    let list = setup.portkeep(&["list", "--json"]).ok().json();
    let web = list.as_array().unwrap().iter().find(|entry| entry["ports"] == "8443").unwrap().clone();
    assert_eq!(
        (&web["persistent"], &web["audience"], &web["name"]),
        (&json!(true), &json!({"kind": "user", "value": "daemon"}), &json!("web"))
    );
    assert_eq!((&web["bound"], &web["bound_by"][0]["process"]["pid"]), (&json!(1), &json!(server.pid())));
    let table = setup.portkeep(&["list"]).ok().out;
    let row = table.lines().find(|line| line.starts_with("8443")).unwrap();
    let shown = format!("  from `portkeep persist add`, by root; bound by pid {} (", server.pid());
    assert!(row.contains("  user daemon  ") && row.contains(&shown), "{row}");
    let who = setup.portkeep(&["who", "8443/tcp"]).ok().out;
    assert!(who.starts_with("8443/tcp is reserved for user daemon\n"), "{who}");
    assert!(
        who.contains("  name      web\n") && who.contains("  from      `portkeep persist add`, by root\n"),
        "{who}"
    );
    let status = setup.portkeep(&["status"]).ok().out;
    assert!(status.contains("; 4 persistent\n") && status.contains("refused       1 bind of outsiders\n"), "{status}");
    let status = setup.portkeep(&["status", "--json"]).ok().json();
    assert_eq!((&status["persistent"], &status["refused"]), (&json!(4), &json!(1)));

    // The same without an agent, out of the stores and kernel enforcement.
    fails(&setup.portkeep(&["release", "8443/tcp"]), 1, "use `portkeep persist delete web`");
    let with_agent = setup.declared();
    setup.stop();
    let without = setup.portkeep(&["persist", "list", "--json"]).ok();
    assert!(without.err.contains("no agent runs"), "{without:?}");
    assert_eq!(without.json(), with_agent);
    fails(&setup.portkeep(&["release", "8443/tcp"]), 1, "use `portkeep persist delete web`");
    let list = setup.portkeep(&["list", "--json"]).ok().json();
    let audience = |entry: &Value| (entry["audience"]["kind"].clone(), entry["audience"]["value"].clone());
    let audiences: Vec<_> = list.as_array().unwrap().iter().map(audience).collect();
    let expected = [("user", "daemon"), ("cgroup", "/x"), ("administrators", ""), ("unit", "sip.service")];
    let expected =
        expected.map(|(kind, value)| (json!(kind), if value.is_empty() { Value::Null } else { json!(value) }));
    assert_eq!(audiences, expected);
    for words in
        [&["persist", "delete", "web"][..], &["reload"], &["watch"], &["persist", "add", "--name", "x", "--tcp", "7"]]
    {
        fails(&setup.portkeep(words), 1, "the agent is not running");
    }
    fails(
        &setup.portkeep(&["persist", "add", "--name", "x", "--tcp", "7"]),
        1,
        "declare it in a file of /etc/portkeep",
    );
    let nobody = setup.portkeep_as_nobody(&["persist", "list"]).ok();
    assert!(nobody.err.contains("the store can only be read by root"), "{nobody:?}");
    fails(&setup.portkeep_as_nobody(&["persist", "export"]), 1, "the store cannot be read");
    let who = |setup: &Setup| setup.portkeep_as_nobody(&["who", ports]).ok();
    let hidden = "note: only root and the agent see the name of that service or cgroup";
    assert!(who(&setup).out.contains(" is reserved for a service or cgroup\n") && who(&setup).err.contains(hidden));
    setup.start();
    assert!(who(&setup).out.contains(" is reserved for unit sip.service\n") && !who(&setup).err.contains(hidden));

    let deleted = setup.portkeep(&["persist", "delete", "admin", "nothing"]);
    assert_eq!(deleted.out, "admin is deleted; it was 9100/tcp for administrators\n");
    fails(&deleted, 3, "there is no persistent reservation nothing");
    fails(
        &setup.portkeep(&["persist", "delete", "--udp", "9000-9001"]),
        3,
        "exactly 9000-9001/udp; gone is 9000-9001/tcp+udp",
    );
    let deleted = setup.portkeep(&["persist", "delete", "--both", "9000-9001", "--json"]).ok().json();
    assert_eq!(deleted[0]["name"], "gone");
    setup.portkeep(&["persist", "delete", "web", "rtp"]).ok();
    assert_eq!(setup.declared(), json!([]));
    drop(server);
    assert_eq!(setup.outsider_binds("tcp", 8443), "bound");
}

#[test]
fn impossible_requests_are_reported_with_the_process_in_the_way() {
    let setup = setup!("refused");
    setup.portkeep(&["persist", "add", "--name", "a", "--tcp", "8000-8009"]).ok();
    let add = |words: &[&str]| setup.portkeep(&[&["persist", "add"], words].concat());
    fails(&add(&["--name", "a", "--tcp", "9000"]), 1, "the name `a` is used by `portkeep persist add`, by root");
    fails(
        &add(&["--name", "b", "--tcp", "8009-8010"]),
        1,
        "8000-8009/tcp is reserved as `a` by `portkeep persist add`, by root",
    );
    fails(&add(&["--name", "b", "--tcp", "9000", "--user", "nobody-has-this-name"]), 1, "there is no user");
    let server = setup.server(9000);
    fails(&add(&["--name", "b", "--tcp", "9000"]), 1, &format!("pid {} (", server.pid()));
    fails(&add(&["--name", "b", "--any", "9999"]), 1, "9999 ports");
    fails(&setup.portkeep_as_nobody(&["persist", "add", "--name", "b", "--tcp", "9001"]), 1, "administrator");
    fails(&setup.portkeep_as_nobody(&["persist", "delete", "a"]), 1, "administrator");
    fails(&setup.portkeep_as_nobody(&["reload"]), 1, "administrator");
    fails(&setup.portkeep_as_nobody(&["watch"]), 1, "administrator");
    // Every user may look.
    assert_eq!(setup.portkeep_as_nobody(&["persist", "list", "--json"]).ok().json(), setup.declared());
    assert_eq!(setup.declared().as_array().unwrap().len(), 1);
}

/// A running service keeps its port when its reservation is deleted (R7), so the same reservation has to wait for its end.
#[test]
fn a_reservation_deleted_under_a_running_service_is_added_again_after_its_end() {
    let setup = setup!("again");
    let add = ["persist", "add", "--name", "a", "--tcp", "9000", "--user", "root"];
    setup.portkeep(&add).ok();
    let server = setup.server(9000);
    setup.portkeep(&["persist", "delete", "a"]).ok();
    let refused = setup.portkeep(&add);
    fails(&refused, 1, &format!("9000/tcp is in use by pid {}", server.pid()));
    fails(&refused, 1, "Stop that process, reserve the ports, and start it again. `portkeep persist set`");
    // A file waits, and comes into force by itself.
    setup.file("etc/portkeep/ports.d/a.toml", "[[reservation]]\nname = \"a\"\ntcp = 9000\nuser = \"root\"\n");
    setup.portkeep(&["reload"]).ok();
    assert_eq!(setup.declared()[0]["state"], "waiting");
    drop(server);
    eventually(|| setup.declared()[0]["state"] == "active");
}

/// Where something waits, every display shows it, and what it waits for: the process, and the other end of a connection.
#[test]
fn a_waiting_reservation_is_shown_with_its_reason() {
    let setup = setup!("waits");
    let helper = ["--exact", "helper_connects", "--ignored", "--nocapture"];
    let copy = setup.for_everybody(std::env::current_exe().unwrap().to_str().unwrap());
    let mut command = setup.program(&[&[copy.as_str()], &helper[..]].concat());
    command.env(CONNECT, "8443").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let peer =
        out.by_ref().lines().map_while(Result::ok).find_map(|line| Some(line.strip_prefix("helper: ")?.to_owned()));
    let client = Server { child, _out: out };
    let (peer, pid) = (peer.expect("the client is connected"), client.pid());

    setup
        .file("etc/portkeep/ports.d/web.toml", "[[reservation]]\nname = \"web\"\ntcp = 8443\nunit = \"web.service\"\n");
    let reload = setup.portkeep(&["reload"]).ok().out;
    assert!(reload.starts_with("reloaded: 0 added, 0 changed, 0 removed; 1 not in force"), "{reload}");
    let declared = setup.declared();
    let why = declared[0]["reason"].as_str().unwrap().to_owned();
    assert!(why.starts_with(&format!("8443/tcp is in use by pid {pid} (")), "{why}");
    assert!(why.ends_with(&format!("): connected, 127.0.0.1:8443 to {peer}")), "{why}");
    assert_eq!(declared[0]["state"], "waiting");
    let socket = &declared[0]["waits_for"][0];
    assert_eq!(
        (&socket["process"]["pid"], &socket["peer"], &socket["port"]),
        (&json!(pid), &json!(peer), &json!(8443))
    );

    let list = setup.portkeep(&["persist", "list"]).ok().out;
    let lines: Vec<&str> = list.lines().collect();
    assert!(lines[1].starts_with("web ") && lines[1].contains(" waits "), "{list}");
    assert_eq!(lines[2], format!("    {why}"));
    let sentence = format!("web, 8443/tcp for unit web.service, is not in force: {why}");
    let status = setup.portkeep(&["status"]).ok().out;
    assert!(status.lines().any(|line| line.starts_with("waits ") && line.ends_with(&sentence)), "{status}");
    assert_eq!(setup.portkeep(&["status", "--json"]).ok().json()["waiting"][0]["reason"], why);
    // A declaration that is not in force is no reservation: the list does not contain it, but a message names it.
    let list = setup.portkeep(&["list"]).ok();
    assert!(!list.out.contains("8443") && list.err.contains(&sentence), "{list:?}");
    let list = setup.portkeep(&["list", "--json"]).ok();
    assert_eq!(list.json(), json!([]));
    assert!(list.err.contains(&sentence), "{list:?}");
    let who = setup.portkeep(&["who", "8443/tcp"]).ok().out;
    assert!(who.contains(&format!("  used by   pid {pid}")) && who.contains(&sentence), "{who}");
    assert_eq!(setup.portkeep(&["who", "8443/tcp", "--json"]).ok().json()[0]["waiting"][0]["reason"], why);
}

/// Set for the process that plays an agent in the middle of a check: the folder of the pins.
const CHECK: &str = "PORTKEEP_TEST_CHECK";

/// Started by the other tests in the place of an agent that ends in the middle of a check.
#[test]
#[ignore = "plays an agent for the other tests"]
fn helper_checks() {
    let Ok(pins) = std::env::var(CHECK) else { return };
    let instance = Instance::open(Path::new(&pins)).unwrap();
    let wanted = Wanted {
        start: 8443,
        count: 1,
        align: Align::ANY,
        transports: Transports::Tcp,
        audience: Audience::User(1000),
        strict: false,
        ephemeral: false,
        label: "web".into(),
    };
    let here = netns::current_cookie().unwrap();
    let claimed = Claimed::claim(&instance.admin().unwrap(), &mut instance.maps().unwrap(), here, &[wanted]).unwrap();
    println!("\n{THERE} {:?}", claimed.blocks());
}

/// The agent tries a waiting declaration again and again. While it checks the ports, they are not reserved, and no
/// display shows a reservation.
#[test]
fn a_declaration_that_is_being_checked_is_no_reservation() {
    let mut setup = setup!("checked");
    setup.stop();
    let helper = std::env::current_exe().unwrap();
    let helper = [helper.to_str().unwrap(), "--exact", "helper_checks", "--ignored", "--nocapture"];
    let output = setup.program(&helper).env(CHECK, setup.pins()).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains(THERE), "{output:?}");

    assert_eq!(setup.portkeep(&["list", "--json"]).ok().json(), json!([]));
    assert_eq!(setup.portkeep_as_nobody(&["list", "--json"]).ok().json(), json!([]));
    let who = setup.portkeep_as_nobody(&["who", "8443/tcp"]);
    assert_eq!((who.code, who.out.as_str()), (Some(3), "8443/tcp is free\n"), "{who:?}");
    assert_eq!(setup.outsider_binds("tcp", 8443), "bound");
    // The next agent removes what the last one left behind.
    setup.start();
    setup.portkeep(&["run", "--ports", "8443", "--", "true"]).ok();
}

/// The service manager starts what comes after the agent as soon as the agent is ready. By then every declaration is in
/// force, however many there are.
#[test]
fn the_agent_is_ready_when_what_is_declared_is_in_force() {
    let mut setup = setup!("ready");
    setup.stop();
    const MANY: usize = 3000;
    let stanza = |port| format!("[[reservation]]\nname = \"web{port}\"\ntcp = {port}\nuser = 65533\n");
    setup.file("etc/portkeep/ports.d/many.toml", &(20000..20000 + MANY).map(stanza).collect::<String>());
    let path = setup.folder.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let mut said = {
        let mut buffer = [0; 1024];
        manager.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
        move || {
            let length = manager.recv(&mut buffer).expect("the agent reports to the service manager");
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        }
    };
    let log = fs::File::create(setup.folder.path().join("agent.log")).unwrap();
    setup.agent = Some(setup.command(&["agent"]).env("NOTIFY_SOCKET", &path).stderr(log).spawn().unwrap());
    let pid = Pid::from_child(setup.agent.as_ref().unwrap());
    assert!(said().lines().any(|line| line == "READY=1"));
    // From now on it does nothing.
    kill_process(pid, Signal::STOP).unwrap();
    let in_force = setup.portkeep(&["list", "--json"]).ok().json();
    assert_eq!(in_force.as_array().unwrap().len(), MANY);
    assert_eq!(setup.outsider_binds("tcp", 20000 + MANY as u16 - 1), "AddrInUse");
    kill_process(pid, Signal::CONT).unwrap();

    // The same for a reload: what has been added is in force when the agent is ready again.
    setup.file("etc/portkeep/ports.d/more.toml", &stanza(30000));
    kill_process(pid, Signal::HUP).unwrap();
    let reloading = said();
    assert!(reloading.contains("RELOADING=1") && reloading.contains("MONOTONIC_USEC="), "{reloading}");
    assert_eq!(said().trim_end(), "READY=1");
    assert_eq!(setup.outsider_binds("tcp", 30000), "AddrInUse");
    setup.stop();
    assert_eq!(said().trim_end(), "STOPPING=1");
}

#[test]
fn an_export_is_imported_whole_or_not_at_all() {
    let setup = setup!("import");
    setup.portkeep(&["persist", "add", "--name", "a", "--tcp", "8000", "--user", "daemon"]).ok();
    setup.portkeep(&["persist", "add", "--name", "b", "--udp", "8000-8003", "--group", "daemon", "--strict"]).ok();
    setup.portkeep(&["persist", "add", "--name", "c", "--tcp", "8100", "--until-reboot"]).ok();
    let export = setup.portkeep(&["persist", "export"]).ok().out;
    let expected = "
[[reservation]]
name = \"a\"
tcp = 8000
user = \"daemon\"

[[reservation]]
name = \"b\"
udp = \"8000-8003\"
group = \"daemon\"
strict = true
";
    assert!(export.ends_with(expected), "{export}");
    let file = setup.folder.path().join("export.toml");
    let file = file.to_str().unwrap();
    setup.portkeep(&["persist", "export", file]).ok();
    assert_eq!(fs::read_to_string(file).unwrap(), export);

    setup.portkeep(&["persist", "delete", "b", "c"]).ok();
    let imported = setup.portkeep(&["persist", "import", file]).ok();
    assert_eq!(imported.out, "created: b 8000-8003/udp for group daemon\nthere already: a 8000/tcp for user daemon\n");
    let again = setup.portkeep(&["persist", "import", file, "--json"]).ok().json();
    assert_eq!((again["created"].as_array().unwrap().len(), again["there_already"].as_array().unwrap().len()), (0, 2));

    let import = |text: &str| {
        let mut child = setup.command(&["persist", "import", "-"]);
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        Outcome::from(child.wait_with_output().unwrap())
    };
    let first = "[[reservation]]\nname = \"d\"\ntcp = 8200\n";
    let mistake = import(&format!("{first}[[reservation]]\nname = \"e\"\ntcp = 0\n"));
    fails(&mistake, 1, "standard input:6:7: port 0 means");
    let taken = import(&format!("{first}[[reservation]]\nname = \"a\"\ntcp = 8201\n"));
    fails(&taken, 1, "the name `a` is used by `portkeep persist add`, by root; --replace changes it");
    let overlaps = import(&format!("{first}[[reservation]]\nname = \"e\"\nboth = \"8003-8004\"\n"));
    fails(&overlaps, 1, "8003-8004/tcp+udp of `e` is reserved as `b` (8000-8003/udp)");
    // Before the import nothing shows that another process has this port bound.
    let server = setup.server(8201);
    let in_use = import(&format!("{first}[[reservation]]\nname = \"e\"\ntcp = 8201\n"));
    fails(&in_use, 1, "nothing was imported: e 8201/tcp: ");
    fails(&in_use, 1, &format!("pid {} (", server.pid()));
    let names: Vec<Value> = setup.declared().as_array().unwrap().iter().map(|entry| entry["name"].clone()).collect();
    assert_eq!(names, [json!("a"), json!("b")]);
    fails(&setup.portkeep(&["persist", "import", "/no/such/file"]), 1, "/no/such/file");
}

#[test]
fn one_reservation_is_for_several() {
    let setup = setup!("several");
    let add = ["persist", "add", "8443", "--name", "web", "--unit", "nginx.service", "--unit", "certbot.service"];
    let added = setup.portkeep(&[&add[..], &["--user", "daemon"]].concat()).ok();
    let three = "user daemon, unit certbot.service, unit nginx.service";
    assert_eq!(added.out, format!("8443/tcp is reserved as web for {three}\n"));
    let binds = || {
        let units = ["nginx.service", "certbot.service", "apache2.service"];
        (units.map(|unit| setup.unit_binds(unit, 8443)), setup.outsider_binds("tcp", 8443))
    };
    let bound = || "bound".to_owned();
    let refused = || "AddrInUse".to_owned();
    assert_eq!(binds(), ([bound(), bound(), refused()], refused()));
    drop(setup.server_of("daemon", 8443));

    let audience = json!({"kind": "several", "value": [
        {"kind": "user", "value": "daemon"},
        {"kind": "unit", "value": "certbot.service"},
        {"kind": "unit", "value": "nginx.service"},
    ]});
    let list = setup.portkeep(&["persist", "list"]).ok().out;
    assert!(list.contains(&format!("  {three}  ")), "{list}");
    let show = setup.portkeep(&["persist", "show", "web"]).ok().out;
    assert!(show.starts_with(&format!("web 8443/tcp\n  for          {three}\n")), "{show}");
    let declared = setup.declared();
    assert_eq!(declared[0]["audience"], audience);
    assert_eq!(setup.portkeep(&["list", "--json"]).ok().json()[0]["audience"], audience);

    let export = setup.portkeep(&["persist", "export"]).ok().out;
    let names = "user = \"daemon\"\nunit = [\"certbot.service\", \"nginx.service\"]\n";
    assert!(export.ends_with(names), "{export}");
    let file = setup.file("export.toml", &export);
    setup.portkeep(&["persist", "delete", "web"]).ok();
    assert_eq!(setup.outsider_binds("tcp", 8443), "bound");
    let imported = setup.portkeep(&["persist", "import", file.to_str().unwrap()]).ok();
    assert_eq!(imported.out, format!("created: web 8443/tcp for {three}\n"));
    assert_eq!(binds(), ([bound(), bound(), refused()], refused()));
    assert_eq!(setup.declared()[0]["audience"], audience);

    let words =
        |more: &[&'static str]| [&["persist", "add", "81", "--name", "x", "--unit", "a.service"], more].concat();
    fails(&setup.portkeep(&words(&["--unit", "a.service"])), 2, "unit a.service is named twice");
    fails(&setup.portkeep(&words(&["--cgroup", "/a"])), 2, "cannot be used with");
    fails(&setup.portkeep(&words(&["--user", "1", "--user", "2", "--group", "1", "--group", "2"])), 2, "at most 4");
    fails(&setup.portkeep(&words(&["--user", "1", "--ephemeral"])), 2, "is for one user, group, unit or cgroup");
}

/// Set for the process that binds again and again: the port.
const HAMMER: &str = "PORTKEEP_TEST_HAMMER";

/// Started by the other tests as an outsider that does not give up. Says how often it had the port, and how often not.
#[test]
#[ignore = "plays an outsider for the other tests"]
fn helper_hammers() {
    let Ok(port) = std::env::var(HAMMER) else { return };
    let port: u16 = port.parse().unwrap();
    let done = std::thread::spawn(|| std::io::stdin().read_to_end(&mut Vec::new()));
    println!("\n{THERE}");
    let (mut bound, mut refused) = (0, 0);
    while !done.is_finished() {
        match std::net::UdpSocket::bind(("0.0.0.0", port)) {
            Ok(_) => bound += 1,
            Err(_) => refused += 1,
        }
    }
    println!("\nhelper: {bound} {}", refused > 100);
}

#[test]
fn a_reservation_is_renamed_and_changed_without_a_gap() {
    let mut setup = setup!("set");
    let persist = |words: &[&str]| setup.portkeep(&[&["persist"], words].concat());
    persist(&["add", "--name", "web", "--both", "8443", "--user", "daemon"]).ok();
    persist(&["add", "--name", "other", "--tcp", "8600-8609", "--user", "daemon"]).ok();
    let token = setup.declared()[0]["token"].clone();
    let server = setup.server_of("daemon", 8443);

    let copy = setup.for_everybody(std::env::current_exe().unwrap().to_str().unwrap());
    let nobody = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups", &copy];
    let mut hammer = setup.program(&[&nobody[..], &["--exact", "helper_hammers", "--ignored", "--nocapture"]].concat());
    let mut hammer = hammer.env(HAMMER, "8443").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(hammer.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(said.any(|line| line.ends_with(THERE)));

    let renamed = persist(&["rename", "web", "shop"]).ok();
    assert_eq!(renamed.out, "web is shop now: 8443/tcp+udp for user daemon\n");
    for _ in 0..10 {
        let set = persist(&["set", "shop", "--group", "daemon", "--description", "the shop"]).ok();
        assert_eq!(set.out, "8443/tcp+udp is reserved as shop for group daemon\n");
        persist(&["set", "shop", "--unit", "shop.service", "--strict", "true"]).ok();
        persist(&["set", "shop", "--user", "daemon", "--strict", "false", "--description", ""]).ok();
    }
    let changed = persist(&["set", "shop", "--cgroup", "/shops", "--json"]).ok().json();
    assert_eq!(changed["audience"], json!({"kind": "cgroup", "value": "/shops"}));
    assert_eq!(
        (&changed["token"], &changed["state"], &changed["description"]),
        (&token, &json!("active"), &Value::Null)
    );
    persist(&["set", "shop", "--user", "daemon"]).ok();
    drop(hammer.stdin.take());
    assert_eq!(said.find_map(|line| Some(line.strip_prefix("helper: ")?.to_owned())).unwrap(), "0 true");
    assert!(hammer.wait().unwrap().success());

    // New ports are in force before the former ones are free. A change that is not possible leaves everything as it
    // was.
    let before = setup.declared();
    assert_eq!(before[0]["token"], token);
    let busy = setup.server(9000);
    fails(&persist(&["set", "shop", "--tcp", "9000"]), 1, &format!("pid {} (", busy.pid()));
    fails(&persist(&["set", "shop", "--tcp", "8609-8610"]), 1, "8600-8609/tcp is reserved as `other`");
    fails(
        &persist(&["set", "shop", "--tcp", "8443-8444"]),
        1,
        "8443-8444/tcp overlaps 8443/tcp+udp, which `shop` has now",
    );
    fails(&persist(&["set", "shop", "--user", "nobody-has-this-name"]), 1, "there is no user");
    fails(&persist(&["set", "shop", "--strict", "true", "--ephemeral", "true"]), 1, "a private ephemeral range");
    fails(&persist(&["rename", "shop", "other"]), 1, "the name `other` is used by `portkeep persist add`, by root");
    fails(&persist(&["rename", "nothing", "something"]), 3, "there is no persistent reservation nothing");
    fails(&persist(&["set", "nothing", "--user", "daemon"]), 3, "there is no persistent reservation nothing");
    fails(&persist(&["set", "shop"]), 2, "required");
    let as_nobody = setup.portkeep_as_nobody(&["persist", "rename", "shop", "mine"]);
    fails(&as_nobody, 1, "administrator");
    assert_eq!(setup.declared(), before);
    assert_eq!(setup.outsider_binds("udp", 8443), "AddrInUse");

    let moved = persist(&["set", "shop", "--tcp", "8500"]).ok();
    assert_eq!(moved.out, "8500/tcp is reserved as shop for user daemon\n");
    assert_eq!((&*setup.outsider_binds("tcp", 8500), &*setup.outsider_binds("udp", 8443)), ("AddrInUse", "bound"));
    drop(server);

    // It is all in the store.
    let with_agent = setup.declared();
    setup.stop();
    setup.start();
    assert_eq!(setup.declared(), with_agent);
    assert_eq!(with_agent[0]["ports"], "8500");

    // A declaration that it was in conflict with comes into force, and one of a file is changed in the file.
    let file = "[[reservation]]\nname = \"of-a-file\"\ntcp = 8500\nuser = \"daemon\"\n";
    let file = setup.file("etc/portkeep/ports.d/f.toml", file);
    setup.portkeep(&["reload"]).ok();
    setup.portkeep(&["persist", "set", "shop", "--tcp", "8510"]).ok();
    let states: Vec<Value> = setup.declared().as_array().unwrap().iter().map(|one| one["state"].clone()).collect();
    assert_eq!(states, ["active", "active", "active"]);
    fails(&setup.portkeep(&["persist", "rename", "of-a-file", "x"]), 1, file.to_str().unwrap());
}

/// Blocks that are in both lists stay in force, with their tokens. A server on one of them keeps running.
#[test]
fn l2_blocks_are_added_to_a_reservation_and_taken_from_it() {
    let mut setup = setup!("set-list");
    let set = |setup: &Setup, ports: &str| setup.portkeep(&["persist", "set", "web", "--tcp", ports]);
    let first_token = |setup: &Setup| setup.declared()[0]["blocks"][0]["token"].clone();
    setup.portkeep(&["persist", "add", "--name", "web", "--tcp", "80", "--user", "daemon"]).ok();
    let token = first_token(&setup);
    let server = setup.server_of("daemon", 80);
    assert_eq!(set(&setup, "80,443").ok().out, "80,443/tcp is reserved as web for user daemon\n");
    assert_eq!(first_token(&setup), token);
    // One reservation in all listings, and after a new start of the agent.
    let in_force = setup.portkeep(&["list", "--json"]).ok().json();
    assert_eq!((in_force.as_array().unwrap().len(), &in_force[0]["ports"]), (1, &json!("80,443")));
    assert_eq!((&*setup.outsider_binds("tcp", 80), &*setup.outsider_binds("tcp", 443)), ("AddrInUse", "AddrInUse"));
    setup.stop();
    setup.start();
    assert_eq!(first_token(&setup), token);

    let busy = setup.server(8080);
    fails(&set(&setup, "80,8080"), 1, &format!("pid {} (", busy.pid()));
    fails(&set(&setup, "80-81,443"), 1, "80-81/tcp overlaps 80,443/tcp, which `web` has now");
    assert_eq!(setup.declared()[0]["ports"], "80,443");
    set(&setup, "80,8081-8082").ok();
    assert_eq!((&*setup.outsider_binds("tcp", 443), &*setup.outsider_binds("tcp", 8082)), ("bound", "AddrInUse"));
    assert_eq!(set(&setup, "80").ok().out, "80/tcp is reserved as web for user daemon\n");
    let declared = setup.declared();
    assert_eq!(
        (&declared[0]["token"], &declared[0]["ports"], &declared[0]["state"]),
        (&token, &json!("80"), &json!("active"))
    );
    assert_eq!(setup.outsider_binds("tcp", 8082), "bound");

    // A change of the file has the same effect, and the server keeps running.
    setup.portkeep(&["persist", "delete", "web"]).ok();
    drop(server);
    let file = |ports: &str| {
        let text = format!("[[reservation]]\nname = \"web\"\ntcp = [{ports}]\nuser = \"daemon\"\n");
        setup.file("etc/portkeep/ports.d/web.toml", &text);
        setup.portkeep(&["reload"]).ok().out
    };
    assert_eq!(file("80"), "reloaded: 1 added, 0 changed, 0 removed; 0 not in force\n");
    let token = first_token(&setup);
    let _server = setup.server_of("daemon", 80);
    assert_eq!(file("80, 443"), "reloaded: 0 added, 1 changed, 0 removed; 0 not in force\n");
    assert_eq!((first_token(&setup), &*setup.outsider_binds("tcp", 443)), (token, "AddrInUse"));
}

/// An audience has only one private ephemeral range: the new block becomes the range when the former block no longer
/// is.
#[test]
fn a_private_ephemeral_range_moves() {
    let setup = setup!("set-range");
    let persist = |words: &[&str]| setup.portkeep(&[&["persist"], words].concat());
    persist(&["add", "--name", "passive", "--tcp", "20000-20009", "--user", "daemon", "--ephemeral"]).ok();
    persist(&["add", "--name", "plain", "--tcp", "20100-20109", "--user", "daemon"]).ok();
    let moved = persist(&["set", "passive", "--tcp", "20200-20209"]).ok();
    assert_eq!(moved.out, "20200-20209/tcp is reserved as passive for user daemon, ephemeral\n");
    let before = setup.declared();
    fails(&persist(&["set", "plain", "--ephemeral", "true"]), 1, "has a private ephemeral range");
    assert_eq!(setup.declared(), before);
    let in_force = setup.portkeep(&["list", "--json"]).ok().json();
    let ranges: Vec<_> = in_force.as_array().unwrap().iter().filter(|one| one["ephemeral"] == true).collect();
    assert_eq!((ranges.len(), &ranges[0]["ports"]), (1, &json!("20200-20209")));
    persist(&["set", "passive", "--ephemeral", "false"]).ok();
    persist(&["set", "plain", "--ephemeral", "true"]).ok();
}

#[test]
fn units_get_their_ports_as_variables() {
    let setup = setup!("env");
    let file = setup.folder.path().join("my-app.env");
    let path = file.to_str().unwrap();
    let add = ["persist", "add", "--name", "my-app", "--any", "3", "--both", "--user", "daemon", "--env-file", path];
    let added = setup.portkeep(&add).ok();
    let info = &setup.declared()[0];
    let start = info["start"].as_u64().unwrap();
    assert_eq!(
        added.out,
        format!("{start}-{}/tcp+udp is reserved as my-app for user daemon: start {start}, count 3\n", start + 2)
    );
    let [p0, p1, p2] = [start, start + 1, start + 2];
    let expected = format!(
        "PORT={p0}\nPORTS={p0},{p1},{p2}\nPORT0={p0}\nPORT1={p1}\nPORT2={p2}\nMY_APP_PORT={p0}\nPORT_LAST={p2}\n"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), expected);
    assert_eq!(setup.portkeep(&["persist", "show", "my-app", "--env"]).ok().out, expected);
    // The example uses only variables that exist.
    let example = include_str!("../../../packaging/examples/relay.service");
    let used: Vec<&str> = example.split("${").skip(1).filter_map(|rest| Some(rest.split_once('}')?.0)).collect();
    assert!(!used.is_empty() && used.iter().all(|name| expected.contains(&format!("\n{name}=")) || *name == "PORT"));
    fails(&setup.portkeep(&["persist", "show", "nothing", "--env"]), 3, "there is no persistent reservation nothing");
    let nowhere = ["persist", "add", "--name", "b", "--tcp", "9300", "--strict", "--env-file", "/no/such/folder/b.env"];
    fails(&setup.portkeep(&nowhere), 1, "nothing is reserved: /no/such/folder/b.env cannot be written");
    fails(&setup.portkeep(&["persist", "show", "b"]), 3, "there is no persistent reservation b");
}

/// The mistakes that have locked services out: the message has the remedy.
#[test]
fn classic_mistakes_are_answered_with_the_remedy() {
    let setup = setup!("mistakes");
    let add = |words: &[&str]| setup.portkeep(&[&["persist", "add"], words].concat());
    // It is reserved for administrators, and any process of root can bind it.
    let open = add(&["--name", "a", "--tcp", "8000"]).ok();
    assert!(open.err.contains("note: processes of root may bind these ports by number; with --strict"), "{open:?}");
    assert_eq!(add(&["--name", "b", "--tcp", "8001", "--strict"]).ok().err, "");
    // The service runs already.
    let server = setup.server(9000);
    fails(&add(&["--name", "c", "--tcp", "9000"]), 1, "if the reservation is for this process, add --around");
    fails(&add(&["--name", "c", "--tcp", "9000", "--user", "root"]), 1, "add --around");
    // It binds as root, and changes its user afterwards.
    let wrong = add(&["--name", "c", "--tcp", "9000", "--user", "www-data"]);
    fails(&wrong, 1, "the reservation is for user www-data, and this process is not");
    assert!(!wrong.err.contains("--around"), "{wrong:?}");
    let waits = "[[reservation]]\nname = \"d\"\ntcp = 9000\nuser = \"root\"\n";
    setup.file("etc/portkeep/ports.d/d.toml", waits);
    setup.portkeep(&["reload"]).ok();
    let list = setup.portkeep(&["persist", "list"]).ok().out;
    assert!(list.contains("the reservation is for this process: add `around = true`"), "{list}");
    drop(server);
}

#[test]
fn another_system_has_declarations_of_its_own() {
    let mut setup = setup!("root");
    setup.portkeep(&["persist", "add", "8000", "--name", "a", "--user", "daemon"]).ok();
    setup.portkeep(&["persist", "add", "8001", "--name", "b", "--user", "daemon", "--until-reboot"]).ok();
    let text = "[[reservation]]\nname = \"other\"\ntcp = 8100\nuser = \"daemon\"\n";
    setup.file("other/etc/portkeep/ports.d/other.toml", text);
    let other = setup.folder.path().join("root/other");
    let list = setup.portkeep(&["persist", "list", "--root", other.to_str().unwrap(), "--json"]).ok().json();
    assert_eq!(
        (list.as_array().unwrap().len(), &list[0]["name"], &list[0]["state"]),
        (1, &json!("other"), &json!("waiting"))
    );
    for command in [&["persist", "list"][..], &["check"]] {
        let said = setup.portkeep(&[command, &["--root", "/nonexistent"]].concat());
        fails(&said, 1, "there is no folder /nonexistent; correct --root");
    }
    // The folder that the environment names is used unchanged, even if the configuration names the same.
    let text = format!("state_dir = {:?}\n", setup.folder.path().join("state"));
    setup.file("etc/portkeep/portkeep.toml", &text);
    setup.stop();
    let list = setup.portkeep(&["persist", "list", "--json"]).ok().json();
    assert_eq!(list.as_array().unwrap().iter().map(|each| &each["name"]).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn an_add_is_tried_without_effect() {
    let setup = setup!("dry_run");
    let server = setup.server(9000);
    let add = |words: &[&str]| setup.portkeep(&[&["persist", "add", "--user", "root"], words].concat());
    let tried = |words: &[&str]| add(&[&["--dry-run"], words].concat());
    for _ in 0..2 {
        assert_eq!(tried(&["80,443", "--name", "a"]).ok().out, "would create: a 80,443/tcp for user root\n");
    }
    add(&["-p", "8000-8009", "--name", "a"]).ok();
    fails(&tried(&["80", "--name", "a"]), 1, "the name `a` is used by `portkeep persist add`, by root");
    fails(&tried(&["8005", "--name", "b"]), 1, "8005/tcp of `b` is reserved as `a` (8000-8009/tcp)");
    fails(&tried(&["9000", "--name", "b"]), 1, "if the reservation is for this process, add --around");
    tried(&["9000", "--name", "b", "--around"]).ok();
    fails(&tried(&["32768-60999", "--name", "b"]), 1, "b: this would leave 0 of the ");
    tried(&["32768-60999", "--name", "b", "--force"]).ok();
    assert_eq!(setup.declared().as_array().unwrap().len(), 1);
    drop(server);
}

#[test]
fn an_import_replaces_and_leaves_running_services_alone() {
    let setup = setup!("replace");
    setup.portkeep(&["persist", "add", "--name", "a", "--tcp", "8000", "--user", "daemon"]).ok();
    setup.portkeep(&["persist", "add", "--name", "b", "--tcp", "8100", "--user", "daemon"]).ok();
    let token = setup.declared()[0]["token"].clone();
    let server = setup.server_of("daemon", 8200);
    let import = |words: &[&str], text: &str| {
        let mut child = setup.command(&[&["persist", "import"], words, &["-"]].concat());
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        Outcome::from(child.wait_with_output().unwrap())
    };
    let text = "[[reservation]]\nname = \"a\"\ntcp = 8000\ngroup = \"daemon\"\n\n\
                [[reservation]]\nname = \"b\"\ntcp = 8101\nuser = \"daemon\"\n\n\
                [[reservation]]\nname = \"c\"\ntcp = 8200\nuser = \"daemon\"\n";
    let before = setup.declared();
    fails(
        &import(&["--dry-run"], text),
        1,
        "the name `a` is used by `portkeep persist add`, by root; --replace changes it",
    );
    let busy = import(&["--dry-run", "--replace"], text);
    fails(&busy, 1, &format!("8200/tcp is in use by pid {} (", server.pid()));
    fails(&busy, 1, "add --around\nnote: nothing would be imported");
    let shown = import(&["--dry-run", "--replace", "--around"], text).ok();
    let expected = "would change: a 8000/tcp for group daemon\nwould change: b 8101/tcp for user daemon\n\
                    would create: c 8200/tcp for user daemon\n";
    assert_eq!(shown.out, expected);
    // The third cannot be reserved, so the first two are what they were.
    fails(&import(&["--replace"], text), 1, "nothing was imported: c 8200/tcp: ");
    assert_eq!(setup.declared()[0], before[0]);
    assert_eq!((&setup.declared()[1]["ports"], setup.declared().as_array().unwrap().len()), (&json!("8100"), 2));

    let done = import(&["--replace", "--around"], text).ok();
    let expected = "created: c 8200/tcp for user daemon\nchanged: a 8000/tcp for group daemon\n\
                    changed: b 8101/tcp for user daemon\n";
    assert_eq!(done.out, expected);
    assert_eq!(setup.declared()[0]["token"], token);
    // All are there now, whether `around` is named again or not.
    for words in [&["--around"][..], &[], &["--replace"]] {
        let again = import(words, text).ok().out;
        assert_eq!(again.lines().filter(|line| line.starts_with("there already: ")).count(), 3, "{again}");
    }
    // If the file asks for it, it is a change.
    setup.portkeep(&["persist", "add", "--name", "d", "--tcp", "8300", "--user", "daemon"]).ok();
    let around = "[[reservation]]\nname = \"d\"\ntcp = 8300\nuser = \"daemon\"\naround = true\n";
    fails(&import(&[], around), 1, "the name `d` is used by");
    assert_eq!(import(&["--replace"], around).ok().out, "changed: d 8300/tcp for user daemon\n");
    assert_eq!(import(&[], around).ok().out, "there already: d 8300/tcp for user daemon\n");
    drop(server);
}

#[test]
fn a_dry_run_refuses_as_the_command_does() {
    let setup = setup!("rehearse");
    setup.portkeep(&["persist", "add", "80-81,8443", "--name", "web", "--user", "daemon"]).ok();
    setup.portkeep(&["persist", "add", "9100-9109", "--name", "range", "--group", "daemon", "--ephemeral"]).ok();
    let (web, other) = (setup.server_of("daemon", 8443), setup.server_of("daemon", 8200));
    let import = |words: &[&str], text: &str| {
        let mut child = setup.command(&[&["persist", "import"], words, &["-"]].concat());
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        Outcome::from(child.wait_with_output().unwrap())
    };
    let file =
        |name: &str, tcp: &str, rest: &str| format!("[[reservation]]\nname = \"{name}\"\ntcp = \"{tcp}\"\n{rest}\n");
    for (words, text, why) in [
        (&["--replace"][..], file("web", "80,81,8443,8444", "user = \"daemon\""), "only whole blocks can stay"),
        (
            &["--around"],
            file("new", "8200", "user = \"backup\""),
            "the reservation is for user backup, and this process is not",
        ),
        (&[], file("new", "8300", "user = \"no-such-user\""), "there is no user"),
        (&[], file("new", "9200-9209", "group = \"daemon\"\nephemeral = true"), "private ephemeral range"),
    ] {
        fails(&import(&[words, &["--dry-run"]].concat(), &text), 1, why);
        fails(&import(words, &text), 1, why);
    }
    let add = ["persist", "add", "8200", "--name", "new", "--user", "backup", "--around"];
    for dry_run in [&["--dry-run"][..], &[]] {
        fails(
            &setup.portkeep(&[&add, dry_run].concat()),
            1,
            "the reservation is for user backup, and this process is not",
        );
    }
    // Blocks that stay may be in use.
    let more = file("web", "80-81,8443,8445", "user = \"daemon\"");
    import(&["--replace", "--dry-run"], &more).ok();
    import(&["--replace"], &more).ok();
    drop((web, other));
}

#[test]
fn an_audience_that_may_be_wrong_is_reported() {
    let setup = setup!("guards");
    let add = |words: &[&str]| setup.portkeep(&[&["persist", "add", "--name", "a"], words].concat()).ok().err;
    let drop_in = |words: &str| {
        let file = setup.file("b.toml", &format!("[[reservation]]\nname = \"b\"\ntcp = 8300\n{words}\n"));
        // Users and cgroups of this system, not of the one of the test.
        let mut check = setup.command(&["check", file.to_str().unwrap()]);
        Outcome::from(check.env_remove("PORTKEEP_ROOT").output().unwrap()).ok().out
    };
    for (option, key, expected) in [
        (&["--cgroup", "/no/such"][..], "cgroup = \"/no/such\"", "warning: there is no cgroup /no/such"),
        (&["--user", "99999"], "user = 99999", "warning: there is no user 99999"),
        (&["--group", "99999"], "group = 99999", "warning: there is no group 99999"),
        (
            &["--user", "www-data"],
            "user = \"www-data\"",
            "note: a server that binds as root before it becomes www-data",
        ),
        (&[], "", "note: processes of root may bind these ports by number"),
    ] {
        let (added, checked) = (add(&[&["8200"], option].concat()), drop_in(key));
        assert!(added.contains(expected), "{option:?}: {added}");
        assert!(checked.contains(expected), "{key}: {checked}");
        setup.portkeep(&["persist", "delete", "a"]).ok();
    }
    for (option, key) in [
        (&["--user", "root"][..], "user = \"root\""),
        (&["--user", "daemon", "--user", "root"], "user = [\"daemon\", \"root\"]"),
        (&["--strict"], "strict = true"),
        (&["--group", "daemon"], "group = \"daemon\""),
    ] {
        assert_eq!(add(&[&["8200"], option].concat()), "", "{option:?}");
        assert!(drop_in(key).ends_with("1 file with 1 reservation: nothing wrong\n"), "{key}");
        setup.portkeep(&["persist", "delete", "a"]).ok();
    }
    let run = setup.portkeep(&["run", "--also", "unit=no-such.service", "--", "true"]).ok();
    let has_units = Path::new("/usr/lib/systemd/system").is_dir() || Path::new("/lib/systemd/system").is_dir();
    assert_eq!(run.err.contains("there is no unit no-such.service"), has_units, "{run:?}");
}

#[test]
fn ports_are_set_as_they_are_added() {
    let setup = setup!("set_ports");
    setup.portkeep(&["persist", "add", "8443-8444/udp", "--name", "tomcat", "--user", "daemon"]).ok();
    let set = |ports: &str| setup.portkeep(&["persist", "set", "tomcat", ports]);
    let out = set("8443-8444,8450").ok().out;
    assert_eq!(out, "8443-8444,8450/udp is reserved as tomcat for user daemon\n");
    let wider = set("8443-8445");
    fails(&wider, 1, "reserve the others under another name: `portkeep persist add 8445/udp --name <NAME>`");
    assert!(!wider.err.contains("delete"), "{wider:?}");
    assert_eq!(set("8089/tcp").ok().out, "8089/tcp is reserved as tomcat for user daemon\n");
    fails(&setup.portkeep(&["persist", "set", "tomcat", "80", "--tcp", "80"]), 2, "cannot be used with");
}

#[test]
fn files_are_reloaded_and_named_everywhere() {
    let setup = setup!("reload");
    let web = setup.file(
        "etc/portkeep/ports.d/web.toml",
        "[[reservation]]\nname = \"web\"\ntcp = 8443\nunit = \"tomcat.service\"\ndescription = \"the shop\"\n\n\
         [[reservation]]\nname = \"later\"\ntcp = 8444\nuser = \"nobody-has-this-name\"\n",
    );
    let other = setup.file("usr/lib/portkeep/ports.d/z.toml", "[[reservation]]\nname = \"z\"\nboth = 8443\n");
    let (web, other) = (web.to_str().unwrap(), other.to_str().unwrap());
    let reload = setup.portkeep(&["reload"]).ok();
    assert_eq!(
        reload.out, "reloaded: 1 added, 0 changed, 0 removed; 2 not in force (see `portkeep persist list`)\n",
        "{reload:?}"
    );
    assert!(
        reload.err.contains(&format!("warning: {other}:1:1: 8443/tcp of `z` is reserved as `web` by {web}:1")),
        "{reload:?}"
    );
    let json = setup.portkeep(&["reload", "--json"]).ok().json();
    assert_eq!((&json["added"], &json["removed"]), (&json!(0), &json!(0)));

    let list = setup.portkeep(&["persist", "list"]).ok().out;
    let mut lines = list.lines().skip(1).map(str::to_owned);
    let mut next = || lines.next().unwrap_or_default();
    let row = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(row(next()), format!("web 8443 tcp unit tomcat.service in force {web}:1"));
    assert_eq!(row(next()), format!("z 8443 tcp+udp administrators conflict {other}:1"));
    assert!(next().starts_with("    8443/tcp of `z`"), "{list}");
    assert_eq!(row(next()), format!("later 8444 tcp user nobody-has-this-name waits {web}:7"));
    assert_eq!(next(), "    there is no user \"nobody-has-this-name\"");

    let who = setup.portkeep(&["who", "8443/tcp"]).ok().out;
    assert!(who.starts_with("8443/tcp is reserved for unit tomcat.service\n"), "{who}");
    assert!(who.contains(&format!("  from      {web}:1\n")) && who.contains("  what      the shop\n"), "{who}");
    fails(&setup.portkeep(&["persist", "delete", "web"]), 1, web);
    fails(&setup.portkeep(&["release", "8443/tcp"]), 1, "remove or mask the file, and `portkeep reload`");
    fails(&setup.portkeep(&["excludedportrange", "delete", "tcp", "8443", "1"]), 1, "Access is denied.\nerror: ");

    fs::remove_file(web).unwrap();
    let reload = setup.portkeep(&["reload"]).ok();
    assert_eq!(reload.out, "reloaded: 1 added, 0 changed, 1 removed; 0 not in force\n", "{reload:?}");
    // Another audience, and another block of the same name, are changes.
    for text in ["both = 8443\nuser = \"daemon\"\n", "both = 8450\nuser = \"daemon\"\n"] {
        setup.file("usr/lib/portkeep/ports.d/z.toml", &format!("[[reservation]]\nname = \"z\"\n{text}"));
        let reload = setup.portkeep(&["reload"]).ok();
        assert_eq!(reload.out, "reloaded: 0 added, 1 changed, 0 removed; 0 not in force\n", "{reload:?}");
    }
    setup.file("usr/lib/portkeep/ports.d/z.toml", "[[reservation]]\nname = \"z\"\n");
    let reload = setup.portkeep(&["reload"]);
    assert_eq!((reload.code, &*reload.out), (Some(1), "reloaded: 0 added, 0 changed, 1 removed; 0 not in force\n"));
    assert!(reload.err.starts_with("error: /"), "{reload:?}");
}

#[test]
fn watch_shows_each_event() {
    let mut setup = setup!("watch");
    let mut watch = setup.command(&["watch"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut as_json = setup.command(&["watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let (mut out, mut json) =
        (BufReader::new(watch.stdout.take().unwrap()), BufReader::new(as_json.stdout.take().unwrap()));
    let line = |reader: &mut BufReader<std::process::ChildStdout>| {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        line
    };
    // They watch as soon as the first public creation is reported to both.
    let mut made = 0;
    let mut first = (String::new(), String::new());
    std::thread::scope(|scope| {
        let shown = scope.spawn(|| (line(&mut out), line(&mut json)));
        while !shown.is_finished() {
            let port = (10_000 + made).to_string();
            setup.portkeep(&["persist", "add", "--name", &format!("n{made}"), "--tcp", &port, "--user", "daemon"]).ok();
            made += 1;
        }
        first = shown.join().unwrap();
    });
    assert!(first.0.contains(" is reserved for user daemon as \"n"), "{first:?}");
    let event: Value = serde_json::from_str(&first.1).unwrap();
    assert_eq!((&event["what"], &event["transports"]), (&json!("granted"), &json!("tcp")));

    assert_eq!(setup.outsider_binds("tcp", 10_000), "AddrInUse");
    let refused =
        std::iter::repeat_with(|| line(&mut out)).take(made + 2).find(|line| line.contains(" was refused ")).unwrap();
    assert!(refused.contains("10000/tcp: reserved for user daemon by `portkeep persist add`, by root"), "{refused}");
    let event = std::iter::repeat_with(|| serde_json::from_str::<Value>(&line(&mut json)).unwrap())
        .take(made + 2)
        .find(|event| event["what"] == "refused")
        .unwrap();
    assert_eq!((&event["reservation"]["name"], &event["ports"]), (&json!("n0"), &json!("10000")));

    // They end when the agent does.
    setup.stop();
    let said = Outcome::from(watch.wait_with_output().unwrap());
    assert_eq!((said.code, said.err.as_str()), (Some(1), "note: the agent has ended\n"));
    assert_eq!(as_json.wait().unwrap().code(), Some(1));
}

#[test]
fn netshs_words_make_netshs_table() {
    let mut setup = setup!("netsh");
    let netsh = |setup: &Setup, words: &str| setup.portkeep(&words.split(' ').collect::<Vec<_>>());
    let add = "excludedportrange add protocol=tcp startport=40000 numberofports=11 store=persistent";
    assert_eq!(netsh(&setup, add).ok().out, "Ok.\n\n");
    netsh(&setup, "netsh interface ipv4 add excludedportrange protocol=tcp startport=50000 numberofports=60").ok();
    netsh(&setup, "excludedportrange add tcp 41000 1 active").ok();
    netsh(&setup, "excludedportrange add udp 40000 11").ok();
    let holding = setup.hold(&["--ports", "61010-61011"]);
    let expected = "
Protocol tcp Port Exclusion Ranges

Start Port    End Port
----------    --------
     40000       40010     *
     41000       41000     *
     50000       50059     *
     61010       61011

* - Administered port exclusions.

";
    assert_eq!(netsh(&setup, "excludedportrange show protocol=tcp").ok().out, expected);
    assert_eq!(netsh(&setup, "netsh int ipv6 sh ex tcp").ok().out, expected);
    let stays = netsh(&setup, "excludedportrange show tcp store=persistent --json").ok().json();
    let row = |start: u16, end: u16| json!({"start": start, "end": end, "administered": true});
    assert_eq!(stays, json!([row(40000, 40010), row(50000, 50059)]));

    let in_use = "The process cannot access the file because it is being used by another process.\nerror: ";
    fails(&netsh(&setup, add), 1, in_use);
    fails(&netsh(&setup, "excludedportrange add tcp 40010 2"), 1, in_use);
    fails(&netsh(&setup, "excludedportrange add tcp 61011 1"), 1, &format!("pid {}", holding.child.id()));
    let server = setup.server(42000);
    fails(
        &netsh(&setup, "excludedportrange add tcp 42000 1"),
        1,
        &format!("{in_use}42000/tcp is in use by pid {}", server.pid()),
    );
    drop(server);
    // The ports must be exactly those of the reservation.
    let not_found = "The system cannot find the file specified.\nerror: ";
    fails(&netsh(&setup, "excludedportrange del tcp 40000 10"), 3, not_found);
    fails(
        &netsh(&setup, "excludedportrange del tcp 40001 10"),
        3,
        "excludedportrange:tcp:40000-40010 is 40000-40010/tcp",
    );
    fails(&netsh(&setup, "excludedportrange delete tcp 61010 2"), 1, "Access is denied.\nerror: 61010-61011/tcp, pid ");
    fails(&netsh(&setup, "excludedportrange del tcp 40000 11 active"), 1, "Access is denied.\nerror: ");
    let nobody = setup.portkeep_as_nobody(&["excludedportrange", "add", "tcp", "43000", "1"]);
    fails(&nobody, 1, "The requested operation requires elevation (Run as administrator).\nerror: ");
    let syntax = "The syntax supplied for this command is not valid. Check help for the correct syntax.\nerror: ";
    fails(&netsh(&setup, "excludedportrange add tcp"), 2, &format!("{syntax}startport is missing"));
    fails(&netsh(&setup, "excludedportrange show store=active"), 2, &format!("{syntax}protocol is missing"));
    fails(&netsh(&setup, "netsh interface ipv4 show dynamicport tcp"), 2, syntax);

    assert_eq!(netsh(&setup, "excludedportrange del tcp 40000 11").ok().out, "Ok.\n\n");
    netsh(&setup, "excludedportrange delete protocol=tcp startport=41000 numberofports=1 store=active").ok();
    netsh(&setup, "netsh int ipv4 del ex tcp 50000 60").ok();
    holding.let_go();
    let rows = netsh(&setup, "excludedportrange show tcp --json").ok().json();
    assert_eq!(rows, json!([]));
    let rows = netsh(&setup, "excludedportrange show udp --json").ok().json();
    assert_eq!(rows, json!([row(40000, 40010)]));
    setup.stop();
    fails(&netsh(&setup, "excludedportrange del udp 40000 11"), 1, "The service has not been started.\nerror: ");
}

/// The output of `check`, with the folder's name left out.
fn check(folder: &Path, words: &[&str]) -> (Option<i32>, String) {
    let said = Outcome::from(
        std::process::Command::new(PORTKEEP)
            .arg("check")
            .args(words)
            .current_dir(folder)
            .env_remove("PORTKEEP_ROOT")
            .env_remove("PORTKEEP_CONFIG")
            .env_remove("PORTKEEP_STATE_DIR")
            .output()
            .unwrap(),
    );
    assert_eq!(said.err, "");
    (said.code, said.out.replace(&format!("{}/", folder.display()), ""))
}

#[test]
fn check_speaks_as_a_compiler_does() {
    let dir = tempfile::tempdir().unwrap();
    let file = |path: &str, text: &str| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    file("etc/services", "https 443/tcp\nipp 631/tcp\nipp 631/udp\n");
    file("etc/passwd", "root:x:0:0::/:/bin/sh\n");
    file("etc/group", "root:x:0:\n");
    file("usr/lib/systemd/system/nginx.service", "");
    file(
        "usr/lib/portkeep/ports.d/nginx.toml",
        "[[reservation]]\nname = \"web\"\ntcp = \"https\"\nunit = \"nginx.service\"\n",
    );
    file("etc/portreserve/cups", "ipp\n");
    file("etc/portkeep/portkeep.toml", "pool = \"20000-20999\"\n");
    let root = dir.path().to_str().unwrap();
    let good = check(dir.path(), &["--root", root]);
    // The unit of a portreserve file may be missing.
    assert_eq!(
        good,
        (
            Some(0),
            "etc/portreserve/cups:1:1: warning: there is no unit cups.service (`portreserve:cups:631`)\n\
             help: install it, or correct the name (`systemctl list-unit-files` shows all)\n\
             3 files with 2 reservations: 1 warning\n"
                .into()
        )
    );

    file(
        "etc/portkeep/ports.d/a.toml",
        "[[reservation]]\nname = \"a\"\ntcp = \"htps\"\n\n[[reservation]]\nname = \"b\"\ntcp = 443\nuser = \"root\"\n\n\
         [[reservation]]\nname = \"c\"\nudp = 443\ngroup = \"voice\"\n",
    );
    file("etc/portkeep/portkeep.toml", "pol = \"20000-20999\"\n");
    let bad = check(dir.path(), &["--root", root]);
    let expected = "\
etc/portkeep/portkeep.toml:1:1: error: unknown key `pol`
help: did you mean `pool`?
etc/portkeep/ports.d/a.toml:3:7: error: \"htps\" is neither a port, nor a range, nor a service of /etc/services
help: did you mean \"https\"?
usr/lib/portkeep/ports.d/nginx.toml:1:1: error: 443/tcp of `web` is reserved as `b` by etc/portkeep/ports.d/a.toml:5
help: change one of the two; a file can be masked by a link to /dev/null of the same name in /etc/portkeep/ports.d
etc/portkeep/ports.d/a.toml:10:1: warning: there is no group voice (`c`)
help: the reservation waits until there is one
etc/portreserve/cups:1:1: warning: there is no unit cups.service (`portreserve:cups:631`)
help: install it, or correct the name (`systemctl list-unit-files` shows all)
4 files with 3 reservations: 3 mistakes, 2 warnings
";
    assert_eq!(bad, (Some(1), expected.into()));

    // Each kind of file alone, and conflicts across files.
    file("x/one.toml", "[[reservation]]\nname = \"one\"\ntcp = \"7000-7009\"\n");
    file("x/two.toml", "[[reservation]]\nname = \"two\"\nboth = 7009\n");
    file("x/conf.toml", "deny_errno = \"EPERM\"\n");
    file("x/portreserve/svc", "7/sctp\n");
    let named = check(dir.path(), &["x/one.toml", "x/two.toml", "x/conf.toml", "x/portreserve", "x/absent.toml"]);
    let expected = "\
x/conf.toml:1:14: error: `deny_errno` is \"EADDRINUSE\" or \"EACCES\"
x/portreserve/svc:1:1: error: \"7/sctp\": a transport is tcp, udp or tcp+udp
x/absent.toml: error: does not exist
x/two.toml:1:1: error: 7009/tcp of `two` is reserved as `one` by x/one.toml:1
help: change one of the two; a file can be masked by a link to /dev/null of the same name in /etc/portkeep/ports.d
x/one.toml:1:1: note: processes of root may bind these ports by number (`one`)
help: with `strict = true` they may not
5 files with 1 reservation: 4 mistakes
";
    assert_eq!(named, (Some(1), expected.into()));
    let folder = check(dir.path(), &["x", "--json"]);
    let json: Value = serde_json::from_str(&folder.1).unwrap();
    assert_eq!(json["files"], json!(["x/conf.toml", "x/one.toml", "x/two.toml"]));
    assert_eq!((json["errors"].as_array().unwrap().len(), &json["reservations"]), (2, &json!(1)));
    file("x/one.toml", "[[reservation]]\nname = \"one\"\ntcp = \"7000-7009\"\nstrict = true\n");
    assert_eq!(check(dir.path(), &["x/one.toml"]), (Some(0), "1 file with 1 reservation: nothing wrong\n".into()));
}

#[test]
fn check_knows_what_commands_created() {
    let mut setup = setup!("check");
    setup.portkeep(&["persist", "add", "--name", "mine", "--tcp", "8443"]).ok();
    let web = setup.file("etc/portkeep/ports.d/web.toml", "[[reservation]]\nname = \"web\"\ntcp = 8443\n");
    let said = setup.portkeep(&["check"]);
    assert_eq!(said.code, Some(1));
    let shown = format!(
        "{}:1:1: error: 8443/tcp of `web` is reserved as `mine` by `portkeep persist add`, by root\n",
        web.display()
    );
    assert!(said.out.starts_with(&shown), "{said:?}");

    setup.stop();
    let store = setup.folder.path().join("state/persistent.redb");
    fs::write(&store, "rubbish").unwrap();
    let said = setup.portkeep(&["check"]);
    assert_eq!(said.code, Some(1));
    assert!(said.out.starts_with(&format!("{}: error: is damaged: ", store.display())), "{said:?}");
    assert!(setup.portkeep(&["persist", "list"]).err.contains("is damaged"));
    assert_eq!(fs::read_to_string(&store).unwrap(), "rubbish");
}

/// The machine's outsider uses `answer` and HELPER. This test runs without HELPER.
#[test]
fn the_helper_says_what_became_of_it() {
    assert_eq!(answer("x\nhelper: bound\n"), "bound");
    assert!(std::env::var_os(HELPER).is_none());
}

/// If an agent hangs, every wait for it ends, and a request that was given up is not carried out later.
#[test]
fn commands_do_not_wait_for_a_hanging_agent() {
    if !kernel_or_skip("persist::hangs") {
        return;
    }
    let mut setup = Setup::new("hangs");
    let agent = Pid::from_child(setup.agent.as_ref().unwrap());
    kill_process(agent, Signal::STOP).unwrap();

    let status = setup.portkeep(&["status", "--json"]).ok().json();
    assert_eq!((&status["agent"], &status["agent_answers"]), (&json!(true), &json!(false)));
    assert!(setup.portkeep(&["status"]).ok().out.contains("does not answer"));

    // A signal ends the wait, whichever it is.
    // In the second, a process in the background waits.
    for words in [
        &["acquire", "--ports", "5000"][..],
        &["acquire", "--ports", "5000", "--for", "1s"],
        &["run", "--ports", "5000", "--", "true"],
    ] {
        for (signal, name, number) in
            [(Signal::INT, "SIGINT", 2), (Signal::TERM, "SIGTERM", 15), (Signal::HUP, "SIGHUP", 1)]
        {
            let mut child = setup.command(words).stderr(Stdio::piped()).stdin(Stdio::piped()).spawn().unwrap();
            eventually(|| setup.portkeep(&["list", "--json"]).ok().json()[0]["state"] == "pending");
            kill_process(Pid::from_child(&child), signal).unwrap();
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(128 + number), "{words:?} {signal:?}: {said}");
            assert!(said.contains(&format!("error: {name} came ")), "{words:?}: {said}");
            assert_eq!(setup.portkeep(&["list", "--json"]).ok().json(), json!([]));
        }
    }
    // So does a limit.
    let limited: [(&[&str], i32); 6] = [
        (&["acquire", "--ports", "5000"], 1),
        (&["run", "--ports", "5000", "--", "true"], 125),
        (&["persist", "add", "--name", "late", "--tcp", "5000"], 1),
        (&["persist", "delete", "late"], 1),
        (&["persist", "list"], 1),
        (&["reload"], 1),
    ];
    for (words, code) in limited {
        let said: Outcome = setup.command(words).env("PORTKEEP_TIMEOUT", "0.3").output().unwrap().into();
        assert_eq!((said.code, said.out.as_str()), (Some(code), ""), "{words:?}: {said:?}");
        assert!(said.err.contains("not answer") && said.err.contains("systemctl restart"), "{words:?}: {said:?}");
    }

    // So does its death.
    let waits = setup.command(&["acquire", "--ports", "5000"]).stderr(Stdio::piped()).spawn().unwrap();
    eventually(|| setup.portkeep(&["list", "--json"]).ok().json()[0]["state"] == "pending");
    let mut killed = setup.agent.take().unwrap();
    killed.kill().unwrap();
    killed.wait().unwrap();
    let said = Outcome::from(waits.wait_with_output().unwrap());
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("no agent runs"), "{said:?}");
    assert_eq!(setup.portkeep(&["status", "--json"]).ok().json()["agent"], false);

    setup.start();
    assert_eq!(setup.portkeep(&["status", "--json"]).ok().json()["agent_answers"], true);
    setup.stop();
}

#[test]
fn l2_a_list_is_one_reservation_wherever_it_is_named() {
    let mut setup = setup!("list");
    let added = setup.portkeep(&["persist", "add", "443,80", "--name", "web", "--user", "daemon"]).ok();
    assert_eq!(added.out, "80,443/tcp is reserved as web for user daemon\n");
    let declared = setup.declared();
    assert_eq!(declared.as_array().unwrap().len(), 1);
    let web = &declared[0];
    assert_eq!((&web["name"], &web["ports"], &web["state"]), (&json!("web"), &json!("80,443"), &json!("active")));
    // `start` and `count` are those of the first block, as is the token.
    assert_eq!((&web["start"], &web["count"], &web["token"]), (&json!(80), &json!(1), &web["blocks"][0]["token"]));
    assert_eq!((&web["blocks"][1]["ports"], &web["blocks"][1]["start"]), (&json!("443"), &json!(443)));
    assert_ne!(web["blocks"][0]["token"], web["blocks"][1]["token"]);
    let seen = setup.portkeep(&["list", "--json"]).ok().json();
    assert_eq!((seen.as_array().unwrap().len(), &seen[0]["blocks"]), (1, &web["blocks"]));
    let who = setup.portkeep(&["who", "80,443,8080", "--json"]).ok().json();
    let named: Vec<_> =
        who.as_array().unwrap().iter().map(|each| (&each["port"], &each["reservation"]["name"])).collect();
    let (web_is, none) = (json!("web"), Value::Null);
    let both = |port: u16, name| [(json!(port), name), (json!(port), &none)];
    let expected: Vec<_> = [both(80, &web_is), both(443, &web_is), both(8080, &none)].concat();
    assert_eq!(named, expected.iter().map(|(port, name)| (port, *name)).collect::<Vec<_>>());
    let shown = setup.portkeep(&["who", "443,8080-8081"]).ok().out;
    assert!(shown.starts_with("443/tcp is reserved for user daemon\n  block     80,443/tcp"), "{shown}");
    for port in [80, 443] {
        assert_eq!(setup.outsider_binds("tcp", port), "AddrInUse");
    }

    // All or nothing, with the one port that is in the way.
    let taken = setup.portkeep(&["persist", "add", "8080,443", "--name", "more"]);
    fails(&taken, 1, "80,443/tcp is reserved as `web`");
    let server = setup.server(9001);
    let taken = setup.portkeep(&["persist", "add", "9000-9001,9003", "--name", "more"]);
    fails(&taken, 1, &format!("9001/tcp is in use by pid {}", server.pid()));
    drop(server);
    assert_eq!(setup.outsider_binds("tcp", 9000), "bound");
    let range = ["persist", "add", "1,3", "--name", "x", "--user", "daemon", "--ephemeral"];
    fails(&setup.portkeep(&range), 2, "reserve the others under another name, without `ephemeral`");

    // The agent finds it again, from the store and in the kernel.
    setup.stop();
    let alone = setup.portkeep(&["persist", "list", "--json"]).ok().json();
    assert_eq!((&alone[0]["ports"], &alone[0]["state"]), (&json!("80,443"), &json!("active")));
    let seen = setup.portkeep(&["list", "--json"]).ok().json();
    assert_eq!((seen.as_array().unwrap().len(), &seen[0]["name"]), (1, &json!("web")));
    setup.start();
    assert_eq!(setup.declared(), declared);

    // A file with a list, that grows and shrinks: a change of one reservation.
    let file = "etc/portkeep/ports.d/media.toml";
    let reload = |text: &str| {
        setup.file(file, &format!("[[reservation]]\nname = \"media\"\n{text}\nuser = \"daemon\"\n"));
        let counts = setup.portkeep(&["reload", "--json"]).ok().json();
        (counts["added"].clone(), counts["changed"].clone(), counts["removed"].clone())
    };
    assert_eq!(reload("ports = \"7000,7002/udp\""), (json!(1), json!(0), json!(0)));
    assert_eq!(setup.outsider_binds("udp", 7002), "AddrInUse");
    assert_eq!(reload("udp = [7000, \"7002-7003\"]"), (json!(0), json!(1), json!(0)));
    assert_eq!(setup.outsider_binds("udp", 7003), "AddrInUse");
    assert_eq!(reload("udp = 7000"), (json!(0), json!(1), json!(0)));
    assert_eq!(setup.outsider_binds("udp", 7003), "bound");

    fails(&setup.portkeep(&["persist", "delete", "--tcp", "80"]), 3, "web is 80,443/tcp");
    let deleted = setup.portkeep(&["persist", "delete", "--tcp", "80,443"]).ok().out;
    assert_eq!(deleted, "web is deleted; it was 80,443/tcp for user daemon\n");
    for port in [80, 443] {
        assert_eq!(setup.outsider_binds("tcp", port), "bound");
    }
}

#[test]
fn l2_a_list_is_one_event_when_it_is_complete_and_one_when_it_has_ended() {
    let setup = setup!("listed");
    let mut watch = setup.command(&["watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut events = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut next = || serde_json::from_str::<Value>(&events.next().unwrap()).unwrap();
    // It watches as soon as a public creation is reported.
    let mut made = 0;
    std::thread::scope(|scope| {
        let shown = scope.spawn(&mut next);
        while !shown.is_finished() {
            let port = (10_000 + made).to_string();
            setup.portkeep(&["persist", "add", &port, "--name", &format!("n{made}")]).ok();
            made += 1;
        }
    });
    // One of its ports is in use: nothing is granted, and nothing ends.
    let server = setup.server(20_002);
    let refused = setup.portkeep(&["acquire", "--ports", "20000,20002"]);
    fails(&refused, 1, &format!("20002/tcp is in use by pid {}", server.pid()));
    drop(server);
    let mut holding = setup.hold(&["--ports", "20000,20002,20005-20006", "--label", "three", "--strict"]);
    let words: Vec<&str> = holding.line.split(' ').collect();
    assert_eq!((words[0], words[2].split(',').count()), ("20000,20002,20005-20006", 3));
    assert_eq!(setup.portkeep(&["list", "--json"]).ok().json().as_array().unwrap().len(), 1 + made);
    assert_eq!(setup.outsider_binds("tcp", 20_006), "AddrInUse");

    // Any of its ports, or of its tokens, names the whole list.
    fails(&setup.portkeep(&["release", "20006,20007"]), 3, "no reservation of this network namespace has port 20007");
    let released = setup.portkeep(&["release", words[2].split(',').nth(1).unwrap()]).ok().out;
    assert!(released.starts_with("released 20000,20002,20005-20006/tcp of pid"), "{released}");
    setup.portkeep(&["persist", "add", "30000", "--name", "end"]).ok();
    let mut ended = Value::Null;
    let seen: Vec<(String, String)> = std::iter::repeat_with(next)
        .inspect(|event| {
            if event["what"] == "ended" {
                ended = event.clone();
            }
        })
        .map(|event| (event["what"].as_str().unwrap().to_owned(), event["ports"].as_str().unwrap().to_owned()))
        .filter(|(_, ports)| !ports.starts_with("100"))
        .take_while(|(_, ports)| ports != "30000")
        .collect();
    let list = "20000,20002,20005-20006";
    let expected = [("denied", "20002"), ("granted", list), ("refused", "20006"), ("ended", list)];
    assert_eq!(seen, expected.map(|(what, ports)| (what.to_owned(), ports.to_owned())));
    // An administrator ended it, and it names whose it was.
    let (of, pid) = (&ended["reservation"], holding.child.id());
    assert_eq!(
        (&of["name"], &of["owner"]["pid"], &of["owner"]["comm"]),
        (&json!("three"), &json!(pid), &json!("portkeep"))
    );
    let message = ended["message"].as_str().unwrap();
    assert!(message.contains(&format!("of portkeep (pid {pid}, root) as \"three\" is free again")), "{message}");
    watch.kill().unwrap();
    watch.wait().unwrap();
    // `acquire` reports that it lost them.
    eventually(|| holding.child.try_wait().unwrap().is_some());
    assert_eq!(holding.child.wait().unwrap().code(), Some(1));
}
