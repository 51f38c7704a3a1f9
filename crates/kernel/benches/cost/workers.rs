//! Several processes at once.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    time::Instant,
};

use portkeep_testkit::table::{Row, Table};

use crate::{Bench, cycle, sockets};

const CYCLES: usize = 40_000;

/// The work of each process: wait for the start, do the cycles, report how long they took.
pub(crate) fn work(_job: &str) {
    let socket = sockets::tcp();
    println!("ready");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("the start");
    let begun = Instant::now();
    (0..CYCLES).for_each(|_| cycle(&socket, 4).expect("a cycle"));
    println!("{}", begun.elapsed().as_nanos());
}

/// Cycles a second of `count` processes together, and the ratio of the longest time of a process to the shortest.
fn rate(count: usize) -> (f64, f64) {
    let mut children: Vec<(Child, BufReader<std::process::ChildStdout>)> = (0..count)
        .map(|_| {
            let mut child = Command::new(std::env::current_exe().expect("this program"))
                .arg("worker")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("a worker");
            let mut lines = BufReader::new(child.stdout.take().expect("its output"));
            lines.read_line(&mut String::new()).expect("ready");
            (child, lines)
        })
        .collect();
    let begun = Instant::now();
    for (child, _) in &mut children {
        child.stdin.take().expect("its input").write_all(b"go\n").expect("the start");
    }
    let times: Vec<f64> = children
        .iter_mut()
        .map(|(_, lines)| {
            let mut line = String::new();
            lines.read_line(&mut line).expect("the time");
            line.trim().parse().expect("a number")
        })
        .collect();
    let elapsed = begun.elapsed().as_secs_f64();
    for (mut child, _) in children {
        assert!(child.wait().expect("its end").success());
    }
    let longest = times.iter().copied().fold(0.0, f64::max);
    let shortest = times.iter().copied().fold(f64::INFINITY, f64::min);
    ((count * CYCLES) as f64 / elapsed, longest / shortest)
}

pub(crate) fn throughput(bench: &Bench, table: &mut Table) {
    let ((one, _), (eight, spread)) = bench.inside(|| (rate(1), rate(8)));
    table.push(Row::at_most("throughput of one process / of eight together", one / eight, 1.0));
    table.push(Row::info("the slowest of the eight / the fastest", spread));
    table.note(format!("acquire + query + release: {one:.0} a second from one process, {eight:.0} from eight"));
    let maps = bench.loaded.maps().expect("the maps");
    let lost = maps.words().flatten().map(|(_, word)| word.reserved.count_ones()).sum::<u32>();
    table.push(Row::at_most("ports lost in it", lost.into(), 0.0));
}
