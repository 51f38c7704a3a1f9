//! The daemon of a host: it watches the decisions for the host, has the kernel enforce them, and answers.
//!
//! It keeps only its own membership alive. If it dies, or etcd cannot be reached, the kernel's reservations stay as
//! they are; the next daemon, or the next connection, compares them with etcd ([`Daemon::reconcile`]).

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::bail;
use portkeep::persistent::protocol::{Reason, Refused};

use crate::{
    arbiter,
    config::Config,
    etcd::{Batch, Change, Client, Compare, EtcdError, Interrupt, KeepAlive, KeyValue, LeaseNews, Op},
    fence::{Fence, Reserved},
    memory::Memory,
    parts::{Ending, LocalParts, PartStage},
    record::{Answer, Job, Keys, Member, Part},
};

/// The pause between two checks whether ports have become vacant: the first one, and the longest one.
const SOON: Duration = Duration::from_millis(50);
const LATER: Duration = Duration::from_secs(1);
/// The pause between attempts to reach etcd.
const PAUSE: Duration = Duration::from_millis(500);

/// Input of the daemon.
#[derive(Debug)]
pub(crate) enum DaemonInput {
    Changes(u64, Result<Batch, EtcdError>),
    Lease(LeaseNews),
    /// End, and leave the reservations alone.
    Stop,
}

/// Why a connection ended.
enum Over {
    Stopped,
    LeaseEnded,
}

pub(crate) struct Daemon<F> {
    pub(crate) client: Arc<Client>,
    pub(crate) config: Config,
    pub(crate) host: String,
    pub(crate) memory: Memory,
    pub(crate) parts: LocalParts<F>,
    pub(crate) inbox: Receiver<DaemonInput>,
    pub(crate) outbox: Sender<DaemonInput>,
    /// Called once it belongs to the fleet.
    pub(crate) ready: Box<dyn FnMut(&Client) + Send>,
    /// Write no notes.
    pub(crate) quiet: bool,
    /// The number of the watch in use. Input from an earlier watch is ignored.
    generation: u64,
    watch: Option<Interrupt>,
    /// The kernel's reservations could not be read, so they are to be compared again.
    unsure: bool,
    /// etcd could not be reached since the last comparison.
    cut_off: bool,
    /// Until then no part ends. Requesters that were cut off, too, have this time to take their jobs back.
    grace: Instant,
}

impl<F: Fence> Daemon<F> {
    pub(crate) fn new(
        client: Arc<Client>,
        config: Config,
        host: String,
        memory: Memory,
        fence: F,
        (outbox, inbox): (Sender<DaemonInput>, Receiver<DaemonInput>),
    ) -> Self {
        let parts = LocalParts::new(fence, config.range);
        Self {
            client,
            config,
            host,
            memory,
            parts,
            inbox,
            outbox,
            ready: Box::new(|_| {}),
            quiet: false,
            generation: 0,
            watch: None,
            unsure: false,
            cut_off: false,
            grace: Instant::now(),
        }
    }

