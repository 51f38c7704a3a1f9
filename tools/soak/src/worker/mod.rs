//! One of many processes: it does everything at random, and compares the results with the ledger.
//!
//! All its choices come from the seed, its number and how often that number was started. The results depend on the
//! others, so no run is exactly like another; but the same seed makes the same attempts.

mod attack;
mod consume;
mod outsider;
mod reserve;
mod share;

pub(super) use outsider::USERS;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::{fs::MetadataExt, net::UnixDatagram},
    path::{Path, PathBuf},
    sync::atomic::Ordering::SeqCst,
    time::Duration,
};

use anyhow::{Context, Result};
use portkeep_core::{Transport, wire};
use portkeep_kernel::cgroup;
use portkeep_testkit::{new_namespace, process::become_user, random::Random, sockets};
use rustix::process::{Signal, nice, set_parent_process_death_signal};
use socket2::{Domain, Socket};

use super::{
    ledger::{Drawn, Entry, Grant, Ledger, Person},
    report::Reporter,
    shared::{Crew, Shared},
    tally::Operation,
};

/// One of the processes of a soak; started by it
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(super) post: Post,
    /// Part of the ledger
    #[arg(long)]
    section: usize,
    /// Become this user
    #[arg(long)]
    uid: u32,
    /// Cgroups to move between, the first is where it begins
    #[arg(long)]
    cgroup: Vec<PathBuf>,
}

/// The parameters of every process of a soak.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Post {
    /// The shared memory
    #[arg(long)]
    pub(super) shared: PathBuf,
    /// How many processes write in it
    #[arg(long)]
    pub(super) crew: usize,
    /// How many namespaces
    #[arg(long)]
    pub(super) sections: usize,
    /// Which one this is
    #[arg(long)]
    pub(super) number: usize,
    /// The how-manieth of this number
    #[arg(long)]
    pub(super) incarnation: u64,
    #[arg(long)]
    pub(super) seed: u64,
    /// Folder of the run
    #[arg(long)]
    pub(super) folder: PathBuf,
}

impl Post {
    pub(super) fn open(&self) -> Result<Shared> {
        Shared::open(&self.shared, self.crew, self.sections).context("opening the shared memory")
    }

    pub(super) fn random(&self) -> Random {
        Random::stream(self.seed, &[self.number as u64 + 1, self.incarnation])
    }
}

/// Sockets a process has at a time.
const SOCKETS: usize = 16;
/// Reservations it has written down at a time.
const RESERVATIONS: usize = 10;

/// The reservation that a socket is associated with.
#[derive(Clone, Copy, Debug)]
struct Association {
    entry: Entry,
    grant: Grant,
}

/// A socket and what is known about it.
#[derive(Debug)]
struct Held {
    socket: Socket,
    transport: Transport,
    owns: Vec<(Entry, Grant)>,
    pending: Option<wire::AcquireRequest>,
    association: Option<Association>,
    drawn: Option<Drawn>,
    bound: bool,
    /// Another process has it, too, so its state is no longer known.
    shared: bool,
}

impl Held {
    fn new(socket: Socket, transport: Transport) -> Self {
        let (owns, pending, association, drawn) = (Vec::new(), None, None, None);
        Self { socket, transport, owns, pending, association, drawn, bound: false, shared: false }
    }

    fn is_plain(&self) -> bool {
        !self.bound && !self.shared
    }
}

struct Worker {
    post: Post,
    common: Shared,
    crew: &'static Crew,
    ledger: Ledger,
    reporter: Reporter,
    random: Random,
    person: Person,
    held: Vec<Held>,
    mail: UnixDatagram,
    /// Connections to ports that are reserved no more.
    leftovers: Vec<(Socket, Socket)>,
    /// Alone in a namespace of its own.
    apart: bool,
    cgroups: Vec<PathBuf>,
}

