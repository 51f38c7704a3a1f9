//! The process that creates, deletes and declares persistent reservations, while the agent is killed again and again.
//!
//! It knows what was reported and what is in doubt. A reservation that was reported created must be there and in force,
//! with the same token, through every death of the agent. A reservation that was reported deleted must not come back.
//! If the agent did not answer, either may be true, and the next list shows which.

use std::{collections::BTreeMap, fs, sync::atomic::Ordering::SeqCst, time::Duration};

use anyhow::Result;
use portkeep::{
    Info, State,
    persistent::{Account, Audience, Block, Lifetime, PersistentError, Proposal, Which},
};
use portkeep_core::{PortRange, Token, Transports, wire};
use portkeep_kernel::cgroup;
use portkeep_testkit::random::Random;

use super::{
    agent::Place,
    ledger::{Entry, Grant, Ledger, now},
    report::Reporter,
    shared::{Crew, Shared},
    tally::Operation,
    worker::{Post, USERS, obey},
};

/// The administrator of a soak; started by it
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    post: Post,
    /// Cgroup that reservations are made for, as a path below the root
    #[arg(long)]
    cgroup: String,
}

/// How many there can be of each kind.
const EACH: u64 = 12;

/// The known facts about a reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    Absent,
    /// As it was reported.
    Standing(Box<Info>),
    Doubt,
}

struct Administrator {
    place: Place,
    shared: Shared,
    crew: &'static Crew,
    ledger: Ledger,
    reporter: Reporter,
    random: Random,
    cgroup: String,
    cgroup_id: u64,
    /// Created by command, by number.
    created: BTreeMap<u64, Known>,
    /// Declared by the file of this number; `None`: there is no file. As the agent has read it last.
    read: BTreeMap<u64, Option<Proposal>>,
    /// The contents of the files.
    files: BTreeMap<u64, Option<Proposal>>,
    /// The entries in the ledger, by name.
    written: BTreeMap<String, (Entry, Grant)>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let Options { post, cgroup, .. } = options;
    let shared = post.open()?;
    let root = cgroup::root().ok_or_else(|| anyhow::anyhow!("no cgroup v2 hierarchy"))?;
    let mut administrator = Administrator {
        place: Place { folder: post.folder.clone(), portkeep: "portkeep".into() },
        shared,
        crew: &shared.crew[post.number],
        ledger: Ledger::new(shared, 0, post.number, post.incarnation),
        reporter: Reporter::new(shared, &post.folder, post.number, post.incarnation),
        random: post.random(),
        cgroup: cgroup.clone(),
        cgroup_id: cgroup::id(&root.join(cgroup.trim_start_matches('/')))?,
        created: (0..EACH).map(|k| (k, Known::Absent)).collect(),
        read: BTreeMap::new(),
        files: BTreeMap::new(),
        written: BTreeMap::new(),
    };
    loop {
        obey(&administrator.shared, administrator.crew);
        administrator.act();
        std::thread::sleep(Duration::from_millis(administrator.random.below(60)));
    }
}

fn outcome<T>(result: &Result<T, PersistentError>) -> i32 {
    result.as_ref().err().map_or(0, |error| error.errno().map_or(libc::EIO, |errno| errno.0))
}

/// No agent did anything, or it is not known whether one did.
fn is_absence(error: &PersistentError) -> bool {
    matches!(error, PersistentError::AgentAbsent { .. } | PersistentError::Lost(_) | PersistentError::ConnectCall(_))
}

impl Administrator {
    fn act(&mut self) {
        let k = self.random.below(EACH);
        match self.random.below(10) {
            0..=2 => self.create(k),
            3..=4 => self.delete(k),
            5..=6 => self.declare(k),
            _ => self.list(),
        }
    }

    fn say<T>(&self, operation: Operation, what: &str, result: &Result<T, PersistentError>) {
        self.shared.common.count(operation, outcome(result));
        let error = result.as_ref().err().map(|error| format!(": {error}")).unwrap_or_default();
        self.crew.step(&format!("{}: {what}: {}{error}", operation.text(), outcome(result)));
    }

    fn violation(&self, text: &str) {
        self.reporter.violation(text, &[]);
    }

    fn audience(&mut self) -> Audience {
        let user = self.random.of(&USERS);
        match self.random.below(4) {
            0 => Audience::Administrators,
            1 => Audience::User(Account::Id(user)),
            2 => Audience::Group(Account::Id(user)),
            _ => Audience::cgroup(&self.cgroup).unwrap_or(Audience::Administrators),
        }
    }

