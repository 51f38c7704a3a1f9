//! `cargo xtask soak`: hundreds of processes do everything at random with BPF programs of this run. They are killed in
//! the middle of it, and so is the agent; the programs are upgraded under them. All the time the results are checked
//! against a ledger, and at the end nothing may be left.
//!
//! * [`host`]: the namespaces, the cgroup, the BPF programs, and the kills;
//! * [`worker`]: one of the processes; [`administrator`]: the process that makes persistent reservations;
//! * [`ledger`]: the facts that are certain while everything is under way, in [`shared`] memory;
//! * [`checks`]: the conditions that hold when everybody is at rest, and at the end;
//! * [`tally`] and [`summary`]: counting the operations, and reporting them.

mod administrator;
mod agent;
mod checks;
mod host;
mod ledger;
mod report;
mod shared;
mod summary;
mod tally;
mod worker;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use portkeep_kernel::cgroup;
use portkeep_testkit::TestCgroup;
use portkeep_tool::{Missing, cargo, repository};

use summary::{Report, Run};

/// Let many processes do everything at random, kill them, and check that every promise holds
///
/// Requires root. Everything happens in a cgroup, a network namespace and a mount namespace of this process. The choices
/// of each process come from the seed and its number. Exit status 1: a promise was broken, or something was left behind.
#[derive(Parser)]
#[command(name = "cargo xtask soak", args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    role: Option<Role>,
    /// Length of the run
    #[arg(long, default_value_t = 30, conflicts_with = "short")]
    minutes: u64,
    /// Number of processes at a time
    #[arg(long, default_value_t = 200)]
    processes: usize,
    /// Seed of all choices, printed at the start [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Run for half a minute, with 40 processes at most
    #[arg(long)]
    short: bool,
    /// Write the summary to a file as well
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,
}

/// The other processes of a run are this program in another role.
#[derive(clap::Subcommand)]
#[command(hide = true)]
enum Role {
    Host(host::Options),
    Worker(worker::Options),
    Administrator(administrator::Options),
}

fn main() -> ExitCode {
    let options = Options::parse();
    portkeep_tool::exit(match &options.role {
        Some(Role::Host(options)) => host::run(options),
        Some(Role::Worker(options)) => worker::run(options),
        Some(Role::Administrator(options)) => administrator::run(options),
        None => run(&options),
    })
}

fn run(options: &Options) -> Result<()> {
    if let Some(missing) = missing() {
        // A machine that must run kernel tests says so; elsewhere the soak is skipped, with a message.
        ensure!(std::env::var_os(portkeep_testkit::REQUIRE).is_none(), "{missing}");
        return Err(missing.into());
    }
    let (seconds, processes) =
        if options.short { (30, options.processes.min(40)) } else { (options.minutes * 60, options.processes) };
    ensure!((8..=2000).contains(&processes), "between 8 and 2000 processes");
    let seed = options.seed.unwrap_or_else(clock_seed);
    println!("seed {seed}");
    let portkeep = build()?;

    let before = Surroundings::look()?;
    let folder = tempfile::Builder::new().prefix("portkeep-soak-").tempdir()?;
    let cgroup = TestCgroup::new("soak")?;
    let host = host::Options {
        seconds,
        processes,
        seed,
        folder: folder.path().to_owned(),
        cgroup: cgroup.path().to_owned(),
        portkeep: copy_of(&portkeep, folder.path())?,
    };
    let outcome = stage_process(&host).and_then(|()| {
        let json = fs::read(folder.path().join("report.json")).context("the host left no report")?;
        Ok(serde_json::from_slice::<Report>(&json)?)
    });
    let mut report = match outcome {
        Ok(report) => report,
        Err(error) => {
            let kept = folder.keep();
            return Err(error.context(format!("seed {seed}; what there is of the run is in {}", kept.display())));
        }
    };
    report.leaks.extend(left_behind(&before, &report, cgroup.path(), folder.path())?);

    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let text = summary::markdown(&Run { seed, seconds, processes, kernel: &kernel }, &report);
    print!("{text}");
    if let Some(path) = &options.summary {
        fs::write(path, &text).with_context(|| format!("writing {}", path.display()))?;
    }
    let bad = report.violations.len() + report.leaks.len();
    if bad > 0 {
        let kept = folder.keep();
        bail!("seed {seed}: {bad} violations or leaks; what there is of the run is in {}", kept.display());
    }
    Ok(())
}

/// A requirement of the soak that is missing.
fn missing() -> Option<Missing> {
    if !rustix::process::geteuid().is_root() {
        return Some(Missing { what: "the right to load the BPF programs".into(), remedy: "run it as root".into() });
    }
    let mount = "mount -t cgroup2 none /sys/fs/cgroup";
    cgroup::root().is_none().then(|| Missing { what: "a cgroup v2 hierarchy".into(), remedy: mount.into() })
}

