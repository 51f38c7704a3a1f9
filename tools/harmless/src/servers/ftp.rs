//! proftpd with its passive ports in the pool, and curl.

use std::{fs, path::Path, thread};

use anyhow::{Context, Result, ensure};

use super::scenario::{Scenario, Surroundings, outcome};
use crate::suite::Outcomes;

pub(super) const PROFTPD: Scenario = Scenario {
    name: "proftpd with PassivePorts 64000 64009",
    programs: &["proftpd", "curl"],
    packages: "proftpd-core curl",
    play,
};

const PORT: u16 = 2121;
const URL: &str = "ftp://127.0.0.1:2121";
/// More than the ten passive ports.
const ROUNDS: usize = 12;
const AT_ONCE: usize = 8;

fn play(surroundings: &Surroundings) -> Result<Outcomes> {
    let files = surroundings.open_folder("files")?;
    fs::write(files.join("original"), (0..300_000u32).map(|byte| byte.to_ne_bytes()[0]).collect::<Vec<u8>>())?;
    let mut proftpd = surroundings.command("proftpd");
    proftpd.args(["--nodaemon", "--quiet", "--config"]);
    proftpd.arg(surroundings.configure("proftpd.conf", include_str!("proftpd.conf"))?);
    let _server = surroundings.serve(proftpd, PORT)?;

    let mut outcomes = Outcomes::new();
    for round in 0..ROUNDS {
        for way in ["PASV", "EPSV"] {
            let name = format!("{way}-{round}");
            outcomes.insert(format!("download {name}"), outcome(download(surroundings, way, &name)));
            outcomes.insert(format!("upload {name}"), outcome(upload(surroundings, way, &name)));
        }
    }
    let at_once = thread::scope(|scope| {
        let downloads: Vec<_> = (0..AT_ONCE)
            .map(|number| scope.spawn(move || outcome(download(surroundings, "PASV", &format!("at-once-{number}")))))
            .collect();
        downloads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
    });
    let named = at_once.into_iter().enumerate().map(|(number, outcome)| (format!("at once {number}"), outcome));
    outcomes.extend(named);
    Ok(outcomes)
}

fn download(surroundings: &Surroundings, way: &str, name: &str) -> Result<()> {
    let copy = surroundings.path(name);
    transfer(surroundings, way, &["--output", &copy.to_string_lossy(), &format!("{URL}/original")])?;
    same(surroundings, &copy)
}

fn upload(surroundings: &Surroundings, way: &str, name: &str) -> Result<()> {
    let original = surroundings.path("files/original");
    transfer(surroundings, way, &["--upload-file", &original.to_string_lossy(), &format!("{URL}/{name}")])?;
    same(surroundings, &surroundings.path("files").join(name))
}

fn same(surroundings: &Surroundings, copy: &Path) -> Result<()> {
    ensure!(fs::read(copy)? == fs::read(surroundings.path("files/original"))?, "the copy is another file");
    Ok(())
}

/// Let curl do it, and check which port the server named.
fn transfer(surroundings: &Surroundings, way: &str, words: &[&str]) -> Result<()> {
    let mut curl = surroundings.command("curl");
    curl.args(["--silent", "--verbose", "--max-time", "60"]);
    if way == "PASV" {
        curl.arg("--disable-epsv");
    }
    let output = curl.args(words).output().context("starting curl")?;
    let conversation = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "curl failed ({}): {conversation}", output.status);
    let port = conversation.lines().find_map(passive_port).with_context(|| format!("no port in {conversation}"))?;
    ensure!((64000..=64009).contains(&port), "the server chose port {port}");
    Ok(())
}

/// Out of `227 Entering Passive Mode (127,0,0,1,250,7).` or `229 Entering Extended Passive Mode (|||64007|)`.
fn passive_port(line: &str) -> Option<u16> {
    let reply = line.strip_prefix("< ")?;
    let (_, rest) = reply.split_once('(')?;
    let (numbers, _) = rest.split_once(')')?;
    match reply.get(..3)? {
        "227" => {
            let bytes: Vec<u8> = numbers.split(',').map(|number| number.parse().ok()).collect::<Option<_>>()?;
            let &[.., high, low] = bytes.as_slice() else { return None };
            Some(u16::from_be_bytes([high, low]))
        }
        "229" => numbers.trim_matches('|').parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::passive_port;

    #[test]
    fn ports_of_both_replies() {
        assert_eq!(passive_port("< 227 Entering Passive Mode (127,0,0,1,250,7)."), Some(64007));
        assert_eq!(passive_port("< 229 Entering Extended Passive Mode (|||64004|)\r"), Some(64004));
        assert_eq!(passive_port("< 220 ProFTPD Server (harmless) [127.0.0.1]"), None);
    }
}