/// The path of the socket where a process receives sockets from others.
fn mailbox(folder: &Path, number: usize) -> PathBuf {
    folder.join("mail").join(number.to_string())
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let Options { post, section, uid, cgroup, .. } = options;
    // The agent and the host must get processor time, and so must the other work on this machine.
    let _ = nice(15);
    let common = post.open()?;
    let mine = cgroup.first().context("no cgroup")?;
    fs::write(mine.join("cgroup.procs"), "0").with_context(|| format!("moving into {}", mine.display()))?;
    if *section > 0 {
        new_namespace();
    }
    let path = mailbox(&post.folder, post.number);
    let _ = fs::remove_file(&path);
    let mail = UnixDatagram::bind(&path).context("making the mailbox")?;
    mail.set_nonblocking(true)?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    if *uid != 0 {
        become_user(*uid);
    }
    let person = Person { pid: std::process::id(), uid: *uid, gid: *uid, cgroups: chain(mine)? };
    let crew = &common.crew[post.number];
    crew.uid.store(*uid, SeqCst);
    let mut worker = Worker {
        ledger: Ledger::new(common, *section, post.number, post.incarnation),
        reporter: Reporter::new(common, &post.folder, post.number, post.incarnation),
        random: post.random(),
        held: Vec::new(),
        leftovers: Vec::new(),
        apart: *section > 0,
        cgroups: cgroup.clone(),
        post: post.clone(),
        common,
        crew,
        person,
        mail,
    };
    worker.rage();
    Ok(())
}

/// Ids of a cgroup and all above it.
fn chain(path: &Path) -> Result<Vec<u64>> {
    let ancestors = path.ancestors().take_while(|path| cgroup::is_cgroup2(path));
    ancestors.map(|path| Ok(fs::metadata(path)?.ino())).collect()
}

/// Wait while everybody has to.
pub(super) fn obey(common: &Shared, crew: &Crew) {
    loop {
        let pause = common.common.pause.load(SeqCst);
        if pause.is_multiple_of(2) {
            return;
        }
        crew.paused.store(pause, SeqCst);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The outcome as the tally has it.
fn outcome<T>(result: &io::Result<T>) -> i32 {
    result.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO))
}

impl Worker {
    fn rage(&mut self) {
        loop {
            obey(&self.common, self.crew);
            self.act();
            if self.random.one_in(4) {
                std::thread::sleep(Duration::from_micros(self.random.below(8000)));
            }
            if self.random.one_in(4000) {
                break;
            }
        }
        // It ends by itself: everything closes as it does at an exit.
        self.crew.step("exit");
        self.crew.alive.store(0, SeqCst);
    }

    fn act(&mut self) {
        match self.random.below(100) {
            0..=11 => self.acquire(),
            12..=14 => self.hear_answers(),
            15 => self.acquire_malformed(),
            16..=21 => self.release(),
            22 => self.release_foreign(),
            23..=31 => self.associate_own(),
            32..=34 => self.associate_foreign(),
            35..=43 => self.draw(),
            44..=46 => self.bind_inside(),
            47 => self.bind_outside(),
            48..=51 => self.bind_own(),
            52..=58 => self.bind_outsider(),
            59..=61 => self.attack(),
            62..=63 => self.bind_somewhere(),
            64..=66 => self.automatic(),
            67..=68 => self.connect_drawn(),
            69..=71 => self.traffic(),
            72..=73 => self.duplicate(),
            74 if self.random.one_in(4) => self.fork_holds(),
            75 if self.random.one_in(3) => self.fork_outsider(),
            76 if self.random.one_in(3) => self.fork_user(),
            77..=79 if !self.apart => self.pass(),
            80..=82 if !self.apart => self.take(),
            83..=91 => self.close(),
            92 if self.random.one_in(4) => self.move_about(),
            _ => self.query(),
        }
    }

    fn count(&self, operation: Operation, outcome: i32) {
        self.common.common.count(operation, outcome);
    }

    /// Count it, remember it, and complain about an outcome that cannot be.
    fn expect<T>(&self, operation: Operation, what: &str, result: &io::Result<T>, possible: &[i32]) -> bool {
        let outcome = outcome(result);
        self.count(operation, outcome);
        self.crew.step(&format!("{}: {what}: {outcome}", operation.text()));
        if outcome != 0 && !possible.contains(&outcome) {
            self.violation(&format!("{}: {what}: unexpected error {outcome}", operation.text()), &[]);
        }
        outcome == 0
    }

    fn violation(&self, text: &str, involved: &[usize]) {
        self.reporter.violation(text, involved);
    }

    fn transport(&mut self) -> Transport {
        self.random.of(&Transport::ALL)
    }

    fn fresh_socket(&mut self, transport: Transport) -> Socket {
        let domain = if self.random.one_in(3) { Domain::IPV6 } else { Domain::IPV4 };
        sockets::socket(domain, transport)
    }

