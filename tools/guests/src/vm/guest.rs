//! Booting a guest and keeping what it says to a time limit.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::report::{Report, Word};
use portkeep_tool::Tool;

/// An emulated machine needs some ten seconds until its first output. Sometimes one stops in its firmware, before any
/// program of ours runs. That says nothing about the tests, so it is booted once more.
const TO_THE_FIRST_WORD: Duration = Duration::from_secs(300);
const BOOTS: usize = 3;
/// Reached only if a guest hangs later: each test binary has a limit of its own in the guest.
const SILENCE: Duration = Duration::from_secs(2000);
/// If this process is killed, only this limit ends the guest.
const LIMIT_SECONDS: &str = "14400";

const QEMU: Tool = Tool { name: "qemu-system-x86_64", remedy: "apt-get install qemu-system-x86" };
const TIMEOUT: Tool = Tool { name: "timeout", remedy: "apt-get install coreutils" };

/// Found out before the long build, and because `timeout`, not we, starts QEMU.
pub(super) fn check() -> Result<()> {
    QEMU.output(QEMU.command().arg("--version")).map(drop)
}

pub(super) fn boot(kernel: &Path, initramfs: &Path, verbose: bool) -> Result<Report> {
    for _ in 1..BOOTS {
        let report = boot_once(kernel, initramfs, verbose)?;
        if report.booted {
            return Ok(report);
        }
        println!("   the machine did not get to its first word; once more");
    }
    boot_once(kernel, initramfs, verbose)
}

fn boot_once(kernel: &Path, initramfs: &Path, verbose: bool) -> Result<Report> {
    let mut guest = Running(TIMEOUT.spawn(&mut command(kernel, initramfs))?);
    let lines = lines(&mut guest.0)?;
    let mut report = Report::default();
    let begin = Instant::now();
    loop {
        let limit = if report.booted { SILENCE } else { TO_THE_FIRST_WORD.saturating_sub(begin.elapsed()) };
        match lines.recv_timeout(limit) {
            Ok(line) => {
                let line = line?;
                match report.hear(&line)? {
                    Word::Console if verbose => println!("{line}"),
                    Word::Ended(outcome, printed) => {
                        if !outcome.passed() && !verbose {
                            println!("{}", printed.join("\n"));
                        }
                        println!("   {outcome}");
                    }
                    Word::Console | Word::Milestone => {}
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let waited = if report.booted { SILENCE } else { TO_THE_FIRST_WORD };
                println!("   waited {} s for a word of the guest", waited.as_secs());
                break;
            }
        }
    }
    if !report.complete && !verbose {
        println!("{}", report.unexplained().join("\n"));
    }
    Ok(report)
}

/// The output of the guest, as it comes.
fn lines(guest: &mut Child) -> Result<Receiver<Result<String>>> {
    let console = guest.stdout.take().context("the guest's console is not a pipe")?;
    let (say, hear) = channel();
    thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n') {
            // The firmware clears the screen. The terminal of this machine should stay as it is.
            let line = line.map(|line| String::from_utf8_lossy(&line).replace(char::is_control, ""));
            if say.send(line.context("reading the guest's console")).is_err() {
                break;
            }
        }
    });
    Ok(hear)
}

/// Ended when we stop listening, for whatever reason.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Passed on to QEMU, which SIGKILL would not be.
        if let Ok(pid) = i32::try_from(self.0.id())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
            && matches!(self.0.try_wait(), Ok(None))
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

fn command(kernel: &Path, initramfs: &Path) -> Command {
    let mut command = TIMEOUT.command();
    // In the foreground it stays in this process group, and ends with it.
    command.args(["--foreground", "--kill-after=10", LIMIT_SECONDS, QEMU.name]);
    command.args(["-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"]);
    // Emulation only: it is there on every machine, and nested virtualization fails in ways of its own.
    // Two processors, because much of what is tested is a race.
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3072"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
    // A panic ends QEMU, by way of the reboot that is forbidden. The last parameter is for the testkit: without it
    // nothing is attached to the root.
    command.arg("-append").arg(format!("console=ttyS0 quiet panic=-1 {}", portkeep_testkit::GUEST));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}
