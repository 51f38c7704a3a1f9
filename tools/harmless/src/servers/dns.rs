//! unbound and dnsmasq, which bind a port of their own choice for each query they pass on, the pool's among them.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, UdpSocket},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use portkeep_core::defaults::POOL;

use super::scenario::{Scenario, Surroundings, outcome};
use crate::{server::Server, suite::Outcomes};

pub(super) const UNBOUND: Scenario = Scenario {
    name: "unbound, source ports at random",
    programs: &["unbound", "dnsmasq"],
    packages: "unbound dnsmasq-base",
    play: |surroundings| {
        let mut unbound = surroundings.command("unbound");
        unbound.args(["-d", "-c"]).arg(surroundings.configure("unbound.conf", include_str!("unbound.conf"))?);
        resolve(surroundings, unbound)
    },
};

pub(super) const DNSMASQ: Scenario = Scenario {
    name: "dnsmasq with min-port 1024, source ports at random",
    programs: &["dnsmasq"],
    packages: "dnsmasq-base",
    play: |surroundings| {
        let mut forwarder = dnsmasq(surroundings, RESOLVER);
        // If a lowest port is given, dnsmasq chooses the port itself; otherwise it lets the kernel choose.
        forwarder.args(["--min-port=1024", "--cache-size=0", &format!("--server=127.0.0.1#{AUTHORITY}")]);
        resolve(surroundings, forwarder)
    },
};

/// The server that knows the answers, and the one under test, which asks it.
const AUTHORITY: u16 = 5300;
const RESOLVER: u16 = 5301;
const ANSWER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
/// Some percent of them come from ports of the pool.
const QUERIES: u16 = 600;

fn dnsmasq(surroundings: &Surroundings, port: u16) -> Command {
    let mut command = surroundings.command("dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"]);
    command.args(["--listen-address=127.0.0.1", "--bind-interfaces", "--pid-file", &format!("--port={port}")]);
    command
}

fn resolve(surroundings: &Surroundings, resolver: Command) -> Result<Outcomes> {
    let log = surroundings.path("queries.log");
    let mut authority = dnsmasq(surroundings, AUTHORITY);
    authority.args([format!("--address=/example.com/{ANSWER}"), format!("--log-facility={}", log.display())]);
    authority.arg("--log-queries=extra");
    let _authority: Server = surroundings.serve(authority, AUTHORITY)?;
    let _resolver = surroundings.serve(resolver, RESOLVER)?;

    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut outcomes = Outcomes::new();
    for number in 0..QUERIES {
        let answered = ask(&socket, number);
        let failed = answered.is_err();
        outcomes.insert(format!("query {number}"), outcome(answered));
        if failed {
            break;
        }
    }
    outcomes
        .insert("the source ports are spread, also over the pool".into(), outcome(sources(&fs::read_to_string(log)?)));
    Ok(outcomes)
}

/// A name that no cache knows, and its address.
fn ask(socket: &UdpSocket, number: u16) -> Result<()> {
    let mut query = number.to_be_bytes().to_vec();
    // Recursion desired; one question.
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in [&format!("q{number}"), "example", "com"] {
        query.push(u8::try_from(label.len())?);
        query.extend(label.as_bytes());
    }
    // The root; type A, class IN.
    query.extend([0, 0, 1, 0, 1]);
    socket.send_to(&query, (Ipv4Addr::LOCALHOST, RESOLVER))?;
    let mut reply = [0; 512];
    let length = socket.recv(&mut reply).context("no answer")?;
    let reply = &reply[..length];
    let right = reply.starts_with(&number.to_be_bytes()) && reply[3] & 15 == 0 && reply.ends_with(&ANSWER.octets());
    ensure!(right, "the answer is {reply:?}");
    Ok(())
}

/// The authority's log has lines with `127.0.0.1/SOURCE query[A]`.
fn sources(log: &str) -> Result<()> {
    let queries = log.lines().filter_map(|line| line.split_once(" query[A] ")?.0.rsplit_once('/')?.1.parse().ok());
    let ports: BTreeSet<u16> = queries.collect();
    let of_pool = ports.iter().filter(|port| POOL.contains(**port)).count();
    ensure!(ports.len() > usize::from(QUERIES) / 2 && of_pool > 0, "{} ports, {of_pool} of the pool", ports.len());
    Ok(())
}
