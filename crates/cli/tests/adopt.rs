//! `adopt`: from nothing to reserved ports, with real listeners.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, UdpSocket},
    process::Stdio,
};

use portkeep_testkit::{
    kernel_or_skip,
    machine::{self, Machine, Running},
};

/// The sockets of a helper: transports and ports.
const LISTEN: &str = "PORTKEEP_TEST_LISTEN";

/// A process that listens, in a cgroup of this name.
fn listens(machine: &Machine, unit: &str, what: &str) -> Running {
    let helper = std::env::current_exe().unwrap();
    let words = [helper.to_str().unwrap(), "--exact", "helper_listens", "--ignored", "--nocapture"];
    let mut child =
        machine.program(&words).env(LISTEN, what).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(out.any(|line| line.contains("helper: ready")), "it listens");
    let folder = machine.cgroup.path().join(unit);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("cgroup.procs"), child.id().to_string()).unwrap();
    Running(child)
}

#[test]
fn services_that_run_have_their_ports_in_force() {
    if !kernel_or_skip("adopt::services") {
        return;
    }
    let machine = Machine::new(env!("CARGO_BIN_EXE_portkeep"), "adopt");
    machine.portkeep(&["up"]).ok();
    let web = listens(&machine, "web.service", "tcp 8080 tcp 8082 tcp 8443 udp 8443");
    let by_hand = listens(&machine, "session-1.scope", "tcp 9000");
    let client = listens(&machine, "client.service", "udp 40000");
    let adopted = machine.portkeep(&["adopt"]).ok();
    for part in [
        "ports.d/web.toml\n",
        "name = \"web\"",
        "name = \"web-tcp\"",
        "tcp = \"8080,8082\"",
        "unit = \"web.service\"",
        "around = true",
        &format!("# 8080/tcp pid {} (", web.0.id()),
        "# left out: 9000/tcp: pid ",
        "session-1.scope is no service of the system",
        "# left out: 40000/udp: pid ",
        "the kernel has probably chosen it",
    ] {
        assert!(adopted.out.contains(part), "{part}: {adopted:?}");
    }
    assert!(!adopted.out.contains("client.toml") && adopted.err.contains("nothing is changed"), "{adopted:?}");
    let folder = machine.folder.path().join("root/etc/portkeep/ports.d");
    assert!(!folder.exists());
    let only = machine.portkeep(&["adopt", "other"]);
    assert_eq!((only.code, only.out.as_str()), (Some(3), ""));

    machine.portkeep(&["adopt", "--write"]).ok();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    machine.portkeep(&["check"]).ok();
    let _agent = machine.agent(machine.command(&["agent"]));
    let declared = machine.portkeep(&["persist", "list", "--json"]).ok().json();
    let states = declared.as_array().unwrap().iter().map(|info| (info["state"].clone(), info["transports"].clone()));
    assert!(states.clone().count() >= 2 && states.clone().all(|(state, _)| state == "active"), "{declared}");
    // It bound its ports before they were reserved.
    let list = machine.portkeep(&["list", "--json"]).ok().json();
    for (ports, count) in [("8443", 2), ("8080,8082", 2)] {
        let info = list.as_array().unwrap().iter().find(|info| info["ports"] == ports).unwrap();
        assert_eq!(info["bound"], count, "{info}");
        let by = info["bound_by"].as_array().unwrap();
        let its = by.iter().filter(|socket| socket["process"]["pid"] == web.0.id());
        assert_eq!(its.count(), count, "{info}");
    }
    // The service may stop now: its ports are kept.
    drop(web);
    assert_eq!(machine.outsider_binds("tcp", 8080), "AddrInUse");
    assert_eq!(machine.outsider_binds("udp", 8443), "AddrInUse");
    let _web = listens(&machine, "other.service", "tcp 8081");
    let again = machine.portkeep(&["adopt", "--write"]).ok();
    assert!(again.out.contains("other.toml") && !again.out.contains("web.toml"), "{again:?}");
    drop((by_hand, client));
}

#[test]
#[ignore = "plays a service for the other test"]
fn helper_listens() {
    let Ok(what) = std::env::var(LISTEN) else { return };
    let words: Vec<&str> = what.split(' ').collect();
    let (mut tcp, mut udp) = (Vec::new(), Vec::new());
    for pair in words.chunks(2) {
        let port: u16 = pair[1].parse().unwrap();
        match pair[0] {
            "tcp" => tcp.push(TcpListener::bind(("127.0.0.1", port)).unwrap()),
            _ => udp.push(UdpSocket::bind(("127.0.0.1", port)).unwrap()),
        }
    }
    println!("\nhelper: ready");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
#[ignore = "plays an outsider for the other test"]
fn helper_binds() {
    machine::help();
}
