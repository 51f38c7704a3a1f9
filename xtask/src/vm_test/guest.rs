//! Booting a guest and reading what it says.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::tool::Tool;

/// Reached only if a guest hangs: the tests have a limit of their own inside.
const LIMIT_SECONDS: &str = "7200";
/// Lines with this in front are for us.
const MARK: &str = "@vm ";

const QEMU: Tool = Tool { name: "qemu-system-x86_64", remedy: "apt-get install qemu-system-x86" };
const TIMEOUT: Tool = Tool { name: "timeout", remedy: "apt-get install coreutils" };

/// How one test binary ended.
#[derive(Deserialize)]
pub(super) struct Outcome {
    pub(super) binary: String,
    code: i32,
    milliseconds: u64,
}

impl Outcome {
    pub(super) fn passed(&self) -> bool {
        self.code == 0
    }

    pub(super) fn seconds(&self) -> f64 {
        self.milliseconds as f64 / 1000.0
    }
}

/// A line meant for us.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Outcome(Outcome),
    /// The guest got to its end.
    Complete(#[allow(dead_code, reason = "the word itself says nothing more")] String),
}

#[derive(Default)]
pub(super) struct Report {
    pub(super) outcomes: Vec<Outcome>,
    pub(super) complete: bool,
}

/// Found out before the long build, and because `timeout`, not we, starts QEMU.
pub(super) fn check() -> Result<()> {
    QEMU.output(QEMU.command().arg("--version")).map(drop)
}

pub(super) fn boot(kernel: &Path, initramfs: &Path, verbose: bool) -> Result<Report> {
    let mut guest = TIMEOUT.spawn(&mut command(kernel, initramfs))?;
    let console = guest.stdout.take().context("the guest's console is not a pipe")?;

    let mut report = Report::default();
    let mut printed = Vec::new();
    for line in BufReader::new(console).split(b'\n') {
        let line = line.context("reading the guest's console")?;
        // The firmware clears the screen; it need not be ours.
        let line = String::from_utf8_lossy(&line).replace(char::is_control, "");
        let Some(text) = line.strip_prefix(MARK) else {
            if verbose {
                println!("{line}");
            }
            printed.push(line);
            continue;
        };
        match serde_json::from_str(text).with_context(|| format!("the guest says {line}"))? {
            Line::Complete(_) => report.complete = true,
            Line::Outcome(outcome) => {
                if !outcome.passed() && !verbose {
                    println!("{}", printed.join("\n"));
                }
                printed.clear();
                report.outcomes.push(outcome);
            }
        }
    }
    guest.wait().context("waiting for QEMU")?;
    if !report.complete && !verbose {
        println!("{}", printed.join("\n"));
    }
    Ok(report)
}

fn command(kernel: &Path, initramfs: &Path) -> Command {
    let mut command = TIMEOUT.command();
    command.args([LIMIT_SECONDS, QEMU.name, "-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"]);
    // Emulation only: it is there on every machine, and nested virtualization fails in ways of its own.
    // Two processors, because much of what is tested is a race.
    command.args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "2048"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
    // A panic ends QEMU, by way of the reboot that is forbidden.
    command.args(["-append", "console=ttyS0 quiet panic=-1"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}
