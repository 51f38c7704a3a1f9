//! nginx under wrk, over connections that stay and with one for each request.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use super::bench::{Bench, Figure, Unit};
use crate::server::{Server, installed};
use portkeep_testkit::places::{Places, inside};

struct Nginx {
    _server: Server,
    port: u16,
}

pub(super) fn start(places: &Places, with: bool, folder: &Path) -> Result<Option<Box<dyn Bench>>> {
    if !installed("nginx under load", &["nginx", "wrk"], "nginx-light wrk") {
        return Ok(None);
    }
    let port = if with { 8081 } else { 8080 };
    let folder = folder.join(format!("nginx-{port}"));
    fs::create_dir_all(&folder)?;
    let path = folder.to_str().context("a path that is text")?;
    let configuration = include_str!("nginx.conf").replace("FOLDER", path).replace("PORT", &port.to_string());
    let file = folder.join("nginx.conf");
    fs::write(&file, configuration)?;
    let mut command = inside(places.cgroup(with).path(), "nginx");
    command.args(["-e", "stderr", "-p"]).arg(&folder).arg("-c").arg(file);
    Ok(Some(Box::new(Nginx { _server: Server::start(command, port)?, port })))
}

impl Bench for Nginx {
    fn turn(&self, cgroup: &Path, seconds: u32) -> Result<Vec<Figure>> {
        let mut figures = Vec::new();
        for (how, header) in
            [("connections that stay", "Connection: keep-alive"), ("a connection each", "Connection: close")]
        {
            let mut wrk = inside(cgroup, "wrk");
            wrk.args(["-t1", "-c32", &format!("-d{seconds}s"), "--latency", "-H", header]);
            let output = wrk.arg(format!("http://127.0.0.1:{}/", self.port)).output().context("starting wrk")?;
            let text = String::from_utf8_lossy(&output.stdout);
            ensure!(output.status.success(), "wrk failed: {text}");
            ensure!(!text.contains("Socket errors"), "requests failed: {text}");
            let value = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
            let what = format!("nginx, {how}");
            let said = || format!("wrk says {text}");
            let rate = value("Requests/sec:").and_then(|rate| rate.parse().ok()).with_context(said)?;
            let slow = value("99%").and_then(milliseconds).with_context(said)?;
            figures.push(Figure { what: what.clone(), unit: Unit::Rate, value: rate });
            figures.push(Figure { what, unit: Unit::Milliseconds, value: slow });
        }
        Ok(figures)
    }
}

/// As wrk writes times: `812.00us`, `1.24ms`, `1.01s`.
fn milliseconds(text: &str) -> Option<f64> {
    let end = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(end);
    let factor = match unit {
        "us" => 0.001,
        "ms" => 1.0,
        "s" => 1000.0,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_of_wrk() {
        assert_eq!(super::milliseconds("500.00us"), Some(0.5));
        assert_eq!(super::milliseconds("1.25ms"), Some(1.25));
        assert_eq!(super::milliseconds("1.01s"), Some(1010.0));
        assert_eq!(super::milliseconds("1.01"), None);
    }
}
