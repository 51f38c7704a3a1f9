//! Sixteen test processes side by side, among neighbours that bind and connect
//! at random all the time.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{
    job::Tally,
    kit::{Kit, PORTSERVER_POOL},
    subject::Subject,
};
use portkeep_testkit::places::{Places, moved};

pub(super) struct Field {
    pub(super) processes: u32,
    pub(super) neighbours: u32,
    /// Of each process.
    pub(super) rounds: u32,
    pub(super) seed: u64,
}

/// A private ephemeral range of each test process. Those of all of them must fit into the pool.
/// get-port does not return a port again within 30 s. It searches without end if there is no other, and each process
/// asks for 200 ports.
pub(super) const RANGE: u16 = 240;

/// With `within_range` each test process runs under `portkeep run --ephemeral`, unchanged.
pub(super) fn play(subject: Subject, within_range: bool, kit: &Kit, places: &Places, field: &Field) -> Result<Tally> {
    Places::fresh_network();
    let enforced = subject.enforced() || within_range;
    let cgroup = places.cgroup(enforced);
    let _server = kit.server(subject, PORTSERVER_POOL)?;
    let mut runners = Vec::new();
    for i in 0..field.processes {
        // Only the programs that it starts belong to it.
        let own = places.subgroup(enforced)?;
        let mut command = kit.job("runner");
        command.arg(subject.name()).arg(kit.folder()).arg(field.rounds.to_string());
        command.arg((field.seed * 1000 + u64::from(i)).to_string());
        if within_range {
            let mut run = Command::new(kit.portkeep());
            run.args(["run", "--require-kernel", "--ephemeral", &RANGE.to_string(), "--"]);
            command = {
                run.arg(command.get_program()).args(command.get_args());
                run
            };
        }
        runners.push(Runner::start(moved(&own, &command))?);
    }
    // The neighbours start after the ranges are reserved: the ranges would not all fit between the neighbours' ports.
    let _neighbours = (0..field.neighbours)
        .map(|i| {
            let mut command = kit.outsider(subject, "neighbour");
            command.arg((field.seed + u64::from(i)).to_string());
            Ok(Neighbour(moved(cgroup.path(), &command).spawn().context("starting a neighbour")?))
        })
        .collect::<Result<Vec<_>>>()?;
    for runner in &mut runners {
        runner.go()?;
    }
    let mut sum = Tally::default();
    for runner in runners {
        let tally = runner.finish()?;
        sum.rounds += tally.rounds;
        sum.lost += tally.lost;
        sum.refused += tally.refused;
    }
    Ok(sum)
}

struct Runner {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Runner {
    fn start(mut command: Command) -> Result<Self> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting a test process")?;
        let mut output = BufReader::new(child.stdout.take().context("its output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        ensure!(line == "ready\n", "a test process did not come up");
        Ok(Self { child, output })
    }

    fn go(&mut self) -> Result<()> {
        self.child.stdin.take().context("its input")?.write_all(b"go\n").context("a test process has ended")
    }

    fn finish(mut self) -> Result<Tally> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(self.child.wait()?.success(), "a test process failed");
        serde_json::from_str(&line).with_context(|| format!("a test process says {line:?}"))
    }
}

struct Neighbour(Child);

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
