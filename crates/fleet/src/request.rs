//! The requester: it asks for the decision about a job, waits for the hosts, and keeps the job's lease alive.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use portkeep::{
    PortRange, Transports,
    persistent::{
        Audience,
        protocol::{Reason, Refused},
    },
};

use crate::{
    arbiter::{self, BlockSearch, WantedBlock},
    config::Config,
    etcd::{Change, Client, EtcdError, KeepAlive, KeyValue, LeaseNews, NOW, Op, Watch},
    failure::Failure,
    memory::random_id,
    record::{Answer, Job, Keys, Part},
};

/// Blocks that are tried when hosts refuse.
const BLOCKS: usize = 8;

/// The pause between attempts to reach etcd.
const AGAIN: Duration = Duration::from_millis(500);

/// The longest wait for a watch: its member may be gone without a message.
const CHECK: Duration = Duration::from_secs(30);

/// A request for a job.
#[derive(Clone, Debug)]
pub(crate) struct JobRequest {
    pub(crate) name: String,
    pub(crate) hosts: Vec<String>,
    pub(crate) block: WantedBlock,
    pub(crate) transports: Transports,
    pub(crate) audience: Audience,
    pub(crate) by: String,
    /// The longest wait for the hosts' answers.
    pub(crate) patience: Duration,
}

/// An event in the life of a job.
#[derive(Debug)]
pub(crate) enum News {
    /// etcd cannot be reached. The hosts keep the ports.
    CutOff(EtcdError),
    Back,
    /// The lease had ended, and the job was taken back; on these hosts it has no ports any more.
    TakenBack(Vec<Failure>),
    /// The job is over.
    Over(Failure),
}

/// Input of the thread that keeps a job.
#[derive(Debug)]
enum SessionInput {
    Lease(LeaseNews),
    /// The job is to end.
    Stop,
}

/// A job on all of its hosts. [`HeldJob::end`] ends it; if the process dies, its lease does.
#[derive(Debug)]
pub(crate) struct HeldJob {
    pub(crate) job: Job,
    stop: Sender<SessionInput>,
    thread: JoinHandle<Result<(), EtcdError>>,
}

/// Get the same block on all hosts, or nothing on any.
pub(crate) fn acquire(
    client: &Arc<Client>,
    config: &Config,
    wanted: &JobRequest,
    report: impl FnMut(News) + Send + 'static,
) -> Result<HeldJob, Failure> {
    let keys = Keys(config.prefix.clone());
    let mut refused: Vec<PortRange> = Vec::new();
    loop {
        let (news, inbox) = mpsc::channel();
        let keep = lease(client, config, &news)?;
        match ask(client, config, &keys, wanted, &refused, keep.lease) {
            Ok(job) => {
                let session = Session {
                    client: Arc::clone(client),
                    config: config.clone(),
                    keys,
                    job: job.clone(),
                    news: news.clone(),
                };
                let patience = wanted.patience;
                let thread = thread::spawn(move || session.run(keep, &inbox, patience, report));
                return Ok(HeldJob { job, stop: news, thread });
            }
            Err((failure, tried)) => {
                // When the lease ends, all of the job's keys are deleted.
                let withdrawn = client.revoke(keep.lease);
                let again = failure.host.is_some()
                    && failure.reason == Reason::InUse
                    && matches!(wanted.block, WantedBlock::Any { .. })
                    && withdrawn.is_ok()
                    && refused.len() + 1 < BLOCKS;
                match tried {
                    Some(ports) if again => refused.push(ports),
                    Some(_) | None => return Err(failure),
                }
            }
        }
    }
}

fn lease(client: &Arc<Client>, config: &Config, news: &Sender<SessionInput>) -> Result<KeepAlive, EtcdError> {
    let lease = client.grant(config.lease)?;
    let news = news.clone();
    let send = move |what| {
        let _ = news.send(SessionInput::Lease(what));
    };
    Ok(KeepAlive::start(Arc::clone(client), lease, config.lease, send))
}

/// Make one decision, and wait for the answers of the hosts. A failure comes with the block that was tried.
fn ask(
    client: &Client,
    config: &Config,
    keys: &Keys,
    wanted: &JobRequest,
    refused: &[PortRange],
    lease: i64,
) -> Result<Job, (Failure, Option<PortRange>)> {
    let JobRequest { name, hosts, block, transports, audience, by, patience } = wanted.clone();
    let id = random_id().map_err(|error| (Failure::new(Reason::Failed, error), None))?;
    let mut job = Job { name, id, ports: config.range, transports, audience, hosts, by };
    let search = BlockSearch { range: config.range, block, refused };
    let watch = watch_answers(client, keys, &job).map_err(|error| (error.into(), None))?;
    arbiter::decide(client, keys, &mut job, lease, &search).map_err(|failure| (failure, None))?;
    let failures = answers(client, keys, &job, watch, patience, Until::FirstFailure);
    match failures.map_err(|error| (error.into(), Some(job.ports)))?.into_iter().next() {
        None => Ok(job),
        Some(failure) => Err((failure, Some(job.ports))),
    }
}

/// A watch for what the hosts answer from now on. It begins before the decision, so it misses none.
fn watch_answers(client: &Client, keys: &Keys, job: &Job) -> Result<Watch, EtcdError> {
    client.watch(&keys.parts(&job.id), NOW)
}

/// How long hosts are waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    FirstFailure,
    AllAnswers,
}

