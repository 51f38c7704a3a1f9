//! The ports when their holder is killed: which process has them before, which can have them afterwards, and when.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    allocator::Taken,
    job::{PORTS, Way, probe},
    kit::Kit,
    latency::start,
    subject::Subject,
};
use portkeep_testkit::places::{Places, moved};

#[derive(Clone, Debug)]
pub(super) struct Crash {
    /// Of the 8 ports in hand, how many an outsider can have without an option.
    pub(super) plain: usize,
    /// The same with SO_REUSEADDR.
    pub(super) reuse: usize,
    /// After SIGKILL of the holder.
    pub(super) after: String,
}

pub(super) fn observe(subject: Subject, kit: &Kit, places: &Places, patience: Duration) -> Result<Crash> {
    let outsider = |way, ports: &[u16]| {
        let cgroup = places.cgroup(subject.enforced());
        probe(moved(cgroup.path(), &kit.job("probe")), way, ports)
    };
    let mut allocator = start(subject, kit, places)?;
    let Taken { holder, ports } = allocator.get(PORTS)?.map_err(|reason| anyhow!("no ports: {reason}"))?;
    let (plain, reuse) = (outsider(Way::Plain, &ports)?, outsider(Way::Reuse, &ports)?);

    if subject == Subject::Kernel {
        ensure!(outsider(Way::Reservation, &ports)? == 0, "two reservations of {ports:?}");
    }

    if holder == allocator.pid() {
        allocator.kill()?;
    } else {
        kill(holder)?;
    }
    let all = ports.len();
    let after = if plain == all {
        "nothing was held".into()
    } else {
        let when = when(|| Ok(outsider(Way::Plain, &ports)? == all), patience)?;
        let option = if reuse == all { "; with SO_REUSEADDR they always were" } else { "" };
        format!("{when}{option}")
    };
    Ok(Crash { plain, reuse, after })
}

pub(super) const AT_ONCE: &str = "free at once";

/// The time until a condition is true.
fn when(mut check: impl FnMut() -> Result<bool>, patience: Duration) -> Result<String> {
    if check()? {
        return Ok(AT_ONCE.into());
    }
    let begun = Instant::now();
    while begun.elapsed() < patience {
        thread::sleep(Duration::from_millis(500));
        if check()? {
            return Ok(format!("free after about {:.0} s", begun.elapsed().as_secs_f64()));
        }
    }
    Ok(format!("not free within {} s", patience.as_secs()))
}

/// SIGKILL for a process that one of ours has started, and wait until it has no descriptor any more.
fn kill(pid: u32) -> Result<()> {
    let target = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a process id")?;
    kill_process(target, Signal::KILL).with_context(|| format!("killing {pid}"))?;
    let begun = Instant::now();
    // A zombie has closed everything, unless threads of it still run: they share its descriptors.
    let ended = || match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => {
            let alone = fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|threads| threads.count() == 1);
            alone && stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
        }
        Err(_) => true,
    };
    while !ended() {
        ensure!(begun.elapsed() < Duration::from_secs(10), "{pid} does not end");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
