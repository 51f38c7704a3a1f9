//! Servers under load, without kernel enforcement and with it in turns. Both servers run all the time, and the program
//! that loads a server is in the same cgroup as the server.

mod bench;
mod nginx;
mod redis;

use std::path::Path;

use anyhow::Result;

use portkeep_testkit::places::Places;

use bench::Figure;
pub(super) use bench::Unit;

/// A figure on both sides, one for each turn.
pub(super) struct Load {
    pub(super) what: String,
    pub(super) unit: Unit,
    pub(super) without: Vec<f64>,
    pub(super) with: Vec<f64>,
}

pub(super) fn measure(places: &Places, folder: &Path, short: bool) -> Result<Vec<Load>> {
    let (turns, seconds) = if short { (3, 1) } else { (21, 1) };
    let mut loads = Vec::new();
    for start in [nginx::start, redis::start] {
        let (Some(without), Some(with)) = (start(places, false, folder)?, start(places, true, folder)?) else {
            continue;
        };
        let mut collected: Vec<Load> = Vec::new();
        for turn in 0..turns {
            // Neither side is always the first.
            for side in [turn % 2 == 0, turn % 2 != 0] {
                let bench = if side { &with } else { &without };
                collect(&mut collected, side, bench.turn(places.cgroup(side).path(), seconds)?);
            }
        }
        loads.extend(collected);
    }
    Ok(loads)
}

fn collect(loads: &mut Vec<Load>, with: bool, figures: Vec<Figure>) {
    for Figure { what, unit, value } in figures {
        let index = loads.iter().position(|load| load.what == what && load.unit == unit).unwrap_or_else(|| {
            loads.push(Load { what, unit, without: Vec::new(), with: Vec::new() });
            loads.len() - 1
        });
        let load = &mut loads[index];
        if with { &mut load.with } else { &mut load.without }.push(value);
    }
}
