//! A process that takes ports in the manner of one subject. It reads commands, line by line. They are the same for all
//! languages, so that only the manner differs:
//!
//! | line | answer |
//! | --- | --- |
//! | | `ready`, once |
//! | `get N` | process id of the holder and N ports, or `none` and why |
//! | `hand` | `ok`: the programs that shall have the ports are about to start |
//! | `free` | `ok`: they have ended |
//! | `time I N` | nanoseconds for taking and giving back N ports I times |

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

pub(super) struct Allocator {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// Ports, and the process that has them.
pub(super) struct Taken {
    pub(super) holder: u32,
    pub(super) ports: Vec<u16>,
}

impl Allocator {
    pub(super) fn start(mut command: Command) -> Result<Self> {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("starting {command:?}"))?;
        let input = child.stdin.take().context("its input is not a pipe")?;
        let output = BufReader::new(child.stdout.take().context("its output is not a pipe")?);
        let mut allocator = Self { child, input, output };
        let first = allocator.hear()?;
        ensure!(first == "ready", "{command:?} begins with {first:?}");
        Ok(allocator)
    }

    /// The inner `Err`: it has no ports to give, and this is the reason.
    pub(super) fn get(&mut self, count: u16) -> Result<Result<Taken, String>> {
        let answer = self.ask(&format!("get {count}"))?;
        if let Some(reason) = answer.strip_prefix("none ") {
            return Ok(Err(reason.to_owned()));
        }
        let malformed = || format!("{answer:?} is not a process and {count} ports");
        let (holder, ports) = answer.split_once(' ').with_context(malformed)?;
        let ports = ports.split(' ').map(str::parse).collect::<Result<Vec<_>, _>>().with_context(malformed)?;
        ensure!(ports.len() == usize::from(count), malformed());
        Ok(Ok(Taken { holder: holder.parse().with_context(malformed)?, ports }))
    }

    pub(super) fn hand(&mut self) -> Result<()> {
        self.expect_ok("hand")
    }

    pub(super) fn free(&mut self) -> Result<()> {
        self.expect_ok("free")
    }

    /// Nanoseconds of one cycle.
    pub(super) fn time(&mut self, iterations: u32, count: u16) -> Result<f64> {
        let answer = self.ask(&format!("time {iterations} {count}"))?;
        let total: f64 = answer.parse().with_context(|| format!("{answer:?} is not a time"))?;
        Ok(total / f64::from(iterations))
    }

    /// SIGKILL, and wait for its end.
    pub(super) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn expect_ok(&mut self, line: &str) -> Result<()> {
        let answer = self.ask(line)?;
        ensure!(answer == "ok", "{line}: {answer}");
        Ok(())
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        writeln!(self.input, "{line}").context("the allocator has ended")?;
        self.hear()
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "the allocator has ended");
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Allocator {
    fn drop(&mut self) {
        // Its own holder, if it has one, ends with its input.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