    /// From ports that other processes ask for, too.
    fn proposal(&mut self, letter: char, k: u64) -> Proposal {
        let base = if letter == 'c' { 5000 } else { 6000 };
        let start = base + 25 * k as u16 + self.random.below(5) as u16;
        let start = if k == 0 { start - base + 700 } else { start };
        let name = format!("{letter}{k}").parse().expect("a name");
        let ports = PortRange::new(start, 1 + self.random.below(15) as u16).expect("a block");
        let transports = self.random.of(&[Transports::Tcp, Transports::Udp, Transports::Both]);
        let mut proposal = Proposal::new(name, ports, transports);
        if letter == 'c' && self.random.one_in(6) {
            let block = Block::Any { count: ports.count(), align: portkeep_core::Align::ANY };
            proposal.block = block;
        }
        proposal.audience(self.audience()).strict(self.random.one_in(4))
    }

    fn create(&mut self, k: u64) {
        let proposal = self.proposal('c', k);
        let kept = if self.random.one_in(3) { Lifetime::UntilReboot } else { Lifetime::UntilDeleted };
        let result = self.place.connect().and_then(|mut agent| agent.create(&proposal, kept));
        self.say(Operation::Create, &format!("{proposal:?}"), &result);
        let before = self.created[&k].clone();
        match (result, before) {
            (Ok(_), Known::Standing(known)) => self.violation(&format!("created again beside {known:?}")),
            (Ok(created), _) => {
                self.write(&created);
                self.created.insert(k, Known::Standing(Box::new(created)));
            }
            (Err(PersistentError::NameTaken(why)), Known::Absent) => {
                self.violation(&format!("c{k} was deleted, or never created, and is there: {why}"));
            }
            (Err(PersistentError::NameTaken(_)), _) => {}
            (Err(PersistentError::InUse(_) | PersistentError::NoRoom(_)), _) => {}
            (Err(PersistentError::Lost(_)), Known::Absent) => drop(self.created.insert(k, Known::Doubt)),
            (Err(error), _) if is_absence(&error) => {}
            (Err(error), _) => self.violation(&format!("creating {proposal:?}: {error}")),
        }
    }

    fn delete(&mut self, k: u64) {
        let before = self.created[&k].clone();
        let name = format!("c{k}");
        self.cross_out(&name);
        let result =
            self.place.connect().and_then(|mut agent| agent.delete(&Which::Name(name.parse().expect("a name"))));
        self.say(Operation::Delete, &name, &result);
        match (result, before) {
            (Ok(_), Known::Absent) => self.violation(&format!("{name} was deleted, or never created, and was there")),
            (Ok(_), _) => drop(self.created.insert(k, Known::Absent)),
            (Err(PersistentError::NotFound), Known::Standing(known)) => {
                self.violation(&format!("{known:?} was reported created and is gone"));
            }
            (Err(PersistentError::NotFound), _) => drop(self.created.insert(k, Known::Absent)),
            (Err(PersistentError::Lost(_)), Known::Standing(..)) => drop(self.created.insert(k, Known::Doubt)),
            (Err(error), _) if is_absence(&error) => {}
            (Err(error), _) => self.violation(&format!("deleting {name}: {error}")),
        }
    }

    /// A file comes, changes or goes, and the agent is notified.
    fn declare(&mut self, k: u64) {
        let name = format!("d{k}");
        self.cross_out(&name);
        let folder = self.place.drop_ins();
        let path = folder.join(format!("{name}.toml"));
        let there = self.files.get(&k).cloned().flatten();
        let new = match there {
            Some(_) if self.random.one_in(2) => None,
            // For another audience: the ports stay, so the reservation need not end in between.
            Some(old) if self.random.one_in(2) => Some(old.audience(self.audience())),
            _ => Some(self.proposal('d', k)),
        };
        let done = match &new {
            None => fs::remove_file(&path),
            Some(proposal) => {
                let aside = self.place.folder.join("aside");
                fs::write(&aside, stanza(proposal)).and_then(|()| fs::rename(&aside, &path))
            }
        };
        if let Err(error) = done {
            return self.violation(&format!("{}: {error}", path.display()));
        }
        self.shared.common.count(Operation::DropIn, 0);
        self.crew.step(&format!("drop-in d{k}: {new:?}"));
        self.files.insert(k, new);
        // Until the agent has read it nothing is known of this one.
        self.read.remove(&k);
        let result = self.place.connect().and_then(|mut agent| agent.reload());
        self.say(Operation::Reload, "", &result);
        match result {
            Ok(reloaded) => {
                let wrong = [reloaded.errors, reloaded.complaints].concat();
                if !wrong.is_empty() {
                    self.crew.step(&format!("complaints: {wrong:?}"));
                }
                self.read = self.files.clone();
                self.list();
            }
            Err(error) if is_absence(&error) => {}
            Err(error) => self.violation(&format!("reload: {error}")),
        }
    }