    /// Serve until it is stopped. It fails only before it has joined the fleet, and only if waiting cannot help.
    pub(crate) fn run(&mut self) -> anyhow::Result<()> {
        let (mut joined, mut failing) = (false, String::new());
        loop {
            match self.session(&mut joined) {
                Ok(Over::Stopped) => return Ok(()),
                Ok(Over::LeaseEnded) => {
                    self.cut_off = true;
                    self.note("the membership has ended in etcd; joining again");
                    failing.clear();
                }
                Err(error) => {
                    let hopeless = !matches!(error.downcast_ref(), Some(EtcdError::Unreachable { .. }));
                    if hopeless && !joined {
                        return Err(error);
                    }
                    self.cut_off = true;
                    if let Some(error) = error.downcast_ref::<EtcdError>() {
                        self.memory.cut_off(error);
                    }
                    let text = format!("{error:#}; what is reserved stays reserved");
                    if text != failing {
                        self.note(&text);
                        failing = text;
                    }
                    if self.pause(if hopeless { 10 * PAUSE } else { PAUSE }) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Wait a little. Returns true if the daemon is to end.
    fn pause(&self, pause: Duration) -> bool {
        loop {
            match self.inbox.recv_timeout(pause) {
                Ok(DaemonInput::Stop) | Err(RecvTimeoutError::Disconnected) => return true,
                Ok(DaemonInput::Changes(..) | DaemonInput::Lease(_)) => {}
                Err(RecvTimeoutError::Timeout) => return false,
            }
        }
    }

    fn note(&self, text: &str) {
        if !self.quiet {
            eprintln!("note: host {}: {text}", self.host);
        }
    }

    /// Belong to the fleet as long as the lease lives.
    fn session(&mut self, joined: &mut bool) -> anyhow::Result<Over> {
        let lease = self.client.grant(self.config.lease)?;
        self.join(lease)?;
        let outbox = self.outbox.clone();
        let keep = KeepAlive::start(Arc::clone(&self.client), lease, self.config.lease, move |news| {
            let _ = outbox.send(DaemonInput::Lease(news));
        });
        self.resync()?;
        if !*joined {
            *joined = true;
            (self.ready)(&self.client);
        }
        let over = self.serve();
        self.end_watch();
        if matches!(over, Ok(Over::Stopped)) {
            drop(keep);
            let _ = self.client.revoke(lease);
        }
        over
    }

    fn join(&mut self, lease: i64) -> anyhow::Result<()> {
        let keys = self.keys();
        let (key, known) = (keys.host(&self.host), keys.known_host(&self.host));
        let (revision, [found]) = self.client.read([Op::get(&key)])?;
        self.check_history(revision)?;
        let found = found.first();
        if let Some(other) =
            found.map(KeyValue::parse::<Member>).transpose()?.filter(|other| other.machine != self.memory.machine())
        {
            bail!(
                "the fleet has a host {:?} already, on the machine {}; give each host its own name with `host` in \
                 fleet.toml",
                self.host,
                other.machine
            );
        }
        let obstacle = self.parts.fence.obstacle();
        let member =
            Member { machine: self.memory.machine().to_owned(), version: env!("CARGO_PKG_VERSION").into(), obstacle };
        let seen = Compare::changed(&key, found.map_or(0, |found| found.mod_revision));
        let put = [Op::put(&key, &member, lease), Op::put(&known, &member.machine, 0)];
        let outcome = self.client.transact(&[seen], &put, &[])?;
        if !outcome.succeeded {
            bail!("another daemon of host {:?} joins the fleet at the same time; run only one", self.host);
        }
        self.memory.knows(&known, outcome.revision());
        Ok(())
    }

    /// Check that the history of etcd is the one that this host knows. An etcd that was restored from a backup may have
    /// reached the same revision again, but it lacks the change that this host knows.
    fn check_history(&self, revision: i64) -> Result<(), EtcdError> {
        self.memory.check(revision)?;
        let Some((key, at)) = self.memory.change() else { return Ok(()) };
        match self.client.was_changed(key, at)? {
            Some(false) => Err(self.memory.older(at, revision)),
            // A change that etcd has forgotten proves nothing.
            Some(true) | None => Ok(()),
        }
    }

    fn keys(&self) -> Keys {
        Keys(self.config.prefix.clone())
    }

    fn end_watch(&mut self) {
        self.generation += 1;
        if let Some(watch) = self.watch.take() {
            watch.end();
        }
    }

    /// Compare with etcd as it is now, and follow it from there.
    fn resync(&mut self) -> Result<(), EtcdError> {
        self.end_watch();
        let keys = self.keys();
        let live = keys.live_of(&self.host);
        let (revision, [live_now, parts]) = self.client.read([Op::all(&live), Op::keys(&keys.all_parts())])?;
        self.check_history(revision)?;
        let mut watch = self.client.watch(&live, revision + 1)?;
        self.watch = Some(watch.interrupt());
        let (outbox, generation) = (self.outbox.clone(), self.generation);
        thread::spawn(move || {
            loop {
                let batch = watch.next();
                let last = batch.is_err();
                if outbox.send(DaemonInput::Changes(generation, batch)).is_err() || last {
                    return;
                }
            }
        });
        let mine: Vec<KeyValue> = parts.into_iter().filter(|part| part.name() == self.host).collect();
        if std::mem::take(&mut self.cut_off) {
            self.grace = Instant::now() + Duration::from_secs(self.config.lease.into());
        }
        self.reconcile(&live_now, &mine)?;
        self.memory.reached(self.client.cluster(), revision)
    }

    /// Compare the kernel's reservations with the jobs of etcd: a reservation without a job ends, and a job's lost
    /// ports are reserved again.
    fn reconcile(&mut self, live: &[KeyValue], mine: &[KeyValue]) -> Result<(), EtcdError> {
        let reserved = match self.parts.fence.reserved() {
            Ok(reserved) => reserved,
            Err(reason) => {
                self.note(&format!("the reservations cannot be read: {reason}; trying again"));
                self.unsure = true;
                return Ok(());
            }
        };
        self.unsure = false;
        self.parts.held.clear();
        for found in mine {
            let (_, [now]) = self.client.read([Op::get(&found.key)])?;
            let Some(now) = now.first() else { continue };
            let part: Part = now.parse()?;
            let id = Part::id(found).to_owned();
            let revision = now.create_revision;
            let job = live.iter().find(|job| job.name() == id).map(KeyValue::parse::<Job>).transpose()?;
            let here = reserved.iter().find(|here| here.revision == revision);
            let as_asked = Reserved { name: part.name, revision, ports: part.ports, transports: part.transports };
            match (job, here) {
                (Some(job), Some(here)) => {
                    self.parts.adopt(&id, here, PartStage::Reserved, false);
                    if part.answer != Answer::Granted {
                        self.answer(&job, revision, Answer::Granted, None)?;
                    }
                }
                (Some(_), None) if part.answer == Answer::Refused => {
                    self.parts.adopt(&id, &as_asked, PartStage::Refused, false);
                }
                (Some(job), None) => self.reserve(&job, revision, part.answer, part.reason.as_ref())?,
                (None, Some(here)) => self.parts.adopt(&id, here, PartStage::Reserved, true),
                (None, None) => {
                    let stage = if part.answer == Answer::Refused { PartStage::Refused } else { PartStage::Released };
                    self.parts.adopt(&id, &as_asked, stage, true);
                }
            }
        }
        for here in &reserved {
            if !self.parts.held.values().any(|held| held.reserved.revision == here.revision) {
                self.parts.adopt(&format!("gone-{}", here.revision), here, PartStage::Reserved, true);
            }
        }
        Ok(())
    }

    /// Have the kernel enforce a decision, and answer. `before` is the answer so far, `why` its reason.
    fn reserve(&mut self, job: &Job, revision: i64, before: Answer, why: Option<&Refused>) -> Result<(), EtcdError> {
        // Noted before the answer, because the answer may not arrive.
        self.memory.knows(&self.keys().part(&job.id, &self.host), revision);
        let (mut answer, reason) = self.parts.reserve(job, revision);
        if answer == Answer::Refused && matches!(before, Answer::Granted | Answer::Lost) {
            answer = Answer::Lost;
            if let Some(held) = self.parts.held.get_mut(&job.id) {
                held.lost = true;
            }
            if before == Answer::Lost && why == reason.as_ref() {
                return Ok(());
            }
        }
        let Job { name, ports, transports, .. } = job;
        let said = reason.as_ref().map_or_else(|| "reserved".to_owned(), |reason| format!("not reserved: {reason}"));
        self.note(&format!("job {name:?}: {ports}/{transports} {said}"));
        self.answer(job, revision, answer, reason)
    }

    fn answer(&mut self, job: &Job, revision: i64, answer: Answer, reason: Option<Refused>) -> Result<(), EtcdError> {
        let key = self.keys().part(&job.id, &self.host);
        // If the decision was withdrawn in between, or is an older one, there is no part of this revision.
        let stands = [Compare::created(&key, revision)];
        let part = Part::of(job, answer, reason);
        let outcome = self.client.transact(&stands, &[Op::put(&key, &part, 0)], &[])?;
        if outcome.succeeded {
            self.memory.knows(&key, outcome.revision());
        } else {
            self.parts.over(&job.id);
        }
        Ok(())
    }

    /// Follow the decisions until the lease ends or it is stopped.
    fn serve(&mut self) -> anyhow::Result<Over> {
        let mut wait = SOON;
        loop {
            // A job that begins does not wait for one that ends.
            let input = match self.inbox.try_recv() {
                Ok(input) => Ok(input),
                Err(_) => {
                    let grace = self.grace.saturating_duration_since(Instant::now());
                    if !grace.is_zero() {
                        for id in self.parts.ending() {
                            let lease = self.config.lease;
                            let why =
                                format!("this host was cut off, and waits {lease} s for requesters that were, too");
                            self.report_wait(&id, why)?;
                        }
                    }
                    let (tried, ended) = if grace.is_zero() { self.end_parts()? } else { (0, 0) };
                    wait = if ended > 0 || tried == 0 { SOON } else { (2 * wait).min(LATER) };
                    match (self.unsure, tried > ended) {
                        _ if !grace.is_zero() => self.inbox.recv_timeout(grace.min(LATER)),
                        (true, _) => self.inbox.recv_timeout(LATER),
                        (false, true) => self.inbox.recv_timeout(wait),
                        // There is nothing to try again, so only input ends the wait.
                        (false, false) => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                    }
                }
            };
            match input {
                Ok(DaemonInput::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(Over::Stopped),
                Ok(DaemonInput::Lease(LeaseNews::Ended)) => return Ok(Over::LeaseEnded),
                Ok(DaemonInput::Lease(LeaseNews::Failing(error))) => {
                    self.note(&format!("{error}; what is reserved stays reserved"));
                    self.cut_off = true;
                    self.memory.cut_off(&error);
                }
                Ok(DaemonInput::Lease(LeaseNews::Back)) => {
                    self.note("etcd can be reached again");
                    self.memory.back();
                    self.resync()?;
                }
                Ok(DaemonInput::Lease(LeaseNews::Kept)) => {
                    let left = self.watch.as_ref().is_some_and(|watch| self.client.has_left(watch));
                    self.memory.answered();
                    if left || !self.parts.complete() {
                        self.resync()?;
                    }
                }
                Ok(DaemonInput::Changes(generation, batch)) if generation == self.generation => match batch {
                    Ok(batch) => {
                        // etcd may report the end of a job before that of the membership. Then this host was cut off.
                        if self.apply(&batch)? && !self.is_member()? {
                            return Ok(Over::LeaseEnded);
                        }
                    }
                    Err(error) => {
                        self.note(&format!("{error}; watching again"));
                        // The next attempt may fail at once, too.
                        thread::sleep(SOON);
                        self.resync()?;
                    }
                },
                Ok(DaemonInput::Changes(..)) => {}
                Err(RecvTimeoutError::Timeout) => {
                    if self.unsure && self.parts.fence.reserved().is_ok() {
                        self.resync()?;
                    }
                }
            }
        }
    }

    /// Whether the membership has not ended in etcd.
    fn is_member(&self) -> Result<bool, EtcdError> {
        let (_, [found]) = self.client.read([Op::get(&self.keys().host(&self.host))])?;
        Ok(!found.is_empty())
    }

    /// Returns whether a job is over.
    fn apply(&mut self, batch: &Batch) -> Result<bool, EtcdError> {
        let mut over = false;
        for change in &batch.changes {
            match change {
                Change::Put(found) => {
                    let (job, revision): (Job, _) = (found.parse()?, found.create_revision);
                    // A job that was taken back keeps its part, and so the revision of the part.
                    let known = self.parts.held.get_mut(&job.id).map(|held| {
                        held.over = false;
                        held.waits_for = None;
                        (held.reserved.revision, held.stage)
                    });
                    match known {
                        Some((revision, PartStage::Reserved)) => self.answer(&job, revision, Answer::Granted, None)?,
                        Some((revision, PartStage::Refused | PartStage::Unanswered | PartStage::Released)) => {
                            self.reserve(&job, revision, Answer::Granted, None)?;
                        }
                        None => self.reserve(&job, revision, Answer::Asked, None)?,
                    }
                }
                Change::Gone(found) => over |= self.parts.over(found.name()),
            }
        }
        self.memory.reached(self.client.cluster(), batch.revision)?;
        Ok(over)
    }

    /// Do a step for each part that is to end. Returns how many there are, and how many have ended.
    fn end_parts(&mut self) -> Result<(usize, usize), EtcdError> {
        let ids = self.parts.ending();
        let mut ended = 0;
        for id in &ids {
            match self.parts.end(id) {
                Ending::Vacant => {
                    let Some(held) = self.parts.held.get(id) else { continue };
                    let Reserved { name, ports, .. } = held.reserved.clone();
                    match arbiter::done(&self.client, &self.keys(), id, &self.host, ports, self.config.rest) {
                        Ok(true) => {
                            self.note(&format!("job {name:?}: {ports} vacant"));
                            self.parts.held.remove(id);
                            ended += 1;
                        }
                        Ok(false) => {}
                        // For example, the disk of etcd is full. The end of a job can wait.
                        Err(EtcdError::Refused(reason)) => self.report_wait(id, format!("etcd refused: {reason}"))?,
                        Err(error) => return Err(error),
                    }
                }
                Ending::Waits(reason) => self.report_wait(id, reason)?,
            }
        }
        Ok((ids.len(), ended))
    }

    /// Write the reason to etcd, so that others see why ports are not free yet.
    fn report_wait(&mut self, id: &str, reason: String) -> Result<(), EtcdError> {
        let Some(held) = self.parts.held.get_mut(id) else { return Ok(()) };
        if held.waits_for.as_ref() == Some(&reason) {
            return Ok(());
        }
        held.waits_for = Some(reason.clone());
        let Reserved { name, revision, ports, transports } = held.reserved.clone();
        self.note(&format!("job {name:?}: {ports} not vacant yet: {reason}"));
        let reason = Some(Refused { reason: Reason::InUse, message: reason });
        let part = Part { answer: Answer::Granted, reason, ports, transports, name };
        let key = self.keys().part(id, &self.host);
        match self.client.transact(&[Compare::created(&key, revision)], &[Op::put(&key, &part, 0)], &[]) {
            // Then only the log has the reason.
            Ok(_) | Err(EtcdError::Refused(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
