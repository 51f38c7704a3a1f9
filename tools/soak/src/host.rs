//! The host of a run: a process in a cgroup, a network and a mount namespace of its own, with kernel enforcement pinned
//! in a BPF file system that no other process sees. It starts the other processes, kills and stops them as it happens
//! on a real machine, lets them wait now and then for an audit, and counts what is left at the end.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use portkeep::persistent::{PersistentError, Which};
use portkeep_kernel::{Instance, UpOptions, bpffs, cgroup};
use portkeep_testkit::{new_namespace, private_mounts, random::Random};
use rustix::process::Signal;

use super::{
    agent::{Agent, Place, RESERVED, reserved_ports, reserved_set},
    checks, report,
    shared::{Shared, path_of},
    summary::{Deeds, Report},
    worker::{USERS, die_with_parent},
};

/// The host of a soak; started by it
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    pub(super) seconds: u64,
    #[arg(long)]
    pub(super) processes: usize,
    #[arg(long)]
    pub(super) seed: u64,
    #[arg(long)]
    pub(super) folder: PathBuf,
    #[arg(long)]
    pub(super) cgroup: PathBuf,
    #[arg(long)]
    pub(super) portkeep: PathBuf,
}

/// The ports that others had in the sysctl before.
const THEIRS: &str = "100,7000-7009,40100";
/// Of the processes this many live in a network namespace of their own.
const APART: usize = 8;

struct Host {
    options: Options,
    place: Place,
    shared: Shared,
    shared_path: String,
    instance: Instance,
    netns: u64,
    random: Random,
    workers: Vec<(Child, u64)>,
    administrator: Option<Child>,
    agent: Option<Agent>,
    /// When the agent is to be started again.
    agent_due: Instant,
    cgroups: Vec<PathBuf>,
    deeds: Deeds,
    violations: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    die_with_parent();
    let place = Place { folder: options.folder.clone(), portkeep: options.portkeep.clone() };
    private_mounts();
    let netns = new_namespace();
    fs::write(RESERVED, THEIRS).context(RESERVED)?;
    // So narrow that automatic choices come upon reserved ports.
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 43999").context("ip_local_port_range")?;
    let cgroups = make_cgroups(&options.cgroup)?;
    fs::write(options.cgroup.join("cgroup.procs"), "0").context("moving into the cgroup")?;

    fs::create_dir_all(place.drop_ins())?;
    fs::create_dir_all(place.bpffs())?;
    fs::create_dir_all(report::folder(&place.folder))?;
    fs::create_dir_all(place.folder.join("mail"))?;
    for open in [place.folder.clone(), report::folder(&place.folder), place.folder.join("mail")] {
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777))?;
    }
    fs::write(place.folder.join("portkeep.toml"), "[quota]\ndefault = 400\n")?;
    bpffs::ensure(&place.bpffs()).context("mounting a BPF file system")?;
    let mut up = UpOptions::default();
    up.folder = Some(place.pins());
    up.enforce = Some(options.cgroup.clone());
    up.settings.quota = 400;
    // Where users' requests of privileged ports are refused at once.
    up.settings.home = Some(netns);
    let instance = Instance::up(&up).context("bringing kernel enforcement up")?;

    let apart = options.processes / APART;
    // The memory stays open as long as this process lives.
    let (shared, memory) = Shared::create(options.processes + 1, 1 + apart)?;
    shared.common.processes.store(options.processes as u64, SeqCst);
    let mut host = Host {
        agent: Some(Agent::start(&place)?),
        agent_due: Instant::now(),
        shared_path: path_of(&memory),
        random: Random::stream(options.seed, &[0]),
        options: options.clone(),
        workers: Vec::new(),
        administrator: None,
        deeds: Deeds::default(),
        violations: Vec::new(),
        place,
        shared,
        instance,
        netns,
        cgroups,
    };
    let outcome = host.perform();
    if let Err(error) = &outcome {
        host.violations.push(format!("the host failed: {error:#}\n{}", host.agent_at_work()));
    }
    host.read_violations()?;
    // In every case, report the findings so far.
    let leaks = match outcome.and_then(|()| host.strike()) {
        Ok(leaks) => leaks,
        Err(error) => vec![format!("not counted to the end: {error:#}\n{}", host.agent_at_work())],
    };
    let report = Report {
        deeds: host.deeds,
        operations: shared
            .common
            .lines()
            .into_iter()
            .map(|(operation, all, outcomes)| (operation.text().to_owned(), all, outcomes))
            .collect(),
        violations: host.violations,
        leaks,
        netns: fs::read_link("/proc/self/ns/net")?.display().to_string(),
    };
    let file = fs::File::create(options.folder.join("report.json"))?;
    serde_json::to_writer(file, &report)?;
    drop(memory);
    Ok(())
}

