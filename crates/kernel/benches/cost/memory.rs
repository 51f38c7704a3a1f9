//! The memory of the maps. The kernel reports it in fdinfo (`memlock`); the figure is exact since Linux 6.4.

use portkeep::control;
use portkeep_core::defaults::POOL;
use portkeep_core::wire::AcquireRequest;
use portkeep_testkit::table::{Row, Table};

use crate::{Bench, cycle, sockets};

/// The pool of one namespace, all of its ports reserved in blocks of 64, one listener in each.
pub(crate) fn pool_in_use(bench: &Bench, table: &mut Table) {
    let before = bench.loaded.map_memory().expect("fdinfo");
    let held = bench.inside(|| {
        let blocks = POOL.count() / 64;
        let owner = sockets::tcp();
        for _ in 0..blocks {
            control::acquire(&owner, &AcquireRequest { count: 64, ..Default::default() }).expect("a block");
        }
        owner
    });
    let after = bench.loaded.map_memory().expect("fdinfo");
    table.push(Row::at_most(
        "KiB for one namespace and transport, its whole default pool reserved in blocks of 64",
        after.saturating_sub(before) as f64 / 1024.0,
        64.0,
    ));
    drop(held);
}

pub(crate) fn many_cycles(bench: &Bench, table: &mut Table) {
    let socket = bench.inside(sockets::tcp);
    // Next-fit passes through the whole pool: afterwards the table contains every word of the pool.
    (0..5000).for_each(|_| cycle(&socket, 64).expect("a cycle"));
    let before = bench.loaded.map_memory().expect("fdinfo");
    (0..1_000_000).for_each(|_| cycle(&socket, 20).expect("a cycle"));
    let after = bench.loaded.map_memory().expect("fdinfo");
    table.push(Row::at_most(
        "bytes that 1,000,000 cycles of acquire and release left behind",
        after.saturating_sub(before) as f64,
        0.0,
    ));
}
