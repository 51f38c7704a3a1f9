//! redis under redis-benchmark, over connections that stay and with one for
//! each request.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use super::bench::{Bench, Figure, Unit};
use crate::server::{Server, installed};
use portkeep_testkit::places::{Places, inside};

struct Redis {
    _server: Server,
    port: u16,
}

pub(super) fn start(places: &Places, with: bool, folder: &Path) -> Result<Option<Box<dyn Bench>>> {
    if !installed("redis under load", &["redis-server", "redis-benchmark"], "redis-server redis-tools") {
        return Ok(None);
    }
    let port = if with { 8091 } else { 8090 };
    let folder = folder.join(format!("redis-{port}"));
    fs::create_dir_all(&folder)?;
    let mut command = inside(places.cgroup(with).path(), "redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    command.arg("--dir").arg(&folder);
    Ok(Some(Box::new(Redis { _server: Server::start(command, port)?, port })))
}

impl Bench for Redis {
    fn turn(&self, cgroup: &Path, seconds: u32) -> Result<Vec<Figure>> {
        let mut figures = Vec::new();
        // So many requests take about a second here.
        for (how, keep, requests) in [("connections that stay", "1", 60_000), ("a connection each", "0", 10_000)] {
            let mut benchmark = inside(cgroup, "redis-benchmark");
            benchmark.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-c", "32", "-t", "get", "--csv"]);
            benchmark.args(["-k", keep, "-n", &(requests * seconds).to_string()]);
            let output = benchmark.output().context("starting redis-benchmark")?;
            let text = String::from_utf8_lossy(&output.stdout);
            ensure!(output.status.success(), "redis-benchmark failed: {text}");
            let (rate, slow) = figures_of(&text).with_context(|| format!("redis-benchmark says {text}"))?;
            let what = format!("redis GET, {how}");
            figures.push(Figure { what: what.clone(), unit: Unit::Rate, value: rate });
            figures.push(Figure { what, unit: Unit::Milliseconds, value: slow });
        }
        Ok(figures)
    }
}

/// Requests a second and the 99th percentile out of `"test","rps",...,"p99_latency_ms",...` and the line below.
fn figures_of(csv: &str) -> Option<(f64, f64)> {
    let mut lines = csv.lines().map(|line| line.split(',').map(|field| field.trim_matches('"')));
    let names: Vec<_> = lines.find(|fields| fields.clone().next() == Some("test"))?.collect();
    let values: Vec<_> = lines.next()?.collect();
    let value = |name| values.get(names.iter().position(|n| *n == name)?)?.parse().ok();
    Some((value("rps")?, value("p99_latency_ms")?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn figures_of_redis_benchmark() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\",\"p99_latency_ms\"\n\"GET\",\"1000.5\",\"0.1\",\"0.7\"\n";
        assert_eq!(super::figures_of(csv), Some((1000.5, 0.7)));
        assert_eq!(super::figures_of("nothing"), None);
    }
}
