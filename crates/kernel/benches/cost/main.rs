//! The cost of Portkeep, as ratios of things measured in the same run.
//!
//! ```text
//! cargo bench -p portkeep-kernel           print the table
//! cargo bench -p portkeep-kernel -- --write   and put it into docs/internals/benchmarks.md
//! ```
//!
//! Must run as root. Like the tests it attaches to a cgroup of its own and nowhere else. "Outside" means sockets that
//! were made before this process moved into that cgroup: the programs never see them.

mod confirmation;
mod memory;
mod paired;
mod ranges;
mod sockets;
mod workers;

use std::{io, time::Instant};

use portkeep::control;
use portkeep_core::{PortRange, Token, wire::AcquireRequest};
use portkeep_kernel::{Loaded, Settings};
use portkeep_testkit::{
    TestCgroup, new_namespace,
    table::{Row, Table},
};
use socket2::{SockAddr, Socket};

use crate::{
    paired::{median_ns, ratio},
    sockets::{any, any6, connection, dual_stack, tcp},
};

const ROUNDS: usize = 31;

fn cycle(socket: &Socket, count: u16) -> io::Result<()> {
    control::acquire(socket, &AcquireRequest { count, ..Default::default() })?;
    let grant = control::granted(socket)?;
    control::release(socket, Token::new(grant.token).ok_or(io::ErrorKind::InvalidData)?)
}

/// A second instance, so that a benchmark can choose its pool.
struct Bench {
    cgroup: TestCgroup,
    loaded: Loaded,
}

impl Bench {
    fn new(pool: PortRange) -> Self {
        let cgroup = TestCgroup::new("bench").expect("a cgroup");
        let mut loaded = Loaded::load().expect("loading");
        let mut settings = Settings::default();
        settings.pool = Some(pool);
        loaded.attach(&settings, cgroup.path(), cgroup.path()).expect("attaching");
        Self { cgroup, loaded }
    }

    fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        self.cgroup.enter(std::process::id()).expect("moving in");
        let result = work();
        sockets::leave_cgroup();
        result
    }
}

const HEAD: &str = "# What it costs\n\nMade by `cargo bench -p portkeep-kernel -- --write` as root. Read the ratios: both sides of \
                    each were measured in turns in one run. \"Inside\" are sockets that the programs see, \"outside\" those \
                    that they do not.";

fn main() {
    if let Some(job) = std::env::args().nth(1).filter(|arg| arg.starts_with("worker")) {
        return workers::work(&job);
    }
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: the benchmarks need root to load the BPF programs");
        return;
    }
    new_namespace();
    sockets::leave_cgroup();
    let mut table = Table::default();
    let wide = PortRange::inclusive(1024, 65535).expect("a range");
    let mut bench = Bench::new(portkeep_core::defaults::POOL);
    calls(&bench, &mut table);
    others(&bench, &mut table);
    ranges::measure(&mut bench, &mut table);
    workers::throughput(&bench, &mut table);
    fragmented(&bench, &mut table);
    confirmation::specific(&mut bench, &mut table);
    drop(bench);
    memory::pool_in_use(&Bench::new(portkeep_core::defaults::POOL), &mut table);
    growth(&Bench::new(wide), &mut table);
    memory::many_cycles(&Bench::new(portkeep_core::defaults::POOL), &mut table);
    print!("{table}");
    if std::env::args().any(|arg| arg == "--write") {
        table.write("cost", HEAD).expect("writing docs/internals/benchmarks.md");
    }
}

fn calls(bench: &Bench, table: &mut Table) {
    let outside = tcp();
    let inside = bench.inside(tcp);
    let option = || outside.set_tcp_nodelay(true).unwrap();
    let twenty = || cycle(&inside, 20).unwrap();
    let bind_twenty = |make: fn() -> Socket, address: &SockAddr| {
        let held: Vec<_> = (0..20)
            .map(|_| {
                let socket = make();
                socket.bind(address).unwrap();
                socket
            })
            .collect();
        drop(held);
    };
    // A reservation covers both families, and so does a dual-stack socket.
    let dual = paired::measure(ROUNDS, 200, twenty, || bind_twenty(dual_stack, &any6(0)));
    table.push(
        Row::at_most(
            "acquire + query + release of 20 ports / binding and closing 20 dual-stack sockets",
            dual.0 / dual.1,
            1.0 / 60.0,
        )
        .missed_because(
            "the budget is from a machine where sockets cost four times as much and the programs three times",
        ),
    );
    let v4 = paired::measure(ROUNDS, 200, twenty, || bind_twenty(tcp, &any(0)));
    table.push(Row::info("the same / binding and closing 20 IPv4 sockets", v4.0 / v4.1));
    let (cycle_ns, option_ns) = paired::measure(ROUNDS, 2000, twenty, option);
    table.push(
        Row::at_most("acquire + query + release of 20 ports / one bare setsockopt", cycle_ns / option_ns, 7.0)
            .missed_because(
                "three socket options with a program on the hook cost some five bare ones (see their rows); the programs' \
                 own work is the rest",
            ),
    );
    table
        .note(format!("one bare setsockopt {option_ns:.0} ns; acquire + query + release of 20 ports {cycle_ns:.0} ns"));
    let before = sockets::voluntary_switches();
    (0..10_000).for_each(|_| twenty());
    table.push(Row::at_most(
        "voluntary context switches in 10,000 such cycles",
        (sockets::voluntary_switches() - before) as f64,
        0.0,
    ));
    table.push(Row::at_most(
        "acquire + query + release of 4,096 ports / of 20",
        ratio(ROUNDS, 500, || cycle(&inside, 4096).unwrap(), twenty),
        4.0,
    )
    .missed_because(
        "each of the 64 words is claimed and given back by itself, some 85 ns; the budget is from a machine where three \
         system calls, the greater part of a short cycle, cost three times as much",
    ));
}

