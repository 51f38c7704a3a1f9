//! How long a block on five hosts takes, as a user sees it. The command is at the table in docs/internals/fleet.md.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use portkeep_testkit::report::{machine, put};

use crate::world::{FLEET, Fleet};

const WRITE: &str = "PORTKEEP_WRITE_TABLES";
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/internals/fleet.md");
const TIMES: usize = 40;
const BUDGET: f64 = 50.0;

/// The median and the 95th percentile of 100 measurements, in milliseconds.
fn spread(mut once: impl FnMut() -> Duration) -> [f64; 2] {
    let mut times: Vec<f64> = (0..TIMES).map(|_| once().as_secs_f64() * 1000.0).collect();
    times.sort_by(f64::total_cmp);
    [times[TIMES / 2], times[TIMES * 95 / 100]]
}

/// One write to etcd over its gateway, on a connection that stays.
fn write(stream: &mut BufReader<TcpStream>) -> Duration {
    let body = r#"{"key":"L21lYXN1cmU=","value":"MQ=="}"#;
    let began = Instant::now();
    let request = format!("POST /v3/kv/put HTTP/1.1\r\nHost: etcd\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.get_mut().write_all(request.as_bytes()).unwrap();
    let mut length = 0;
    for line in stream.by_ref().lines() {
        let line = line.unwrap().to_lowercase();
        if line.is_empty() {
            break;
        }
        length = line.strip_prefix("content-length: ").map_or(length, |length| length.parse().unwrap());
    }
    stream.read_exact(&mut vec![0; length]).unwrap();
    began.elapsed()
}

/// The time until the first line of its output.
fn first_line(command: &mut Command) -> Duration {
    let began = Instant::now();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let elapsed = began.elapsed();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success() && !line.is_empty(), "{line}");
    elapsed
}

#[test]
#[ignore = "it measures"]
fn measure_a_block_on_five_hosts() {
    let Some(fleet) = Fleet::start("measure", 3, &["a", "b", "c", "d", "e"]) else { return };
    let member = &fleet.cluster.members[0];
    let configuration = fleet.configuration("a").display().to_string();
    let there = |words: &[&str]| member.namespace.command(&[&[FLEET, "--config", &configuration], words].concat());
    let block = spread(|| {
        let elapsed = first_line(&mut there(&["acquire", "--hosts", "a,b,c,d,e", "--count", "2"]));
        // All hosts are on the processors of this machine: the end of a job would slow down the next one.
        fleet.is_at_rest();
        elapsed
    });
    let nothing = spread(|| first_line(&mut there(&["--version"])));
    let connect = || {
        member.namespace.enter();
        TcpStream::connect((member.address, 2379)).unwrap()
    };
    let mut stream = BufReader::new(thread::scope(|scope| scope.spawn(connect).join().unwrap()));
    let one = spread(|| write(&mut stream));
    let verdict = if block[0] < BUDGET { "kept".into() } else { format!("MISSED, {:.1} writes", block[0] / one[0]) };
    let table = format!(
        "{TIMES} times each, on {}:\n\n\
         | | median | 95 of 100 | budget |\n| --- | --- | --- | --- |\n\
         | a block on five hosts, from the start of the command to its output | {:.1} ms | {:.1} ms | \
         under {BUDGET} ms: {verdict} |\n\
         | of this, the start of the command | {:.1} ms | {:.1} ms | |\n\
         | one write to etcd, to compare | {:.1} ms | {:.1} ms | |\n",
        machine(),
        block[0],
        block[1],
        nothing[0],
        nothing[1],
        one[0],
        one[1]
    );
    println!("{table}");
    if std::env::var_os(WRITE).is_some() {
        put(Path::new(PAGE), "block", &table).unwrap();
    }
}