/// Some cgroups are side by side, and some are below each other.
fn make_cgroups(home: &Path) -> Result<Vec<PathBuf>> {
    let mut cgroups = vec![home.to_owned()];
    for name in ["a", "a/deep", "b"] {
        let path = home.join(name);
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        cgroups.push(path);
    }
    Ok(cgroups)
}

impl Host {
    fn post(&self, command: &mut Command, number: usize, incarnation: u64) {
        command
            .args(["--shared", &self.shared_path])
            .args(["--crew", &self.shared.crew.len().to_string()])
            .args(["--sections", &self.shared.sections.len().to_string()])
            .args(["--number", &number.to_string()])
            .args(["--incarnation", &incarnation.to_string()])
            .args(["--seed", &self.options.seed.to_string()])
            .arg("--folder")
            .arg(&self.options.folder)
            .stdin(Stdio::null());
    }

    fn spawn(&self, words: &str, number: usize, incarnation: u64, more: &[String]) -> Result<Child> {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(words);
        self.post(&mut command, number, incarnation);
        command.args(more);
        // SAFETY: the new process does one system call, prctl, before it becomes another program.
        unsafe {
            command.pre_exec(|| {
                die_with_parent();
                Ok(())
            });
        }
        self.shared.crew[number].alive.store(incarnation, SeqCst);
        command.spawn().with_context(|| format!("starting process {number}"))
    }

    fn worker(&mut self, number: usize, incarnation: u64) -> Result<Child> {
        let apart = number % APART == APART - 1;
        let section = if apart { 1 + number / APART } else { 0 };
        if apart {
            // Its namespace is a new one.
            let section = &self.shared.sections[section];
            section.granted.iter().chain(&section.drawn).for_each(|cell| cell.store(0, SeqCst));
        }
        let uid = if number.is_multiple_of(3) { 0 } else { USERS[number % USERS.len()] };
        let mut more = vec![format!("--section={section}"), format!("--uid={uid}")];
        let first = (number / 2) % self.cgroups.len();
        let rotated = self.cgroups.iter().cycle().skip(first).take(self.cgroups.len());
        more.extend(rotated.map(|path| format!("--cgroup={}", path.display())));
        self.deeds.started += 1;
        self.spawn("worker", number, incarnation, &more)
    }

    /// Say first that it is no longer alive: its reservations are no longer certain.
    fn doom(&self, number: usize) {
        self.shared.crew[number].alive.store(0, SeqCst);
    }

    fn perform(&mut self) -> Result<()> {
        for number in 0..self.options.processes {
            let child = self.worker(number, 1)?;
            self.workers.push((child, 1));
        }
        let root = cgroup::root().context("no cgroup v2 hierarchy")?;
        let below = self.cgroups[1].strip_prefix(&root)?.display().to_string();
        let number = self.options.processes;
        self.administrator = Some(self.spawn("administrator", number, 1, &[format!("--cgroup=/{below}")])?);

        let begin = Instant::now();
        let end = begin + Duration::from_secs(self.options.seconds);
        let mut audit_due = begin + Duration::from_secs(5);
        let mut upgrade_due = begin + Duration::from_secs(3);
        while Instant::now() < end && self.shared.common.violations.load(SeqCst) == 0 && self.violations.is_empty() {
            std::thread::sleep(Duration::from_millis(self.random.below(120)));
            self.look_after_agent()?;
            self.reap()?;
            self.strike_one()?;
            if Instant::now() >= upgrade_due {
                self.upgrade()?;
                upgrade_due = Instant::now() + Duration::from_secs(5 + self.random.below(30));
            }
            if Instant::now() >= audit_due {
                self.audit()?;
                audit_due = Instant::now() + Duration::from_secs(8 + self.random.below(8));
            }
        }
        // After a violation everything stays as it is.
        if self.violations.is_empty() { self.audit() } else { Ok(()) }
    }