fn clock_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64 % 1_000_000_000)
}

/// The command as it is now.
fn build() -> Result<PathBuf> {
    let output = cargo()
        .args(["build", "--quiet", "--workspace", "--bin", "portkeep", "--message-format", "json"])
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("starting cargo")?;
    ensure!(output.status.success(), "building portkeep failed");
    let text = String::from_utf8(output.stdout)?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let path = lines.filter_map(|line| line["executable"].as_str().map(PathBuf::from)).next_back();
    path.with_context(|| format!("cargo built no program in {}", repository().display()))
}

/// Another build meanwhile must not change the program that agents are started from.
fn copy_of(program: &Path, folder: &Path) -> Result<PathBuf> {
    let copy = folder.join("portkeep");
    fs::copy(program, &copy)?;
    Ok(copy)
}

fn stage_process(options: &host::Options) -> Result<()> {
    // The same for ourselves: workers are started for as long as it lasts.
    let own = options.folder.join("soak");
    fs::copy(std::env::current_exe()?, &own)?;
    let mut command = Command::new(own);
    command.arg("host");
    command.args([
        "--seconds",
        &options.seconds.to_string(),
        "--processes",
        &options.processes.to_string(),
        "--seed",
        &options.seed.to_string(),
    ]);
    command.arg("--folder").arg(&options.folder).arg("--cgroup").arg(&options.cgroup);
    command.arg("--portkeep").arg(&options.portkeep);
    let status = command.status().context("starting the host")?;
    ensure!(status.success(), "the host ended with {status}");
    Ok(())
}

/// The state that must be the same before and after.
#[derive(Debug)]
struct Surroundings {
    mounts: BTreeSet<String>,
    descriptors: BTreeSet<String>,
    pins: BTreeSet<String>,
    reserved: String,
}

impl Surroundings {
    fn look() -> Result<Self> {
        let pins = fs::read_dir("/sys/fs/bpf").into_iter().flatten().flatten();
        Ok(Self {
            mounts: fs::read_to_string("/proc/self/mountinfo")?.lines().map(str::to_owned).collect(),
            descriptors: worker::descriptors(std::process::id())?
                .into_iter()
                .map(|(k, n)| format!("{n} {k}"))
                .collect(),
            pins: pins.map(|entry| entry.path().display().to_string()).collect(),
            reserved: agent::reserved_ports()?,
        })
    }
}

/// Things that the run has left on the machine.
fn left_behind(before: &Surroundings, report: &Report, cgroup: &Path, folder: &Path) -> Result<Vec<String>> {
    let mut left = checks::settled(|| {
        let procs = processes_below(cgroup)?;
        Ok(procs.iter().map(|pid| format!("process {pid} left in the cgroup")).collect())
    })?;
    // Deepest first; each goes only if nothing is in it.
    let mut folders = folders_below(cgroup);
    folders.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    let expected = ["a", "a/deep", "b"].map(|name| cgroup.join(name));
    for path in folders {
        if !expected.contains(&path) {
            left.push(format!("cgroup {} left behind", path.display()));
        }
        let begin = Instant::now();
        while let Err(error) = fs::remove_dir(&path) {
            if begin.elapsed() > Duration::from_secs(10) {
                left.push(format!("cgroup {} cannot be removed: {error}", path.display()));
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    if !agent::is_empty_folder(&folder.join("bpf")) {
        left.push("something is in the folder of the pins".into());
    }
    let in_it = fs::read_dir("/proc")?.flatten().filter(|entry| {
        fs::read_link(entry.path().join("ns/net")).is_ok_and(|link| link.display().to_string() == report.netns)
    });
    left.extend(in_it.map(|entry| format!("{} is still in the network namespace", entry.path().display())));
    let after = Surroundings::look()?;
    left.extend(checks::same("mount", &before.mounts, &after.mounts));
    left.extend(checks::same("pin", &before.pins, &after.pins));
    // The pipe to the janitor of the cgroup is newer than the first look.
    let pipes = |item: &&String| !item.ends_with(" pipe");
    let descriptors = |set: &BTreeSet<String>| set.iter().filter(pipes).cloned().collect::<BTreeSet<_>>();
    left.extend(checks::same("descriptors", &descriptors(&before.descriptors), &descriptors(&after.descriptors)));
    if before.reserved != after.reserved {
        left.push(format!(
            "the machine's ip_local_reserved_ports was {:?} and is {:?}",
            before.reserved, after.reserved
        ));
    }
    Ok(left)
}

fn folders_below(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path());
    folders.flat_map(|folder| std::iter::once(folder.clone()).chain(folders_below(&folder))).collect()
}

fn processes_below(path: &Path) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for folder in std::iter::once(path.to_owned()).chain(folders_below(path)) {
        all.extend(fs::read_to_string(folder.join("cgroup.procs"))?.lines().map(str::to_owned));
    }
    Ok(all)
}
