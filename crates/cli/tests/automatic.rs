//! Automatic choices beside Portkeep: bind to port 0, connect, listen and send without a bind. None of them fails
//! because of Portkeep, and none gives a reserved port (N1, N3, R3). The ephemeral range is either as wide as possible
//! or the pool itself. The tests run in the namespace of `up` and in a new one, with an agent and without.

use std::{
    env, fs,
    net::{SocketAddr, TcpListener, UdpSocket},
    process::{self, Stdio},
    time::Duration,
};

use portkeep_core::{
    PortRange, PortSet,
    wire::{self, AcquireRequest},
};
use portkeep_testkit::{
    eventually, kernel_or_skip, loopback_up,
    machine::{Machine, answer},
    new_namespace,
    process::Child,
    sockets::{acquire, bind, port, tcp, tcp6, udp, udp6},
};
use socket2::Socket;

/// For a helper: the ports that it may get, in which network namespace, and whether something is reserved there.
const CHOOSE: &str = "PORTKEEP_TEST_CHOOSE";
const TIMES: usize = 10_000;

/// Choices of each kind: how many failed, and how many gave a reserved port or one outside the range.
#[derive(Default)]
struct Tally {
    failed: [u64; 5],
    wrong: u64,
}

fn set(name: &str, value: &str) {
    fs::write(format!("/proc/sys/net/ipv4/{name}"), value).unwrap();
}

/// Wildcard reservations of this process, entered in the sysctl when this returns.
fn reserve() -> (Vec<Socket>, PortSet) {
    let request = AcquireRequest { count: 64, flags: wire::BOTH, ..Default::default() };
    let (mut owners, mut blocks) = (Vec::new(), PortSet::default());
    for _ in 0..4 {
        let owner = tcp();
        let grant = acquire(&owner, &request).unwrap();
        blocks.insert(PortRange::new(grant.start, grant.count).unwrap());
        owners.push(owner);
    }
    eventually(|| {
        let entered = fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap();
        blocks.minus(&entered.trim().parse().unwrap()).is_empty()
    });
    (owners, blocks)
}

/// The outsider.
fn choose(range: PortRange, reserved: &PortSet) -> Tally {
    // Outside every range here.
    let to = SocketAddr::from(([127, 0, 0, 1], 900));
    let (listener, _sink) = (TcpListener::bind(to).unwrap(), UdpSocket::bind(to).unwrap());
    let mut tally = Tally::default();
    let mut note = |kind: usize, socket: &Socket, result: std::io::Result<()>| {
        let right = range.contains(port(socket)) && !reserved.contains(port(socket));
        tally.failed[kind] += u64::from(result.is_err());
        tally.wrong += u64::from(result.is_ok() && !right);
    };
    for _ in 0..TIMES {
        for (kind, socket) in [tcp(), udp6()].into_iter().enumerate() {
            note(kind, &socket, bind(&socket, 0));
        }
        let client = tcp();
        // Without TIME_WAIT, which would soon fill the range.
        client.set_linger(Some(Duration::ZERO)).unwrap();
        let connected = client.connect(&to.into());
        let accepted = connected.is_ok().then(|| listener.accept().unwrap());
        note(2, &client, connected);
        drop((client, accepted));
        let server = tcp6();
        note(3, &server, server.listen(1));
        let sender = udp();
        note(4, &sender, sender.send_to(b"x", &to.into()).map(drop));
    }
    tally
}

/// Started by the tests in the machine's network namespace. It makes a new one if its variable says so.
#[test]
#[ignore = "plays an outsider for the other tests"]
fn helper_chooses() {
    let Ok(what) = env::var(CHOOSE) else { return };
    let words: Vec<&str> = what.split(' ').collect();
    let &[first, last, place, reserved] = words.as_slice() else { panic!("{what}") };
    let range = PortRange::inclusive(first.parse().unwrap(), last.parse().unwrap()).unwrap();
    if place == "new" {
        new_namespace();
        set("ip_local_port_range", &format!("{first} {last}"));
    } else {
        loopback_up().unwrap();
    }
    let (owners, blocks) = if reserved == "reserved" { reserve() } else { Default::default() };
    let mut outsider = Child::fork(|talk| {
        let Tally { failed, wrong } = choose(range, &blocks);
        failed.into_iter().chain([wrong]).for_each(|number| talk.say(number));
    });
    let counts: Vec<u64> = (0..6).map(|_| outsider.talk.hear()).collect();
    outsider.join();
    drop(owners);
    println!("\nhelper: {counts:?}");
}

fn chosen(machine: &Machine, range: PortRange, place: &str, reserved: &str) -> String {
    let helper = env::current_exe().unwrap();
    let words = [helper.to_str().unwrap(), "--exact", "helper_chooses", "--ignored", "--nocapture"];
    let mut command = machine.program(&words);
    command.env(CHOOSE, format!("{} {} {place} {reserved}", range.start(), range.last()));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{place}, {reserved}: {output:?}");
    answer(&String::from_utf8_lossy(&output.stdout))
}

/// It is killed when this is dropped.
struct Agent(process::Child);

impl Agent {
    fn start(machine: &Machine) -> Self {
        let agent = Self(machine.command(&["agent"]).stderr(Stdio::null()).spawn().unwrap());
        eventually(|| machine.portkeep(&["status", "--json"]).json()["agent_answers"] == true);
        agent
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn beside_portkeep(name: &str, range: PortRange) {
    if !kernel_or_skip(&format!("automatic::{name}")) {
        return;
    }
    let machine = Machine::new(env!("CARGO_BIN_EXE_portkeep"), name);
    let script = format!("echo {} {} > /proc/sys/net/ipv4/ip_local_port_range", range.start(), range.last());
    assert!(machine.program(&["sh", "-c", &script]).status().unwrap().success());
    let without = chosen(&machine, range, "here", "free");
    assert!(without.ends_with(" 0]"), "the test is wrong: {without}");

    machine.portkeep(&["up"]).ok();
    assert_eq!(chosen(&machine, range, "here", "reserved"), without, "without an agent");
    assert_eq!(chosen(&machine, range, "new", "free"), without, "without an agent, in a new namespace");
    let agent = Agent::start(&machine);
    for (place, reserved) in [("here", "reserved"), ("new", "free"), ("new", "reserved")] {
        assert_eq!(chosen(&machine, range, place, reserved), without, "with an agent, {place}, {reserved}");
    }
    drop(agent);
    machine.portkeep(&["down"]).ok();
}

#[test]
fn n1_automatic_choices_from_all_ports() {
    beside_portkeep("wide", PortRange::inclusive(1024, 65535).unwrap());
}

#[test]
fn n1_automatic_choices_from_the_pool_alone() {
    beside_portkeep("pool_alone", PortRange::inclusive(61000, 65535).unwrap());
}