    /// One of the things that happen.
    fn strike_one(&mut self) -> Result<()> {
        match self.random.below(200) {
            0..=119 => {
                let victim = self.random.index(self.workers.len());
                self.kill(victim)?;
            }
            120..=121 => self.kill_agent()?,
            122 => {
                if let Some(agent) = self.agent.take_if(Agent::serves) {
                    agent.stop()?;
                    self.deeds.agent_stops += 1;
                    self.agent_is_gone();
                }
            }
            123..=126 => {
                // Before the agent serves, this signal would end it.
                if let Some(agent) = &mut self.agent
                    && agent.serves()
                {
                    agent.signal(Signal::HUP)?;
                    self.deeds.agent_hangups += 1;
                }
            }
            127..=132 => {
                let path = self.options.cgroup.join(format!("passing-{}", self.deeds.cgroups));
                fs::create_dir(&path)?;
                fs::remove_dir(&path)?;
                self.deeds.cgroups += 1;
            }
            _ => {}
        }
        Ok(())
    }

    fn kill(&mut self, victim: usize) -> Result<()> {
        self.doom(victim);
        let (child, incarnation) = &mut self.workers[victim];
        child.kill()?;
        child.wait()?;
        let next = *incarnation + 1;
        self.deeds.killed += 1;
        self.workers[victim] = (self.worker(victim, next)?, next);
        Ok(())
    }

    /// A worker that has ended by itself is started again; one that has failed is a violation.
    fn reap(&mut self) -> Result<()> {
        for number in 0..self.workers.len() {
            let Some(status) = self.workers[number].0.try_wait()? else { continue };
            self.doom(number);
            if !status.success() {
                self.violation(&format!("process {number} ended with {status}"), &[number]);
            }
            self.deeds.ended_by_themselves += 1;
            let next = self.workers[number].1 + 1;
            self.workers[number] = (self.worker(number, next)?, next);
        }
        let administrator = self.administrator.as_mut().context("no administrator")?;
        if let Some(status) = administrator.try_wait()? {
            bail!("the administrator ended with {status}");
        }
        Ok(())
    }

    fn violation(&self, text: &str, involved: &[usize]) {
        report::Reporter::new(self.shared, &self.options.folder, self.options.processes, 0).violation(text, involved);
    }

    fn agent_is_gone(&mut self) {
        self.agent_due = Instant::now() + Duration::from_millis(self.random.below(1500));
    }

    fn kill_agent(&mut self) -> Result<()> {
        if let Some(agent) = self.agent.take() {
            agent.kill()?;
            self.deeds.agent_kills += 1;
            self.agent_is_gone();
        }
        Ok(())
    }

    fn look_after_agent(&mut self) -> Result<()> {
        if let Some(agent) = &mut self.agent {
            if let Some(status) = agent.ended()? {
                bail!("the agent ended by itself ({status}):\n{}", self.place.log_tail());
            }
        } else if Instant::now() >= self.agent_due {
            self.agent = Some(Agent::start(&self.place)?);
        }
        Ok(())
    }

    /// It serves when this returns.
    fn need_agent(&mut self) -> Result<()> {
        if self.agent.is_none() {
            self.agent = Some(Agent::start(&self.place)?);
        }
        let agent = self.agent.as_mut().context("no agent")?;
        agent.wait_until_it_serves().with_context(|| format!("the agent's log:\n{}", self.place.log_tail()))
    }

    /// The same programs again, under the links that are up, as another build's would be.
    fn upgrade(&mut self) -> Result<()> {
        // An agent that starts between the two steps would rightly refuse to serve another build's programs.
        if let Some(agent) = &mut self.agent {
            agent.wait_until_it_serves().with_context(|| format!("the agent's log:\n{}", self.place.log_tail()))?;
        }
        self.instance.pretend_build(self.random.below(u64::MAX))?;
        if !Instance::upgrade(&self.place.pins()).context("upgrade")? {
            bail!("upgrade found nothing to do");
        }
        self.deeds.upgrades += 1;
        Ok(())
    }