/// The figures with any program on the hook: about 1.5 and 1.75 with a program that does nothing.
const COPIES: &str = "the kernel itself copies the option for the program, whatever the program does";

/// The cost for programs that do not use reservations.
fn others(bench: &Bench, table: &mut Table) {
    let bind = |port: u16| {
        let socket = tcp();
        socket.bind(&any(port)).unwrap();
    };
    let in_and_out = |iterations: usize, work: &dyn Fn()| {
        paired::alternate(
            ROUNDS,
            iterations,
            || bench.cgroup.enter(std::process::id()).expect("moving in"),
            work,
            sockets::leave_cgroup,
            work,
        )
    };
    let (inside, outside) = in_and_out(1000, &|| bind(20_000));
    table.push(
        Row::at_most("socket + bind of an unreserved port + close, inside / outside", inside / outside, 1.03)
            .missed_because(
                "the kernel calls three programs that find nothing to do; the cheaper its own work, the more that weighs",
            ),
    );
    table.note(format!("socket + bind + close outside: {outside:.0} ns"));
    let (inside, outside) = in_and_out(1000, &|| bind(61_500));
    table.push(
        Row::at_most("socket + bind of an unreserved pool port + close, inside / outside", inside / outside, 1.10)
            .missed_because(
                "binds of pool ports are counted (N2): besides, the word of the port is looked up and changed at bind and at \
                 close",
            ),
    );
    let (inside, outside) = in_and_out(200, &|| drop(connection()));
    table.push(Row::info("TCP connect + accept + close, inside / outside", inside / outside));
    let (mut a, mut b) = bench.inside(connection);
    let (mut c, mut d) = connection();
    table.push(Row::info(
        "sending and receiving 64 KiB, inside / outside",
        ratio(ROUNDS, 200, || sockets::transfer(&mut a, &mut b), || sockets::transfer(&mut c, &mut d)),
    ));
    let inside = bench.inside(tcp);
    let outside = tcp();
    let set = |socket: &Socket| socket.set_tcp_nodelay(true).unwrap();
    let get = |socket: &Socket| assert!(socket.tcp_nodelay().is_ok());
    let (tax, bare) = paired::measure(ROUNDS, 5000, || set(&inside), || set(&outside));
    table.push(Row::at_most("setsockopt(TCP_NODELAY), inside / outside", tax / bare, 1.7).missed_because(COPIES));
    table.note(format!("setsockopt inside {tax:.0} ns, outside {bare:.0} ns"));
    let (tax, bare) = paired::measure(ROUNDS, 5000, || get(&inside), || get(&outside));
    table.push(Row::at_most("getsockopt(TCP_NODELAY), inside / outside", tax / bare, 2.0).missed_because(COPIES));
    table.note(format!("getsockopt inside {tax:.0} ns, outside {bare:.0} ns"));

    let owner = bench.inside(tcp);
    control::acquire(&owner, &AcquireRequest { count: 1, flags: portkeep_core::wire::STRICT, ..Default::default() })
        .unwrap();
    let port = control::granted(&owner).unwrap().start;
    let refused = || {
        let socket = tcp();
        assert!(socket.bind(&any(port)).is_err());
    };
    let ratio = bench.inside(|| ratio(ROUNDS, 1000, refused, || bind(20_000)));
    table.push(Row::at_most("socket + refused bind + close / socket + bind + close", ratio, 1.0));
}

/// Every second port is in use: no two consecutive ports are vacant.
fn fragmented(bench: &Bench, table: &mut Table) {
    let pool = portkeep_core::defaults::POOL;
    let held = bench.inside(|| sockets::acquire_singles(pool.count().into()));
    for (socket, grant) in held.iter().filter(|(_, grant)| grant.start % 2 == 1) {
        control::release(socket, Token::new(grant.token).unwrap()).unwrap();
    }
    let asker = bench.inside(tcp);
    let request = AcquireRequest { count: 2, ..Default::default() };
    let ns = median_ns(ROUNDS, 100, || assert!(control::acquire(&asker, &request).is_err()));
    table.push(Row::at_most("wildcard request that a fragmented pool cannot serve, us", ns / 1000.0, 50.0));
}

/// The cost of the next reservation, with no others and with 10,000 others in force.
fn growth(bench: &Bench, table: &mut Table) {
    let socket = bench.inside(tcp);
    let few = median_ns(ROUNDS, 2000, || cycle(&socket, 20).unwrap());
    let begun = Instant::now();
    let held = bench.inside(|| sockets::acquire_singles(10_000));
    table.note(format!("10,000 reservations acquired in {:.0} ms", begun.elapsed().as_secs_f64() * 1000.0));
    let many = median_ns(ROUNDS, 2000, || cycle(&socket, 20).unwrap());
    table.push(Row::at_most("acquire + query + release with 10,000 live reservations / with none", many / few, 1.5));
    drop(held);
    let left = bench.loaded.maps().unwrap().reservations().count();
    table.push(Row::at_most("reservations left after closing their sockets", left as f64, 0.0));
}
