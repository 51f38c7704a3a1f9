//! `doctor` finds what is wrong: each test builds a situation.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Stdio,
};

use portkeep_testkit::{
    Outcome,
    bpf::{Other, attach_other},
    eventually, kernel_or_skip,
    machine::{Machine, Running},
    process::{Child, become_user},
};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");

/// A machine whose network this thread is in.
fn machine(name: &str) -> Option<Machine> {
    kernel_or_skip(&format!("doctor::{name}")).then(|| {
        let machine = Machine::new(PORTKEEP, name);
        machine.enter_network();
        machine
    })
}

fn file(machine: &Machine, path: &str, text: &str) {
    let path = machine.folder.path().join("root").join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// The findings of one check: severity, message and help.
fn findings(machine: &Machine, check: &str) -> Vec<[String; 3]> {
    let report = machine.portkeep(&["doctor", "--json"]).json();
    let one = report.as_array().unwrap().iter().find(|one| one["check"] == check).unwrap().clone();
    assert!(one["skipped"].is_null(), "{one}");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let findings = one["findings"].as_array().unwrap().iter();
    findings.map(|finding| [&finding["severity"], &finding["message"], &finding["help"]].map(text)).collect()
}

/// The only finding of a check has this severity, and these words are in it.
#[track_caller]
fn finds(machine: &Machine, check: &str, severity: &str, words: &[&str]) {
    let found = findings(machine, check);
    let [[of, message, help]] = &found[..] else { panic!("{check}: {found:?}") };
    assert_eq!(of, severity, "{found:?}");
    for word in words {
        assert!(message.contains(word) || help.contains(word), "{word}: {found:?}");
    }
}

#[test]
fn a_machine_in_order_has_nothing_wrong() {
    let Some(machine) = machine("order") else { return };
    finds(&machine, "enforcement", "warning", &["not up", "portkeep up"]);
    machine.portkeep(&["up"]).ok();
    finds(&machine, "agent", "note", &["no agent runs"]);
    let _agent = machine.agent(machine.command(&["agent"]));
    machine.portkeep(&["persist", "add", "--name", "web", "--tcp", "8443", "--user", "daemon"]).ok();
    let report = machine.portkeep(&["doctor", "--json"]).ok().json();
    for one in report.as_array().unwrap() {
        // These checks can report namespaces and processes of other tests, and an old kernel.
        let of_others = ["pool", "node-ports", "kernel"].iter().any(|check| one["check"] == *check);
        assert!(of_others || one["findings"] == serde_json::json!([]), "{one}");
    }
    assert!(machine.portkeep(&["doctor"]).ok().out.contains("15 checks"));
}

#[test]
fn checks_that_require_root_are_named_to_others() {
    let Some(machine) = machine("rights") else { return };
    machine.portkeep(&["up"]).ok();
    let _listener = TcpListener::bind("127.0.0.1:22").unwrap();
    let skipped = |report: &Value, check: &str| {
        let one = report.as_array().unwrap().iter().find(|one| one["check"] == check).unwrap();
        one["skipped"].as_str().unwrap_or_default().to_owned()
    };
    let report = machine.portkeep_as_nobody(&["doctor", "--json"]).json();
    for (check, part) in [
        ("agent", "whether its program was replaced: "),
        ("files", "reservations that commands created: "),
        ("server-users", "servers of other users: "),
        ("pool", "other network namespaces: "),
        ("hooks", ""),
        ("containers", ""),
        ("ephemeral-ports", ""),
        ("quotas", ""),
    ] {
        assert_eq!(skipped(&report, check), format!("{part}requires root"), "{check}: {report}");
    }
    let text = machine.portkeep_as_nobody(&["doctor"]).out;
    assert!(text.contains("not examined: other network namespaces: requires root [pool]\n"), "{text}");
    assert!(text.contains("not examined: requires root [quotas]\n") && text.contains("incomplete"), "{text}");
    // Root of a namespace is root, and has not the rights of root on the machine.
    let copy = machine.for_everybody(PORTKEEP);
    for (namespaces, root) in [
        (&["--pid", "--fork", "--mount-proc"][..], "root in the first PID namespace"),
        (&["--user", "--map-root-user"], "root in the first user namespace"),
        (
            &["--user", "--map-root-user", "--pid", "--fork", "--mount-proc"],
            "root in the first user namespace and the first PID namespace",
        ),
    ] {
        let said = |words: &[&str]| -> Outcome {
            let words = [&["unshare"], namespaces, &[&copy], words].concat();
            let as_root = namespaces[0] == "--pid";
            let mut command = if as_root { machine.program(&words) } else { machine.as_nobody(&words) };
            command.output().unwrap().into()
        };
        let doctor = said(&["doctor", "--json"]);
        assert_eq!(skipped(&doctor.json(), "containers"), format!("requires {root}"), "{doctor:?}");
        let who = said(&["who", "22"]);
        assert!(who.err.contains(&format!("note: only {root} can see other users' processes")), "{who:?}");
    }
}

#[test]
fn programs_of_others_on_the_same_hooks() {
    let Some(machine) = machine("hooks") else { return };
    let inner = machine.cgroup.child("enforced").unwrap();
    let below = inner.join("unit");
    fs::create_dir(&below).unwrap();
    let folder = inner.to_str().unwrap();
    machine.portkeep(&["up", "--enforce", folder, "--serve", folder]).ok();
    assert_eq!(findings(&machine, "hooks"), [[""; 3]; 0], "Portkeep's own are not reported");
    for cgroup in [machine.cgroup.path(), &inner, &below] {
        attach_other(&fs::File::open(cgroup).unwrap(), Other::AllowBind).unwrap();
    }
    let found = findings(&machine, "hooks");
    let home = machine.home();
    for (cgroup, place) in [
        (home.clone(), "above the cgroup that is enforced in"),
        (format!("{home}/enforced"), "the cgroup that is enforced in"),
        (format!("{home}/enforced/unit"), "for the processes in it alone"),
    ] {
        let start = format!("other BPF programs are attached to the cgroup {cgroup} ({place}): program ");
        let is_it = |[severity, message, help]: &&[String; 3]| {
            severity == "note" && message.starts_with(&start) && message.contains(" (bind4);") && !help.is_empty()
        };
        assert_eq!(found.iter().filter(is_it).count(), 1, "{cgroup}: {found:?}");
    }
    assert_eq!(found.len(), 3, "{found:?}");
    machine.portkeep(&["down"]).ok();
    fs::remove_dir(below).unwrap();
}

#[test]
fn a_mistake_in_a_file_and_a_unit_that_does_not_exist() {
    let Some(machine) = machine("files") else { return };
    machine.portkeep(&["up"]).ok();
    file(&machine, "usr/lib/systemd/system/some.service", "");
    file(
        &machine,
        "etc/portkeep/ports.d/a.toml",
        "[[reservation]]\nname = \"a\"\ntcp = 8443\nunit = \"none.service\"\n",
    );
    let unit = ["there is no unit none.service", "a.toml:1", "install it, or correct the name"];
    finds(&machine, "files", "warning", &unit);
    finds(&machine, "agent", "error", &["no agent runs, and 1 persistent"]);
    file(&machine, "etc/portkeep/ports.d/a.toml", "[[reservation]]\nname = \"a\"\ntpc = 8443\n");
    let found = findings(&machine, "files");
    assert!(found.iter().any(|[severity, message, _]| severity == "error" && message.contains("tpc")), "{found:?}");
    assert_eq!(machine.portkeep(&["doctor"]).code, Some(1));
}

#[test]
fn a_declared_port_that_somebody_else_has() {
    let Some(machine) = machine("in_use") else { return };
    machine.portkeep(&["up"]).ok();
    let listener = TcpListener::bind("127.0.0.1:8443").unwrap();
    file(&machine, "etc/portkeep/ports.d/a.toml", "[[reservation]]\nname = \"a\"\ntcp = 8443\nuser = \"daemon\"\n");
    file(&machine, "etc/portkeep/ports.d/b.toml", "[[reservation]]\nname = \"b\"\ntcp = \"8000-8999\"\n");
    let _agent = machine.agent(machine.command(&["agent"]));
    let found = findings(&machine, "in-force");
    let pid = format!("is in use by pid {}", std::process::id());
    let [[waits, why, help], [conflict, of, _]] = &found[..] else { panic!("{found:?}") };
    assert!(waits == "warning" && why.contains(&pid) && help.contains("around = true"), "{found:?}");
    assert!(conflict == "error" && of.contains("b, 8000-8999/tcp"), "{found:?}");
    drop(listener);
}

#[test]
fn a_declared_port_that_only_the_memory_of_a_connection_has() {
    let Some(machine) = machine("time_wait") else { return };
    machine.portkeep(&["up"]).ok();
    let _agent = machine.agent(machine.command(&["agent"]));
    let listener = TcpListener::bind("127.0.0.1:8443").unwrap();
    let client = TcpStream::connect("127.0.0.1:8443").unwrap();
    // The server's side closes first, and has the TIME_WAIT.
    drop(listener.accept().unwrap());
    drop(client);
    drop(listener);
    eventually(|| {
        machine.portkeep(&["persist", "add", "--name", "a", "--tcp", "8443", "--user", "daemon"]).code == Some(0)
    });
    finds(
        &machine,
        "in-force",
        "note",
        &["a is in force, and 8443/tcp is not free yet", "TIME-WAIT", "s left", "SO_REUSEADDR"],
    );
}

#[test]
fn a_socket_unit_on_a_declared_port() {
    let Some(machine) = machine("sockets") else { return };
    machine.portkeep(&["up"]).ok();
    let unit = "usr/lib/systemd/system/ssh.socket";
    file(&machine, unit, "[Socket]\nListenStream=0.0.0.0:22\n");
    file(&machine, "usr/lib/systemd/system/ssh.service", "");
    file(
        &machine,
        "etc/portkeep/ports.d/ssh.toml",
        "[[reservation]]\nname = \"ssh\"\ntcp = 22\nunit = \"ssh.service\"\n",
    );
    let _agent = machine.agent(machine.command(&["agent"]));
    assert_eq!(findings(&machine, "socket-units"), [[""; 3]; 0], "it is not enabled");
    let wants = machine.folder.path().join("root/etc/systemd/system/sockets.target.wants");
    fs::create_dir_all(&wants).unwrap();
    std::os::unix::fs::symlink(Path::new("/").join(unit), wants.join("ssh.socket")).unwrap();
    finds(&machine, "socket-units", "error", &["22/tcp for ssh.service", "ssh.socket", "user = \"root\""]);
}

/// The uid of `daemon`, everywhere.
const DAEMON: u32 = 1;

#[test]
fn a_server_that_binds_as_root_and_serves_as_another_user() {
    let Some(machine) = machine("users") else { return };
    machine.portkeep(&["up"]).ok();
    let _listener = TcpListener::bind("127.0.0.1:8443").unwrap();
    file(&machine, "etc/portkeep/ports.d/a.toml", "[[reservation]]\nname = \"a\"\ntcp = 8443\nuser = \"daemon\"\n");
    let agent = machine.agent(machine.command(&["agent"]));
    assert_eq!(findings(&machine, "server-users"), [[""; 3]; 0], "it is somebody else's, for all that is known");
    // As a preforking server does: the master binds, and its worker is another user.
    let mut worker = Child::fork(|talk| {
        become_user(DAEMON);
        talk.say(1);
        talk.try_hear();
    });
    assert_eq!(worker.talk.hear(), 1);
    let server = format!("pid {}", std::process::id());
    finds(
        &machine,
        "server-users",
        "error",
        &["a is for user daemon", &server, "binds as root and serves as daemon", "add \"root\" to `user`"],
    );
    // If there are several users, one must be the user of the master.
    drop(agent);
    let several = |users: &str| {
        let text = format!("[[reservation]]\nname = \"a\"\ntcp = 8443\nuser = [{users}]\n");
        file(&machine, "etc/portkeep/ports.d/a.toml", &text);
        let _agent = machine.agent(machine.command(&["agent"]));
        findings(&machine, "server-users")
    };
    assert!(several("\"bin\", \"daemon\"")[0][1].contains("a is for user daemon, and "));
    assert_eq!(several("\"daemon\", \"root\""), [[""; 3]; 0]);
}

#[test]
fn ports_that_containers_of_podman_have_published() {
    let Some(machine) = machine("podman") else { return };
    machine.portkeep(&["up"]).ok();
    let agent = machine.agent(machine.command(&["agent"]));
    assert_eq!(findings(&machine, "containers"), [[""; 3]; 0]);
    // Podman as root has a process of this name keep the port bound. Nothing listens: NAT rules lead to the container.
    let mut conmon = Child::fork(|talk| {
        rustix::thread::set_name(c"conmon").unwrap();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&std::net::SocketAddr::from(([0, 0, 0, 0], 8080)).into()).unwrap();
        talk.say(1);
        talk.try_hear();
    });
    assert_eq!(conmon.talk.hear(), 1);
    let holder = format!("pid {} (conmon)", conmon.pid());
    finds(&machine, "containers", "warning", &["published 8080", &holder, "--user root --around"]);
    drop(agent);
    file(
        &machine,
        "etc/portkeep/ports.d/a.toml",
        "[[reservation]]\nname = \"a\"\ntcp = 8080\nunit = \"other.service\"\n",
    );
    let agent = machine.agent(machine.command(&["agent"]));
    finds(
        &machine,
        "containers",
        "error",
        &["8080/tcp of a is declared for unit other.service", &holder, "publish another port"],
    );
    drop(agent);
    file(
        &machine,
        "etc/portkeep/ports.d/a.toml",
        "[[reservation]]\nname = \"a\"\ntcp = 8080\nunit = \"other.service\"\nuser = \"root\"\n",
    );
    let _agent = machine.agent(machine.command(&["agent"]));
    assert_eq!(findings(&machine, "containers"), [[""; 3]; 0], "it is for root too, and comes into force later");
}