    fn pause(&mut self) -> Result<()> {
        let pause = self.shared.common.pause.fetch_add(1, SeqCst) + 1;
        let begin = Instant::now();
        loop {
            self.reap()?;
            let late: Vec<usize> =
                (0..self.shared.crew.len()).filter(|n| self.shared.crew[*n].paused.load(SeqCst) != pause).collect();
            if late.is_empty() {
                return Ok(());
            }
            if begin.elapsed() > Duration::from_secs(300) {
                self.violation(&format!("processes {late:?} do not come to rest"), &late);
                bail!("processes {late:?} do not come to rest");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn audit(&mut self) -> Result<()> {
        self.pause()?;
        self.need_agent()?;
        let unanswered = checks::settled(|| checks::unanswered(&self.instance))?;
        let theirs = reserved_set(THEIRS);
        let wrong = checks::settled(|| checks::audit(&self.instance, self.shared, self.netns, &theirs))?;
        for text in unanswered.into_iter().chain(wrong) {
            self.violations.push(format!("audit {}: {text}", self.deeds.audits));
        }
        self.deeds.audits += 1;
        let counters = self.instance.maps()?.counters()?;
        self.deeds.most_reservations = self.deeds.most_reservations.max(counters.reservations);
        if self.violations.is_empty() {
            self.shared.common.pause.fetch_add(1, SeqCst);
        }
        Ok(())
    }

    fn read_violations(&mut self) -> Result<()> {
        let mut files: Vec<_> =
            fs::read_dir(report::folder(&self.options.folder))?.flatten().map(|e| e.path()).collect();
        files.sort();
        for path in files {
            self.violations.push(fs::read_to_string(path)?);
        }
        Ok(())
    }

    /// Kill all processes, remove everything, and count what is left.
    fn strike(&mut self) -> Result<Vec<String>> {
        let administrator = self.options.processes;
        for number in 0..=administrator {
            self.doom(number);
        }
        let children = self.workers.drain(..).map(|(child, _)| child).chain(self.administrator.take());
        for mut child in children {
            child.kill()?;
            child.wait()?;
        }
        self.need_agent()?;
        self.delete_everything_at_last().context("deleting what is persistent")?;
        let maps = self.instance.maps()?;
        let mut left = checks::settled(|| checks::left_in_maps(&maps, self.netns))?;
        left.extend(checks::settled(|| {
            let now = reserved_ports()?;
            Ok(if now == THEIRS { Vec::new() } else { vec![format!("ip_local_reserved_ports: {now}, was {THEIRS}")] })
        })?);
        let pid = self.agent.as_ref().context("no agent")?.pid();
        // Connections of processes that were killed just now are closed one after the other.
        left.extend(checks::settled(|| {
            let descriptors = super::worker::descriptors(pid)?;
            let many = descriptors.get("socket").filter(|n| **n > 8);
            Ok(many.map(|n| format!("the agent has {n} sockets open")).into_iter().collect())
        })?);
        let agent = self.agent.take().context("no agent")?;
        agent.stop()?;
        let mut maps = self.instance.maps()?;
        left.extend(checks::left_without_agent(&mut maps, &self.instance.admin()?, self.netns)?);
        let down = self.place.command(&["down"]).output().context("portkeep down")?;
        if !down.status.success() {
            left.push(format!("portkeep down: {}", String::from_utf8_lossy(&down.stderr)));
        }
        let now = reserved_ports()?;
        if now != THEIRS {
            left.push(format!("ip_local_reserved_ports after down: {now}, was {THEIRS}"));
        }
        if self.place.pins().exists() {
            left.push(format!("{} is still there", self.place.pins().display()));
        }
        Ok(left)
    }

    /// Where the agent is in the kernel, and what it said last.
    fn agent_at_work(&self) -> String {
        let Some(agent) = &self.agent else { return String::new() };
        let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid())).into_iter().flatten().flatten();
        let stacks = tasks.map(|task| fs::read_to_string(task.path().join("stack")).unwrap_or_default());
        format!("the agent is in\n{}its log ends\n{}", stacks.collect::<Vec<_>>().join("\n"), self.place.log_tail())
    }

    /// An agent with much to do may answer late; that is no leak.
    fn delete_everything_at_last(&mut self) -> Result<()> {
        for _ in 0..10 {
            match self.delete_everything() {
                Err(error) if matches!(error.downcast_ref(), Some(PersistentError::Lost(_))) => {
                    self.deeds.late_answers += 1;
                }
                done => return done,
            }
        }
        self.delete_everything()
    }

    fn delete_everything(&self) -> Result<()> {
        for entry in fs::read_dir(self.place.drop_ins())?.flatten() {
            fs::remove_file(entry.path())?;
        }
        let mut agent = self.place.connect()?;
        agent.reload()?;
        for listed in agent.list()? {
            let Some(declaration) = listed.declaration() else { continue };
            agent.delete(&Which::Name(declaration.name))?;
        }
        let left: BTreeSet<String> = agent.list()?.into_iter().filter_map(|info| info.name).collect();
        if !left.is_empty() {
            bail!("still listed: {left:?}");
        }
        Ok(())
    }
}
