//! Booting the machine and reading what it says.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::Deserialize;

use portkeep_tool::Tool;

/// Lines with this in them are for us; the kernel may have begun the line.
const MARK: &str = "@boot ";
/// The last line of the kernel before the first program.
const STARTED: &str = " as init process";
/// A processor that is emulated on a busy machine needs half a minute for that. Sometimes an emulator stopped instead,
/// before the kernel had printed anything.
const START_LIMIT: Duration = Duration::from_secs(150);
/// How often one boot is begun anew because of that.
const STARTS: u32 = 3;

const QEMU: Tool = Tool { name: "qemu-system-x86_64", remedy: "apt-get install qemu-system-x86" };

/// A line meant for us.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Check { check: String, passed: bool, detail: String },
    Note { note: String },
    Next { next: Next },
    Complete(#[allow(dead_code, reason = "the word itself says nothing more")] String),
}

/// How this boot is to end and the next to begin.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Next {
    /// The guest reboots.
    Reboot,
    /// The power is cut, now.
    Cut,
}

#[derive(Default)]
pub(super) struct Report {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) complete: bool,
}

/// Found out before the long preparations.
pub(super) fn check() -> Result<()> {
    QEMU.output(QEMU.command().arg("--version")).map(drop)
}

/// Boot the machine on this disk, which is written to, as often as the guest asks for it.
pub(super) fn run(kernel: &Path, disk: &Path, short: bool, limit: Duration, verbose: bool) -> Result<Report> {
    let mut report = Report::default();
    let mut printed = Vec::new();
    let mut starts = 0;
    loop {
        match boot(&mut command(kernel, disk, short), limit, verbose, &mut report, &mut printed)? {
            Boot::Last => break,
            Boot::Again => starts = 0,
            // Nothing has run from the disk, so the next boot begins in the same state.
            Boot::NotStarted => {
                starts += 1;
                println!("   the emulator did not start the kernel in {} s", START_LIMIT.as_secs());
                if starts == STARTS {
                    break;
                }
            }
        }
    }
    if !verbose && (!report.complete || report.failed > 0) {
        println!("{}", printed.join("\n"));
    }
    Ok(report)
}

/// How a boot ended.
enum Boot {
    /// The machine is to be booted once more.
    Again,
    /// It is not to be booted again, whether it has passed or failed.
    Last,
    /// The kernel did not start.
    NotStarted,
}

fn boot(
    qemu: &mut Command,
    limit: Duration,
    verbose: bool,
    report: &mut Report,
    printed: &mut Vec<String>,
) -> Result<Boot> {
    let mut guest = QEMU.spawn(qemu)?;
    let console = guest.stdout.take().context("the guest's console is not a pipe")?;
    // If reading stops below, for any reason, the guest ends as well.
    let guest = Running::new(guest, limit);
    let mut next = None;
    for line in BufReader::new(console).split(b'\n') {
        let line = line.context("reading the guest's console")?;
        let line = String::from_utf8_lossy(&line).replace(char::is_control, "");
        let Some((_, text)) = line.split_once(MARK) else {
            if verbose {
                println!("{line}");
            }
            if line.contains(STARTED) {
                guest.started();
            }
            let panic = line.contains("Kernel panic");
            printed.push(line);
            if panic {
                break;
            }
            continue;
        };
        match serde_json::from_str(text).with_context(|| format!("the guest says {line}"))? {
            Line::Complete(_) => report.complete = true,
            Line::Note { note } => println!("   {note}"),
            Line::Next { next: how } => {
                next = Some(how);
                if how == Next::Cut {
                    break;
                }
            }
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
    Ok(match guest.end() {
        End::NotStarted => Boot::NotStarted,
        End::InTime if next.is_some() && !report.complete => Boot::Again,
        End::InTime => Boot::Last,
        End::TooLate => {
            println!("   FAIL  not at its end after {} s", limit.as_secs());
            Boot::Last
        }
    })
}

/// How a guest ended.
enum End {
    InTime,
    TooLate,
    NotStarted,
}

/// A guest with a time limit.
struct Running {
    /// A message when the first program starts; closed when nobody reads what the guest says any more.
    news: Sender<()>,
    watch: thread::JoinHandle<End>,
}

impl Running {
    fn new(mut guest: Child, limit: Duration) -> Self {
        let (news, heard) = channel();
        let watch = thread::spawn(move || {
            let end = watch(&heard, limit);
            // The guest may have ended by itself.
            let _ = guest.kill();
            let _ = guest.wait();
            end
        });
        Self { news, watch }
    }

    /// The first program runs.
    fn started(&self) {
        // If it is too late, no thread receives this.
        let _ = self.news.send(());
    }

    /// End it if it has not ended yet.
    fn end(self) -> End {
        drop(self.news);
        self.watch.join().unwrap_or(End::TooLate)
    }
}

fn watch(heard: &Receiver<()>, limit: Duration) -> End {
    let end = Instant::now() + limit;
    match heard.recv_timeout(START_LIMIT.min(limit)) {
        Err(RecvTimeoutError::Timeout) => return End::NotStarted,
        Err(RecvTimeoutError::Disconnected) => return End::InTime,
        Ok(()) => {}
    }
    loop {
        match heard.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Err(RecvTimeoutError::Timeout) => return End::TooLate,
            Err(RecvTimeoutError::Disconnected) => return End::InTime,
            Ok(()) => {}
        }
    }
}

fn command(kernel: &Path, disk: &Path, short: bool) -> Command {
    let mut command = QEMU.command();
    command.args(["-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"]);
    // Emulation only, as for the other tests in machines.
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"]);
    command.arg("-kernel").arg(kernel);
    command.arg("-drive").arg(format!("if=none,id=disk,format=raw,cache=unsafe,file={}", disk.display()));
    command.args(["-device", "nvme,drive=disk,serial=boot"]);
    let length = if short { "short" } else { "long" };
    command.arg("-append").arg(format!(
        "root=/dev/nvme0n1 rw console=ttyS0 panic=-1 no_timer_check systemd.show_status=false boot_test={length}"
    ));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}
