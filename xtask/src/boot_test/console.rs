//! Booting the machine and reading what it says.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::tool::Tool;

/// Lines with this in them are for us; the kernel may have begun the line.
const MARK: &str = "@boot ";

const QEMU: Tool = Tool { name: "qemu-system-x86_64", remedy: "apt-get install qemu-system-x86" };
const TIMEOUT: Tool = Tool { name: "timeout", remedy: "apt-get install coreutils" };

/// A line meant for us.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Check { check: String, passed: bool, detail: String },
    Note { note: String },
    Complete(#[allow(dead_code, reason = "the word itself says nothing more")] String),
}

#[derive(Default)]
pub(super) struct Report {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) complete: bool,
}

/// Found out before the long preparations, and because `timeout`, not we, starts QEMU.
pub(super) fn check() -> Result<()> {
    QEMU.output(QEMU.command().arg("--version")).map(drop)
}

pub(super) fn boot(kernel: &Path, image: &Path, short: bool, limit: u64, verbose: bool) -> Result<Report> {
    let mut guest = TIMEOUT.spawn(&mut command(kernel, image, short, limit))?;
    let console = guest.stdout.take().context("the guest's console is not a pipe")?;

    let mut report = Report::default();
    let mut printed = Vec::new();
    for line in BufReader::new(console).split(b'\n') {
        let line = line.context("reading the guest's console")?;
        let line = String::from_utf8_lossy(&line).replace(char::is_control, "");
        let Some((_, text)) = line.split_once(MARK) else {
            if verbose {
                println!("{line}");
            }
            let panic = line.contains("Kernel panic");
            printed.push(line);
            if panic {
                // It would hang, or boot for ever.
                guest.kill().context("ending QEMU")?;
                break;
            }
            continue;
        };
        match serde_json::from_str(text).with_context(|| format!("the guest says {line}"))? {
            Line::Complete(_) => report.complete = true,
            Line::Note { note } => println!("   {note}"),
            Line::Check { check, passed: true, .. } => {
                println!("   pass  {check}");
                report.passed += 1;
            }
            Line::Check { check, passed: false, detail } => {
                println!("   FAIL  {check}: {detail}");
                report.failed += 1;
            }
        }
    }
    guest.wait().context("waiting for QEMU")?;
    if !verbose && (!report.complete || report.failed > 0) {
        println!("{}", printed.join("\n"));
    }
    Ok(report)
}

fn command(kernel: &Path, image: &Path, short: bool, limit: u64) -> Command {
    let mut command = TIMEOUT.command();
    command.arg(limit.to_string());
    command.args([QEMU.name, "-nodefaults", "-nographic", "-serial", "stdio"]);
    // Emulation only, as for the other tests in machines.
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"]);
    command.arg("-kernel").arg(kernel);
    // The image stays as it is: what the guest writes is thrown away when QEMU ends.
    command.arg("-drive").arg(format!("if=none,id=disk,format=raw,snapshot=on,file={}", image.display()));
    command.args(["-device", "nvme,drive=disk,serial=boot"]);
    let length = if short { "short" } else { "long" };
    command
        .arg("-append")
        .arg(format!("root=/dev/nvme0n1 rw console=ttyS0 quiet panic=0 systemd.show_status=false boot_test={length}"));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}
