//! `who` names every kind of holder of a port.

use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Child, Stdio},
};

use portkeep_testkit::{
    Outcome, eventually, kernel_or_skip,
    machine::{Machine, Running},
    process,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");

/// A machine whose network this thread is in.
fn machine(name: &str) -> Option<Machine> {
    kernel_or_skip(&format!("who::{name}")).then(|| {
        let machine = Machine::new(PORTKEEP, name);
        machine.enter_network();
        machine
    })
}

/// The object of the only port and transport, and the text.
fn who(machine: &Machine, port: impl ToString) -> (Value, Outcome) {
    let port = format!("{}/tcp", port.to_string());
    let json = machine.portkeep(&["who", &port, "--json"]);
    let text = machine.portkeep(&["who", &port]);
    assert_eq!(json.code, text.code);
    (json.json()[0].clone(), text)
}

/// The same for a port that a process has.
fn used(machine: &Machine, port: impl ToString) -> (Value, Outcome) {
    let (json, text) = who(machine, port);
    (json, text.ok())
}

fn bound(reuse: bool, port: u16) -> (Socket, u16) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_port(reuse).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    (socket, port)
}

#[test]
fn a_listener_with_its_process_user_address_and_age() {
    let Some(machine) = machine("listener") else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (json, text) = used(&machine, port);
    let socket = &json["bound_by"][0];
    assert_eq!(
        (socket["state"].as_str(), socket["process"]["pid"].as_u64()),
        (Some("listening"), Some(std::process::id().into()))
    );
    assert_eq!(
        (socket["user"].as_str(), socket["local"].as_str()),
        (Some("root"), Some(&*format!("127.0.0.1:{port}")))
    );
    assert!(socket["process"]["started"].is_string() && json["reservation"].is_null());
    let about = format!("  bound by  pid {} (", std::process::id());
    assert!(text.out.contains(&about), "{text:?}");
    for part in ["is not reserved", ", user root, ", "started ", &format!("listening on 127.0.0.1:{port}")] {
        assert!(text.out.contains(part), "{part}: {text:?}");
    }
}

#[test]
fn a_socket_that_is_bound_and_does_not_listen() {
    let Some(machine) = machine("unlistening") else { return };
    let (_socket, port) = bound(false, 0);
    let (json, text) = used(&machine, port);
    assert_eq!(json["bound_by"][0]["state"], "bound");
    assert!(text.out.contains(&format!("bound to 127.0.0.1:{port}, not listening")), "{text:?}");
}

#[test]
fn each_member_of_a_group_that_shares_a_port() {
    let Some(machine) = machine("group") else { return };
    let (one, port) = bound(true, 0);
    let (other, _) = bound(true, port);
    one.listen(1).unwrap();
    other.listen(1).unwrap();
    let (json, text) = used(&machine, port);
    assert_eq!(json["bound_by"].as_array().unwrap().len(), 2, "{json}");
    assert_eq!(text.out.matches("listening on").count(), 2, "{text:?}");
}