#[test]
fn a_pool_over_ephemeral_ports_in_any_namespace() {
    let Some(machine) = machine("pool") else { return };
    machine.portkeep(&["up"]).ok();
    assert_eq!(findings(&machine, "pool"), [[""; 3]; 0]);
    let inner = "echo 1024 65535 > /proc/sys/net/ipv4/ip_local_port_range && echo ready && exec sleep 300";
    let mut other = machine.program(&["unshare", "--net", "sh", "-c", inner]).stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(other.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    let other = Running(other);
    let link = fs::read_link(format!("/proc/{}/ns/net", other.0.id())).unwrap().display().to_string();
    let found = findings(&machine, "pool");
    assert!(
        found
            .iter()
            .any(|[of, message, _]| of == "warning" && message.contains(&link) && message.contains("61000-65535")),
        "{found:?}"
    );
    drop(other);
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535").unwrap();
    let found = findings(&machine, "pool");
    assert!(found[0][1].contains("overlaps net.ipv4.ip_local_port_range (1024-65535)"), "{found:?}");
}

#[test]
fn too_few_ephemeral_ports_are_left() {
    let Some(machine) = machine("ephemeral-ports") else { return };
    machine.portkeep(&["up"]).ok();
    let _agent = machine.agent(machine.command(&["agent"]));
    machine.portkeep(&["persist", "add", "--name", "few", "--tcp", "32768-50000", "--user", "daemon"]).ok();
    assert_eq!(findings(&machine, "ephemeral-ports"), [[""; 3]; 0]);
    let all = ["persist", "add", "--name", "all", "--tcp", "50001-60999", "--user", "daemon", "--force"];
    machine.portkeep(&all).ok();
    let left = "0 of the 28232 ephemeral ports";
    finds(&machine, "ephemeral-ports", "error", &[left, "at least 4096"]);
    let status = machine.portkeep(&["status"]).ok().out;
    assert!(status.contains(&format!("warning       {left}")), "{status}");
}

#[test]
fn a_nat_rule_over_a_reserved_port() {
    let Some(machine) = machine("nat") else { return };
    machine.portkeep(&["up"]).ok();
    let _agent = machine.agent(machine.command(&["agent"]));
    machine.portkeep(&["persist", "add", "--name", "ssh", "--tcp", "22", "--user", "daemon"]).ok();
    machine.portkeep(&["persist", "add", "--name", "redirected", "--tcp", "25", "--strict"]).ok();
    let made = machine.shell(
        "nft add table ip t && nft 'add chain ip t c { type nat hook prerouting priority -100; }' && \
         nft 'add rule ip t c tcp dport 20-30 redirect to :2222' && nft 'add rule ip t c udp dport 22 redirect to :53'",
    );
    if made.code != Some(0) {
        portkeep_testkit::note(&format!("SKIPPED doctor::nat: no nft, or no nf_tables in this kernel: {made:?}"));
        return;
    }
    finds(&machine, "nat", "warning", &["22/tcp of ssh is reserved", "nftables ip t c: redirect to port 2222"]);
    // Ports that no program can bind are kept free for such rules.
    assert_eq!(findings(&machine, "nat").len(), 1);
}

#[test]
fn node_ports_of_kubernetes_that_are_not_reserved() {
    let Some(machine) = machine("nodeports") else { return };
    machine.portkeep(&["up"]).ok();
    let _agent = machine.agent(machine.command(&["agent"]));
    // A process of that name.
    let kubelet = machine.folder.path().join("kubelet");
    fs::copy("/bin/sleep", &kubelet).unwrap();
    let _kubelet = Running(machine.program(&[kubelet.to_str().unwrap(), "300"]).spawn().unwrap());
    eventually(|| !findings(&machine, "node-ports").is_empty());
    finds(&machine, "node-ports", "warning", &["30000-32767 of its node ports are not reserved", "strict = true"]);
    machine.portkeep(&["persist", "add", "--name", "nodeports", "--both", "30000-32767", "--strict"]).ok();
    assert_eq!(findings(&machine, "node-ports"), [[""; 3]; 0]);
}

#[test]
fn a_quota_that_is_nearly_used_up() {
    let Some(machine) = machine("quota") else { return };
    machine.portkeep(&["up"]).ok();
    assert_eq!(findings(&machine, "quotas"), [[""; 3]; 0]);
    let mut held = machine.as_nobody(&[&machine.for_everybody(PORTKEEP), "acquire", "--count", "900"]);
    let mut held = held.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(held.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    let _held = Running(held);
    finds(&machine, "quotas", "warning", &["user nobody holds 900 of 1024 ports", "portkeep.toml(5)"]);
}

#[test]
fn an_agent_whose_program_was_replaced() {
    let Some(machine) = machine("replaced") else { return };
    machine.portkeep(&["up"]).ok();
    let copy = machine.for_everybody(PORTKEEP);
    let _agent = machine.agent(machine.program(&[&copy, "agent"]));
    eventually(|| machine.portkeep(&["status", "--json"]).json()["agent_answers"] == true);
    assert_eq!(findings(&machine, "agent"), [[""; 3]; 0]);
    fs::remove_file(&copy).unwrap();
    finds(&machine, "agent", "warning", &["is an older program than the one that is installed", &copy, "restart"]);
}