/// Wait for the hosts' answers. Returns the failures.
fn answers(
    client: &Client,
    keys: &Keys,
    job: &Job,
    mut watch: Watch,
    patience: Duration,
    until: Until,
) -> Result<Vec<Failure>, EtcdError> {
    let end = Instant::now() + patience;
    let mut answered: BTreeMap<String, Part> = BTreeMap::new();
    let mut next: Vec<KeyValue> = Vec::new();
    let mut _limit = watch.interrupt().at(end);
    loop {
        for found in next {
            let part: Part = found.parse()?;
            if part.answer != Answer::Asked {
                answered.insert(found.name().to_owned(), part);
            }
        }
        let mut failures: Vec<Failure> = answered.iter().filter_map(failure).collect();
        let silent = || job.hosts.iter().filter(|host| !answered.contains_key(*host));
        if silent().next().is_none() || until == Until::FirstFailure && !failures.is_empty() {
            return Ok(failures);
        }
        if Instant::now() >= end {
            failures.extend(silent().map(|host| {
                let message = format!(
                    "{host} has not answered within {} s; check portkeep-fleet.service there",
                    patience.as_secs_f32()
                );
                Failure::new(Reason::Failed, message).on(host)
            }));
            return Ok(failures);
        }
        next = match watch.next() {
            Ok(batch) => batch.changes.into_iter().filter_map(Change::put).collect(),
            Err(_) if Instant::now() >= end => Vec::new(),
            Err(_) => {
                // The watch was lost, and with it perhaps an answer.
                watch = watch_answers(client, keys, job)?;
                _limit = watch.interrupt().at(end);
                let (_, [found]) = client.read([Op::all(&keys.parts(&job.id))])?;
                found
            }
        };
    }
}

/// Why a host has not granted its part.
fn failure((host, part): (&String, &Part)) -> Option<Failure> {
    let unknown = || Refused { reason: Reason::Failed, message: "it gives no reason".into() };
    let Refused { reason, message } = part.reason.clone().unwrap_or_else(unknown);
    (part.answer != Answer::Granted).then(|| Failure::new(reason, format!("{host}: {message}")).on(host))
}

impl HeldJob {
    /// End the job. Its ports are free when all hosts report that they are vacant.
    pub(crate) fn end(self) -> Result<(), EtcdError> {
        drop(self.stop.send(SessionInput::Stop));
        self.thread.join().unwrap_or(Ok(()))
    }
}

/// The thread that keeps a job.
struct Session {
    client: Arc<Client>,
    config: Config,
    keys: Keys,
    job: Job,
    news: Sender<SessionInput>,
}

impl Session {
    fn run(
        &self,
        mut keep: KeepAlive,
        inbox: &mpsc::Receiver<SessionInput>,
        patience: Duration,
        mut report: impl FnMut(News),
    ) -> Result<(), EtcdError> {
        loop {
            match inbox.recv() {
                Ok(SessionInput::Lease(LeaseNews::Kept)) => {}
                Ok(SessionInput::Lease(LeaseNews::Failing(error))) => report(News::CutOff(error)),
                Ok(SessionInput::Lease(LeaseNews::Back)) => report(News::Back),
                Ok(SessionInput::Lease(LeaseNews::Ended)) => match self.take_back(patience) {
                    Ok((kept, failures)) => {
                        keep = kept;
                        report(News::TakenBack(failures));
                    }
                    Err(failure) if failure.cut_off => {
                        let _ = self.news.send(SessionInput::Lease(LeaseNews::Ended));
                        thread::sleep(AGAIN);
                    }
                    Err(failure) => {
                        report(News::Over(failure));
                        return Ok(());
                    }
                },
                Ok(SessionInput::Stop) | Err(_) => {
                    let lease = keep.lease;
                    drop(keep);
                    return self.client.revoke(lease);
                }
            }
        }
    }

    fn take_back(&self, patience: Duration) -> Result<(KeepAlive, Vec<Failure>), Failure> {
        let keep = lease(&self.client, &self.config, &self.news)?;
        let watch = watch_answers(&self.client, &self.keys, &self.job)?;
        arbiter::take_back(&self.client, &self.keys, &self.job, keep.lease)?;
        let failures = answers(&self.client, &self.keys, &self.job, watch, patience, Until::AllAnswers)?;
        Ok((keep, failures))
    }
}

/// Wait until there is a job of this name, and all of its hosts have answered. Returns false at `end`.
pub(crate) fn wait_for(client: &Client, keys: &Keys, name: &str, end: Option<Instant>) -> Result<bool, EtcdError> {
    let mut reached = false;
    loop {
        let change = match awaited(client, keys, name) {
            Ok(None) => return Ok(true),
            Ok(change) => change,
            // It has answered before, so it may again.
            Err(EtcdError::Unreachable { .. }) if reached => None,
            Err(error) => return Err(error),
        };
        reached = true;
        let now = Instant::now();
        if end.is_some_and(|end| now >= end) {
            return Ok(false);
        }
        let Some(mut watch) = change else {
            thread::sleep(AGAIN);
            continue;
        };
        let check = now + CHECK;
        let _limit = watch.interrupt().at(end.map_or(check, |end| end.min(check)));
        let _ = watch.next();
    }
}

/// A watch for the next step of the job; `None`: it is complete.
fn awaited(client: &Client, keys: &Keys, name: &str) -> Result<Option<Watch>, EtcdError> {
    let key = keys.job(name);
    // In this order no change is missed.
    let of_job = client.watch_key(&key, NOW)?;
    let (_, [found]) = client.read([Op::get(&key)])?;
    let Some(job) = found.first().map(KeyValue::parse::<Job>).transpose()? else { return Ok(Some(of_job)) };
    let of_parts = watch_answers(client, keys, &job)?;
    let (_, [parts]) = client.read([Op::all(&keys.parts(&job.id))])?;
    let parts = parts.iter().map(KeyValue::parse::<Part>).collect::<Result<Vec<_>, _>>()?;
    Ok(parts.iter().any(|part| part.answer == Answer::Asked).then_some(of_parts))
}