#[test]
fn a_server_on_one_address_with_its_unit_and_command() {
    let Some(machine) = machine("address") else { return };
    machine.shell("ip address add 10.89.0.1/32 dev lo && ip link set lo up").ok();
    let unit = machine.cgroup.child("aardvark.service").unwrap();
    let mut server = process::Child::fork(|talk| {
        std::fs::write(unit.join("cgroup.procs"), "0").unwrap();
        let sockets = (UdpSocket::bind("10.89.0.1:53").unwrap(), TcpListener::bind("10.89.0.1:53").unwrap());
        talk.say(1);
        talk.try_hear();
        drop(sockets);
    });
    assert_eq!(server.talk.hear(), 1);
    let text = machine.portkeep(&["who", "53"]).ok().out;
    let process = format!("bound by  pid {} (", server.pid());
    for part in [
        "53/udp",
        "53/tcp",
        &*process,
        ", user root, aardvark.service, started ",
        ": bound on 10.89.0.1:53\n",
        ": listening on 10.89.0.1:53\n",
        std::env::current_exe().unwrap().to_str().unwrap().get(..40).unwrap(),
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn the_source_port_of_a_connection_with_its_peer() {
    let Some(machine) = machine("source") else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = listener.local_addr().unwrap();
    let client = TcpStream::connect(there).unwrap();
    let here = client.local_addr().unwrap();
    let (json, text) = used(&machine, here.port());
    let found = json["connections"].as_array().unwrap();
    let own = found.iter().find(|socket| socket["peer"] == there.to_string()).unwrap();
    assert_eq!(
        (own["state"].as_str(), own["process"]["pid"].as_u64()),
        (Some("connected"), Some(std::process::id().into()))
    );
    assert_eq!((json["connection_count"].as_u64(), json["ephemeral"].as_bool()), (Some(1), Some(true)));
    assert!(text.out.contains(&format!("connected, {here} to {there}")), "{text:?}");
    assert!(text.out.contains("  used by   pid ") && text.out.contains("outgoing connections may use it"), "{text:?}");
}

#[test]
fn who_shows_time_wait_and_its_remaining_seconds() {
    let Some(machine) = machine("time_wait") else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let port = client.local_addr().unwrap().port();
    let (accepted, _) = listener.accept().unwrap();
    drop(client);
    drop(accepted);
    eventually(|| who(&machine, port).0["connections"][0]["state"] == "TIME-WAIT");
    let (json, text) = used(&machine, port);
    assert!(json["connections"][0]["remaining"].as_u64().unwrap() <= 60, "{json}");
    assert!(text.out.contains("TIME-WAIT") && text.out.contains(" s left"), "{text:?}");
}

#[test]
fn sockets_of_the_kernel_itself() {
    let Some(machine) = machine("kernels") else { return };
    let made =
        machine.shell("ip link add vx type vxlan id 1 dstport 4789 dev lo && ip link set lo up && ip link set vx up");
    if made.code != Some(0) {
        portkeep_testkit::note(&format!("SKIPPED who::kernels: this kernel has no vxlan: {made:?}"));
        return;
    }
    let json = machine.portkeep(&["who", "4789/udp", "--json"]).ok().json();
    assert_eq!(
        (json[0]["bound_by"][0]["kernel"].as_bool(), &json[0]["bound_by"][0]["process"]),
        (Some(true), &Value::Null)
    );
    assert!(
        machine.portkeep(&["who", "4789"]).ok().out.contains("  bound by  the kernel itself: bound on 0.0.0.0:4789")
    );
}

#[test]
fn ports_that_a_program_only_holds() {
    let Some(machine) = machine("held") else { return };
    let mut held = machine.as_nobody(&[
        &machine.for_everybody(PORTKEEP),
        "acquire",
        "--count",
        "2",
        "--label",
        "builds",
        "--json",
    ]);
    let mut held = held.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(held.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let held = Ends(held);
    let of_acquire: Value = serde_json::from_str(&line).unwrap();
    let start = of_acquire["start"].as_u64().unwrap();
    let (json, text) = used(&machine, start + 1);
    let reservation = &json["reservation"];
    assert_eq!((reservation["enforcement"].as_str(), reservation["name"].as_str()), (Some("held"), Some("builds")));
    assert_eq!((&reservation["ports"], &reservation["since"]), (&of_acquire["ports"], &of_acquire["since"]));
    assert_eq!(reservation["owner"]["pid"], held.0.id());
    assert!(text.out.contains("not enforced by the kernel"), "{text:?}");
    assert_eq!(machine.portkeep(&["who", "builds", "--json"]).ok().json().as_array().unwrap().len(), 2);
}

#[test]
fn nat_rules_that_redirect_a_port() {
    let Some(machine) = machine("redirected") else { return };
    let nft = "nft add table ip t && nft 'add chain ip t c { type nat hook prerouting priority -100; }' && \
               nft 'add rule ip t c tcp dport { 22, 8000-8009 } dnat to 10.0.0.2:2222'";
    let made = machine.shell(nft);
    if made.code != Some(0) {
        portkeep_testkit::note(&format!("SKIPPED who::redirected: no nft, or no nf_tables in this kernel: {made:?}"));
        return;
    }
    let (json, text) = who(&machine, 22);
    assert_eq!(json["redirects"], serde_json::json!(["nftables ip t c: dnat to 10.0.0.2:2222"]));
    assert_eq!((text.code, json["privileged"].as_bool()), (Some(3), Some(true)), "the port itself is free: {text:?}");
    assert!(text.out.contains("a NAT rule redirects it"), "{text:?}");
    assert_eq!(who(&machine, 8009).0["redirects"].as_array().unwrap().len(), 1);
    assert_eq!(who(&machine, 80).0["redirects"], serde_json::json!([]));

    machine.shell("nft 'add rule ip t c udp dport 7005 redirect to :53'").ok();
    let rule = "  note      7005/udp: a NAT rule redirects it, so that another program answers: nftables ip t c: \
                redirect to port 53\n";
    let free = machine.portkeep(&["who", "7005"]);
    assert_eq!((free.code, free.out), (Some(3), format!("7005 is free\n{rule}")));
    let free = machine.portkeep(&["who", "7005,7006"]);
    assert_eq!((free.code, free.out), (Some(3), format!("7005,7006 are free\n{rule}")));
    let _listener = TcpListener::bind("127.0.0.1:7005").unwrap();
    let used = machine.portkeep(&["who", "7005", "7006", "80/udp"]).ok();
    let rule = rule.replace("7005/udp: ", "");
    assert!(used.out.contains(&format!("7005/udp is free\n{rule}")), "{used:?}");
    assert!(
        used.out.contains("7006 is free\n") && used.out.contains("80/udp is free\n  note      it is priv"),
        "{used:?}"
    );
    // Only root can see the rules.
    let nobody = machine.portkeep_as_nobody(&["who", "22"]);
    assert_eq!(nobody.code, Some(3));
    assert!(nobody.err.contains("note: only root can see NAT rules"), "{nobody:?}");
}

/// `iptables-save` of most distributions does not show these tables.
#[test]
fn nat_rules_in_the_tables_of_iptables_legacy() {
    let Some(machine) = machine("legacy") else { return };
    let made = machine.shell("iptables-legacy -t nat -A PREROUTING -p tcp --dport 2300 -j REDIRECT --to-ports 99");
    if made.code != Some(0) {
        portkeep_testkit::note(&format!("SKIPPED who::legacy: no iptables-legacy, or no such tables here: {made:?}"));
        return;
    }
    let (json, _) = who(&machine, 2300);
    assert_eq!(json["redirects"].as_array().map(Vec::len), Some(1), "{json:#}");
    assert_eq!(who(&machine, 80).0["redirects"], serde_json::json!([]));
}

#[test]
fn the_settings_that_concern_a_port() {
    let Some(machine) = machine("settings") else { return };
    machine.portkeep(&["up"]).ok();
    std::fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", "40000").unwrap();
    let (pool, text) = who(&machine, 61500);
    assert_eq!((text.code, text.out.lines().next()), (Some(3), Some("61500/tcp is free")));
    assert!(pool["pool"] == true && text.out.contains("  note      it is in the pool (61000-65535)"), "{text:?}");
    assert_eq!(
        (who(&machine, 40000).0["excluded"].as_bool(), who(&machine, 40001).0["excluded"].as_bool()),
        (Some(true), Some(false))
    );
    std::fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", "2000").unwrap();
    let excluded = machine.portkeep(&["who", "2000,2001"]).out;
    assert_eq!(excluded.matches("note").count(), 1, "{excluded}");
    assert!(excluded.contains("  note      2000: it is in ip_local_reserved_ports"), "{excluded}");
}

#[test]
fn ranges_lists_names_and_labels() {
    let Some(machine) = machine("lists") else { return };
    machine.portkeep(&["up"]).ok();
    let holding = machine.hold(&["--count", "3", "--label", "web"]);
    let listeners: Vec<_> = [8003, 8005].map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap()).into();
    let udp = UdpSocket::bind("127.0.0.1:8005").unwrap();
    let names = |words: &[&str]| -> Vec<String> {
        let json = machine.portkeep(&[&["who", "--json"], words].concat()).ok().json();
        json.as_array()
            .unwrap()
            .iter()
            .map(|one| format!("{}/{}", one["port"], one["transport"].as_str().unwrap()))
            .collect()
    };
    assert_eq!(names(&["8000-8100"]), ["8003/tcp", "8005/tcp", "8005/udp"]);
    assert_eq!(names(&["8000-8100/udp"]), ["8005/udp"]);
    assert_eq!(names(&["8003,8004/tcp"]), ["8003/tcp", "8004/tcp"]);
    assert_eq!(names(&["web"]).len(), 3);
    assert_eq!(names(&["web", "8003/tcp"]).len(), 4);
    let text = machine.portkeep(&["who", "8000-8100"]).ok().out;
    assert!(text.contains("8003/tcp is not reserved") && text.ends_with("\n99 more ports are free\n"), "{text}");
    let text = machine.portkeep(&["who", "web"]).ok().out;
    assert_eq!(text.matches("belongs to pid").count(), 1, "a reservation is described once: {text}");

    machine.portkeep(&["who", "no-such-name"]).fails(3, &["no reservation no-such-name"]);
    machine.portkeep(&["who", "80/sctp"]).fails(2, &["a transport is tcp, udp or tcp+udp"]);
    drop((listeners, udp));
    let free = machine.portkeep(&["who", "8000-8100"]);
    assert_eq!((free.code, free.out.as_str()), (Some(3), "8000-8100 are free\n"));
    holding.let_go();
}

#[test]
fn another_user_sees_all_but_the_process() {
    let Some(machine) = machine("user") else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let json = machine.portkeep_as_nobody(&["who", &port, "--json"]).ok().json();
    let socket = &json[0]["bound_by"][0];
    assert_eq!(
        (socket["user"].as_str(), &socket["process"], socket["kernel"].as_bool()),
        (Some("root"), &Value::Null, Some(false))
    );
    let text = machine.portkeep_as_nobody(&["who", &port]).ok();
    assert!(text.out.contains("a process of user root"), "{text:?}");
    assert!(text.err.contains("note: only root can see other users' processes"), "{text:?}");
}

#[test]
fn a_port_that_is_reserved_elsewhere_is_free_here() {
    let Some(machine) = machine("elsewhere") else { return };
    machine.portkeep(&["up"]).ok();
    let mut other = machine.program(&["unshare", "--net", PORTKEEP, "acquire", "--label", "inside"]);
    let mut other = other.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(other.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let other = Ends(other);
    let port: String = line.chars().take_while(char::is_ascii_digit).collect();
    let (json, text) = who(&machine, &port);
    assert_eq!((text.code, json["elsewhere"][0]["name"].as_str()), (Some(3), Some("inside")));
    let name = json["elsewhere"][0]["netns_name"].as_str().unwrap();
    let link = std::fs::read_link(format!("/proc/{}/ns/net", other.0.id())).unwrap();
    assert_eq!(name, link.to_str().unwrap(), "the name that lsns prints");
    assert!(text.out.contains(&format!("in the network namespace {name}, pid ")), "{text:?}");
}

/// When this is dropped, its input ends, and it is waited for.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn a_failed_request_names_the_holder_in_the_same_words() {
    let Some(machine) = machine("words") else { return };
    machine.portkeep(&["up"]).ok();
    let _agent = machine.agent(machine.command(&["agent"]));
    let (_socket, port) = bound(false, 0);
    let shown = format!("{port}/tcp is in use by pid {} (", std::process::id());
    let how = format!("bound to 127.0.0.1:{port}, not listening");
    let port = port.to_string();
    for words in [
        &["acquire", "--ports", &port][..],
        &["run", "--ports", &port, "--", "true"],
        &["persist", "add", "--name", "x", "--tcp", &port],
    ] {
        let said = machine.portkeep(words);
        assert!(said.code != Some(0) && said.err.contains(&shown) && said.err.contains(&how), "{words:?}: {said:?}");
    }
}

#[test]
fn a_hanging_agent_is_one_warning_and_the_kernel_answers() {
    let Some(machine) = machine("hangs") else { return };
    machine.portkeep(&["up"]).ok();
    let agent = machine.agent(machine.command(&["agent"]));
    machine.portkeep(&["persist", "add", "--name", "web", "--tcp", "8443", "--user", "daemon"]).ok();
    kill_process(Pid::from_child(&agent.0), Signal::STOP).unwrap();
    for words in [&["list"][..], &["list", "--json"], &["who", "8443"], &["who", "8443", "--json"]] {
        let said = machine.portkeep(words).ok();
        assert!(said.out.contains("8443"), "{said:?}");
        let warnings: Vec<&str> = said.err.lines().filter(|line| line.starts_with("warning: ")).collect();
        let [warning] = warnings[..] else { panic!("{said:?}") };
        for part in
            ["the agent does not answer (waited 2 s)", " are missing", "restart it (`systemctl restart portkeep`)"]
        {
            assert!(warning.contains(part), "{part}: {said:?}");
        }
    }

    // A request that waits for the agent.
    let mut asks = machine.command(&["acquire", "--ports", "9000"]);
    let asks = Running(asks.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let by = format!("9000/tcp is being requested by pid {} (portkeep)", asks.pid());
    eventually(|| machine.portkeep(&["who", "9000/tcp", "--json"]).json()[0]["reservation"]["state"] == "pending");
    let text = machine.portkeep(&["who", "9000/tcp"]).ok().out;
    assert!(text.starts_with(&format!("{by}; the request came ")), "{text}");
    machine.portkeep(&["acquire", "--ports", "9000"]).fails(1, &[&format!("{by}, requested ")]);
}

#[test]
fn a_command_line_is_cut_only_to_the_width_of_a_terminal() {
    let Some(machine) = machine("width") else { return };
    let long = "/none".repeat(40);
    let copy = machine.for_everybody(PORTKEEP);
    let mut held = machine.as_nobody(&[&copy, "acquire", "--hold", "--pin-dir", &long]);
    let mut held = held.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(held.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let _held = Running(held);
    let port = line.split(' ').next().unwrap();
    for words in [&["who", port][..], &["list"], &["list", "--columns", "command"]] {
        let text = machine.portkeep(words).ok().out;
        assert!(text.contains(&format!("{copy} acquire --hold --pin-dir {long}\n")), "{text}");
        let there = format!("stty cols 100; NO_COLOR=1 {PORTKEEP} {}", words.join(" "));
        let shown: Outcome = machine.program(&["script", "-qec", &there, "/dev/null"]).output().unwrap().into();
        let cut = shown.out.lines().filter(|line| line.ends_with("..."));
        let widths: Vec<usize> = cut.map(|line| line.chars().count()).collect();
        assert!(!widths.is_empty() && widths.iter().all(|width| *width == 100), "{shown:?}");
    }
}

#[test]
fn processes_that_a_command_of_run_has_left_behind() {
    let Some(machine) = machine("members") else { return };
    machine.portkeep(&["up"]).ok();
    let holding = machine.hold(&[]);
    assert!(machine.portkeep(&["list", "--json"]).ok().json()[0]["members"].is_null(), "its owner runs");
    holding.let_go();
    let daemon = "sleep 300 </dev/null >/dev/null 2>&1 & exit 0";
    machine.portkeep(&["run", "--", "sh", "-c", daemon]).ok();
    let list = machine.portkeep(&["list", "--json"]).ok().json();
    let [member] = &list[0]["members"].as_array().unwrap()[..] else { panic!("{list}") };
    assert_eq!((member["command"].as_str(), member["user"].as_str()), (Some("sleep 300"), Some("root")));
    let pid = member["pid"].as_i64().unwrap();
    let text = machine.portkeep(&["list"]).ok().out;
    assert!(text.contains(&format!("in its cgroup: pid {pid} (sleep)")), "{text}");
    let text = machine.portkeep(&["who", list[0]["ports"].as_str().unwrap()]).ok().out;
    assert!(text.contains(&format!("  members   pid {pid} (sleep) sleep 300\n")), "{text}");
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
    eventually(|| machine.portkeep(&["list", "--json"]).ok().json() == serde_json::json!([]));
}