    /// The number of a socket at hand that will do, or of a new one.
    fn socket_for(&mut self, transport: Option<Transport>, will_do: impl Fn(&Held) -> bool) -> usize {
        let fits = |held: &Held| transport.is_none_or(|wanted| wanted == held.transport) && will_do(held);
        let found: Vec<usize> = (0..self.held.len()).filter(|i| fits(&self.held[*i])).collect();
        if !found.is_empty() && !self.random.one_in(3) {
            return self.random.of(&found);
        }
        if self.held.len() >= SOCKETS {
            let victim = self.random.index(self.held.len());
            self.close_one(victim);
        }
        let transport = transport.unwrap_or_else(|| self.transport());
        let socket = self.fresh_socket(transport);
        self.held.push(Held::new(socket, transport));
        self.held.len() - 1
    }

    /// One of those that satisfy a condition.
    fn pick(&mut self, will_do: impl Fn(&Held) -> bool) -> Option<usize> {
        let found: Vec<usize> = (0..self.held.len()).filter(|i| will_do(&self.held[*i])).collect();
        (!found.is_empty()).then(|| self.random.of(&found))
    }

    /// One's own grants: the socket's number and the grant's among its own.
    fn pick_grant(&mut self) -> Option<(usize, usize)> {
        let all: Vec<_> =
            self.held.iter().enumerate().flat_map(|(i, held)| (0..held.owns.len()).map(move |j| (i, j))).collect();
        (!all.is_empty()).then(|| self.random.of(&all))
    }

    /// Somebody's grant that is in force, in this namespace.
    fn pick_foreign(&mut self) -> Option<(Entry, Grant)> {
        for _ in 0..8 {
            let number = if self.apart { self.post.number } else { self.random.index(self.post.crew) };
            let slot = self.random.index(RESERVATIONS + 2);
            if let Some(found) = self.ledger.of(number, slot) {
                return Some(found);
            }
        }
        None
    }

    fn close(&mut self) {
        if let Some(i) = self.pick(|_| true) {
            self.crew.step(&format!("close: owns {}", self.held[i].owns.len()));
            self.count(Operation::Close, 0);
            self.close_one(i);
        }
    }

    /// Its reservations are crossed out before they end.
    fn close_one(&mut self, i: usize) {
        let held = self.held.swap_remove(i);
        for (entry, grant) in &held.owns {
            self.ledger.cross_out(*entry, grant);
        }
        if let Some(drawn) = &held.drawn {
            self.ledger.undraw(drawn);
        }
        drop(held);
    }

    fn move_about(&mut self) {
        if self.person.uid != 0 {
            return;
        }
        let to = self.random.index(self.cgroups.len());
        let to = self.cgroups[to].clone();
        let result = fs::write(to.join("cgroup.procs"), "0");
        self.expect(Operation::Move, &to.display().to_string(), &result, &[]);
        match chain(&to) {
            Ok(cgroups) if result.is_ok() => self.person.cgroups = cgroups,
            _ => {}
        }
    }

    /// A query about a grant of this process must return that grant.
    fn query(&mut self) {
        let transport = self.transport();
        let socket = self.fresh_socket(transport);
        let Some((i, j)) = self.pick_grant() else {
            let version = portkeep::control::version(&socket);
            self.expect(Operation::Query, "version", &version, &[]);
            return;
        };
        let (_, grant) = self.held[i].owns[j];
        let by = self.random.of(&[wire::BY_TOKEN, wire::BY_PORT]);
        let transport = if grant.of(Transport::Tcp) { Transport::Tcp } else { Transport::Udp };
        let port = grant.start + self.random.below(grant.count.into()) as u16;
        let select =
            wire::SelectRequest { by, port, transport: transport.bit(), token: grant.token, ..Default::default() };
        let state = portkeep::control::state(&socket, &select);
        if self.expect(Operation::Query, &format!("by {by} {}", grant.describe()), &state, &[])
            && let Ok(state) = state
            && (state.start, state.count, state.state) != (grant.start, grant.count, wire::ACTIVE)
        {
            self.violation(&format!("asked about {}, got {state:?}", grant.describe()), &[]);
        }
    }

    /// How many of one's reservations are written down.
    fn reservations(&self) -> usize {
        self.held.iter().map(|held| held.owns.len()).sum()
    }
}

/// For a listing of what is open at an end.
pub(super) fn descriptors(pid: u32) -> io::Result<BTreeMap<String, usize>> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let text = target.display().to_string();
        let kind = text.split_once(':').map_or(text.as_str(), |(kind, _)| kind).to_owned();
        *kinds.entry(kind).or_default() += 1;
    }
    Ok(kinds)
}

/// Die with the process that started this one.
pub(super) fn die_with_parent() {
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
}