    fn list(&mut self) {
        let result = self.place.connect().and_then(|mut agent| agent.list());
        self.say(Operation::List, "", &result);
        let listed = match result {
            Ok(listed) => listed,
            Err(error) if is_absence(&error) => return,
            Err(error) => return self.violation(&format!("list: {error}")),
        };
        let listed: BTreeMap<String, Info> =
            listed.into_iter().map(|info| (info.name.clone().unwrap_or_default(), info)).collect();
        for k in 0..EACH {
            self.compare_created(k, listed.get(&format!("c{k}")));
            self.compare_declared(k, listed.get(&format!("d{k}")));
        }
    }

    fn compare_created(&mut self, k: u64, listed: Option<&Info>) {
        match (self.created[&k].clone(), listed) {
            (Known::Absent, Some(listed)) => self.violation(&format!("{listed:?} has come back")),
            (Known::Standing(known), None) => {
                self.violation(&format!("{known:?} was reported created and is not listed"));
            }
            (Known::Standing(known), Some(listed)) => {
                let declared = |info: &Info| (info.state, info.declaration(), info.token);
                if declared(&known) != declared(listed) {
                    self.violation(&format!("{known:?} was created, and now it is {listed:?}"));
                }
                self.write(&known);
            }
            (Known::Doubt, Some(listed)) if listed.state == State::Active => {
                self.write(listed);
                self.created.insert(k, Known::Standing(Box::new(listed.clone())));
            }
            (Known::Doubt, None) => drop(self.created.insert(k, Known::Absent)),
            _ => {}
        }
    }

    fn compare_declared(&mut self, k: u64, listed: Option<&Info>) {
        let name = format!("d{k}");
        let Some(read) = self.read.get(&k).cloned() else { return };
        match (read, listed) {
            (None, Some(listed)) => self.violation(&format!("{listed:?} is declared no more and is listed")),
            (Some(proposal), None) => self.violation(&format!("{proposal:?} is declared and is not listed")),
            (Some(proposal), Some(listed)) => {
                if listed.audience.as_ref() != Some(&proposal.audience) || listed.strict != proposal.strict {
                    self.violation(&format!("{proposal:?} is declared and {listed:?} is listed"));
                }
                if let Some((_, grant)) = self.written.get(&name)
                    && (listed.state != State::Active || listed.token.map(Token::get) != Some(grant.token))
                {
                    self.violation(&format!("{} was in force, and now it is {listed:?}", grant.describe()));
                }
                if listed.state == State::Active {
                    self.write(listed);
                }
            }
            (None, None) => {}
        }
    }

    /// It is in force: everybody may rely on it from now on.
    fn write(&mut self, info: &Info) {
        let name = info.name.clone().unwrap_or_default();
        if self.written.contains_key(&name) {
            return;
        }
        let Some(token) = info.token else {
            return self.violation(&format!("in force and without a token: {info:?}"));
        };
        let (scope, uid) = match info.audience.clone().unwrap_or_default() {
            Audience::User(Account::Id(uid)) => (wire::SCOPE_USER, uid),
            Audience::Group(Account::Id(gid)) => (wire::SCOPE_GROUP, gid),
            Audience::Cgroup(_) => (wire::SCOPE_CGROUP, 0),
            // No other audience is declared here.
            Audience::Administrators
            | Audience::User(_)
            | Audience::Group(_)
            | Audience::Unit(_)
            | Audience::Several(_) => (wire::SCOPE_ADMIN, 0),
        };
        let flags = wire::PERSISTENT | if info.strict { wire::STRICT } else { 0 };
        let grant = Grant {
            token: token.get(),
            start: info.ports.start(),
            count: info.ports.count(),
            transports: info.transports.bits(),
            scope: scope as u8,
            flags: flags as u8,
            pid: 0,
            uid,
            cgroup: self.cgroup_id,
            since: now(),
        };
        let Some(slot) = self.ledger.free_slot() else { return };
        match self.ledger.write(slot, &grant) {
            Ok(entry) => drop(self.written.insert(name, (entry, grant))),
            Err((port, entry, other)) => {
                let text = format!("port {port} belongs to two: to {} and to {}", grant.describe(), other.describe());
                self.reporter.violation(&text, &[entry.holder()]);
            }
        }
    }

    fn cross_out(&mut self, name: &str) {
        if let Some((entry, grant)) = self.written.remove(name) {
            self.ledger.cross_out(entry, &grant);
        }
    }
}

impl Drop for Administrator {
    fn drop(&mut self) {
        self.crew.alive.store(0, SeqCst);
    }
}

/// A proposal as a drop-in says it.
fn stanza(proposal: &Proposal) -> String {
    match &proposal.block {
        Block::Ports(ports) => portkeep_persist::export([&proposal.declaration(ports.clone())]),
        Block::Any { .. } => String::new(),
    }
}
