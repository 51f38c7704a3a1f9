//! The requester: it has a job decided, waits for the hosts, and keeps the job's lease alive.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use portkeep::{
    Align, PortRange, Transports,
    persistent::{Audience, protocol::Reason},
};

use crate::{
    arbiter::{self, Place},
    config::Config,
    etcd::{Change, Client, EtcdError, Interrupt, KeepAlive, KeyValue, LeaseNews, Op},
    failure::Failure,
    memory::random_id,
    record::{Answer, Job, Keys, Part},
};

/// Blocks that are tried when hosts refuse.
const BLOCKS: usize = 8;

/// The pause between attempts to take a job back.
const AGAIN: Duration = Duration::from_millis(500);

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) hosts: Vec<String>,
    pub(crate) count: u16,
    pub(crate) align: Align,
    pub(crate) at: Option<u16>,
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
enum Input {
    Lease(LeaseNews),
    /// The job is to end.
    Stop,
}

/// A job on all of its hosts. [`Held::end`] ends it; if the process dies, its lease does.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) job: Job,
    stop: Sender<Input>,
    thread: JoinHandle<Result<(), EtcdError>>,
}

/// Get the same block on all hosts, or nothing on any.
pub(crate) fn acquire(
    client: &Arc<Client>,
    config: &Config,
    wanted: &Wanted,
    report: impl FnMut(News) + Send + 'static,
) -> Result<Held, Failure> {
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
                return Ok(Held { job, stop: news, thread });
            }
            Err((failure, tried)) => {
                // All of the job's keys go with its lease.
                let withdrawn = client.revoke(keep.lease);
                let again = failure.host.is_some() && failure.reason == Reason::InUse && wanted.at.is_none();
                match tried {
                    Some(ports) if again && withdrawn.is_ok() && refused.len() + 1 < BLOCKS => refused.push(ports),
                    _ => return Err(failure),
                }
            }
        }
    }
}

fn lease(client: &Arc<Client>, config: &Config, news: &Sender<Input>) -> Result<KeepAlive, EtcdError> {
    let lease = client.grant(config.lease)?;
    let news = news.clone();
    let send = move |what| {
        let _ = news.send(Input::Lease(what));
    };
    Ok(KeepAlive::start(Arc::clone(client), lease, config.lease, send))
}

/// One decision, and the answers of the hosts. Of a failure, the block that was tried.
fn ask(
    client: &Client,
    config: &Config,
    keys: &Keys,
    wanted: &Wanted,
    refused: &[PortRange],
    lease: i64,
) -> Result<Job, (Failure, Option<PortRange>)> {
    let Wanted { name, hosts, count, align, at, transports, audience, by, patience } = wanted.clone();
    let id = random_id().map_err(|error| (Failure::new(Reason::Failed, error), None))?;
    let mut job = Job { name, id, ports: config.range, transports, audience, hosts, by };
    let place = Place { range: config.range, at, count, align, refused };
    let revision = arbiter::decide(client, keys, &mut job, lease, &place).map_err(|failure| (failure, None))?;
    let failures = answers(client, keys, &job, revision, patience).map_err(|error| (error.into(), Some(job.ports)))?;
    match failures.into_iter().next() {
        None => Ok(job),
        Some(failure) => Err((failure, Some(job.ports))),
    }
}

/// Wait until each host has granted its part, or one has not. The failures.
fn answers(
    client: &Client,
    keys: &Keys,
    job: &Job,
    mut revision: i64,
    patience: Duration,
) -> Result<Vec<Failure>, EtcdError> {
    let mut answered: BTreeMap<String, Part> = BTreeMap::new();
    let parts = keys.parts(&job.id);
    let end = Instant::now() + patience;
    loop {
        let mut watch = client.watch(&parts, revision + 1)?;
        let _limit = Limit::set(watch.interrupt(), end);
        while let Ok(batch) = watch.next() {
            for change in batch.changes {
                if let Change::Put(found) = change {
                    answered.insert(found.name().to_owned(), found.parse()?);
                }
            }
            if let Some(failures) = verdict(job, &answered) {
                return Ok(failures);
            }
        }
        if Instant::now() >= end {
            let silent = job.hosts.iter().filter(|host| !answered.contains_key(*host));
            let failure = |host: &String| {
                let message = format!("{host} has not answered within {} s", patience.as_secs());
                Failure::new(Reason::Failed, message).on(host)
            };
            return Ok(silent.map(failure).collect());
        }
        // The watch was lost, and with it perhaps an answer.
        let (now, [found]) = client.read([Op::all(&parts)])?;
        revision = now;
        answered =
            found.iter().map(|part| Ok((part.name().to_owned(), part.parse()?))).collect::<Result<_, EtcdError>>()?;
        answered.retain(|_, part: &mut Part| part.answer != Answer::Asked);
        if let Some(failures) = verdict(job, &answered) {
            return Ok(failures);
        }
    }
}

/// All hosts have granted, or some have not.
fn verdict(job: &Job, answered: &BTreeMap<String, Part>) -> Option<Vec<Failure>> {
    let failure = |(host, part): (&String, &Part)| {
        let reason = part.reason.as_ref()?;
        (part.answer != Answer::Granted)
            .then(|| Failure::new(reason.reason, format!("{host}: {}", reason.message)).on(host))
    };
    let failures: Vec<Failure> = answered.iter().filter_map(failure).collect();
    (!failures.is_empty() || job.hosts.iter().all(|host| answered.contains_key(host))).then_some(failures)
}

/// Ends a watch at a point in time, unless it is dropped before.
struct Limit {
    _drop: Sender<()>,
}

impl Limit {
    fn set(watch: Interrupt, end: Instant) -> Self {
        let (drop, dropped) = mpsc::channel();
        thread::spawn(move || {
            let left = end.saturating_duration_since(Instant::now());
            if dropped.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
                watch.end();
            }
        });
        Self { _drop: drop }
    }
}

impl Held {
    /// End the job. Its ports are free when all hosts report that they are vacant.
    pub(crate) fn end(self) -> Result<(), EtcdError> {
        drop(self.stop.send(Input::Stop));
        self.thread.join().unwrap_or(Ok(()))
    }
}

/// The thread that keeps a job.
struct Session {
    client: Arc<Client>,
    config: Config,
    keys: Keys,
    job: Job,
    news: Sender<Input>,
}

impl Session {
    fn run(
        &self,
        mut keep: KeepAlive,
        inbox: &mpsc::Receiver<Input>,
        patience: Duration,
        mut report: impl FnMut(News),
    ) -> Result<(), EtcdError> {
        loop {
            match inbox.recv() {
                Ok(Input::Lease(LeaseNews::Kept)) => {}
                Ok(Input::Lease(LeaseNews::Failing(error))) => report(News::CutOff(error)),
                Ok(Input::Lease(LeaseNews::Back)) => report(News::Back),
                Ok(Input::Lease(LeaseNews::Ended)) => match self.take_back(patience) {
                    Ok((kept, failures)) => {
                        keep = kept;
                        report(News::TakenBack(failures));
                    }
                    Err(failure) if failure.cut_off => {
                        let _ = self.news.send(Input::Lease(LeaseNews::Ended));
                        thread::sleep(AGAIN);
                    }
                    Err(failure) => {
                        report(News::Over(failure));
                        return Ok(());
                    }
                },
                Ok(Input::Stop) | Err(_) => {
                    let lease = keep.lease;
                    drop(keep);
                    return self.client.revoke(lease);
                }
            }
        }
    }

    fn take_back(&self, patience: Duration) -> Result<(KeepAlive, Vec<Failure>), Failure> {
        let keep = lease(&self.client, &self.config, &self.news)?;
        let revision = arbiter::take_back(&self.client, &self.keys, &self.job, keep.lease)?;
        let failures = answers(&self.client, &self.keys, &self.job, revision, patience)?;
        Ok((keep, failures))
    }
}

/// Wait until there is a job of this name, and all of its hosts have answered.
pub(crate) fn wait_for(client: &Client, keys: &Keys, name: &str) -> Result<(), EtcdError> {
    let key = keys.job(name);
    loop {
        let (revision, [found]) = client.read([Op::get(&key)])?;
        let Some(job) = found.first().map(KeyValue::parse::<Job>).transpose()? else {
            let _ = client.watch_key(&key, revision + 1)?.next();
            continue;
        };
        let (revision, [parts]) = client.read([Op::all(&keys.parts(&job.id))])?;
        let answers = parts.iter().map(KeyValue::parse::<Part>).collect::<Result<Vec<_>, _>>()?;
        if answers.iter().all(|part| part.answer != Answer::Asked) {
            return Ok(());
        }
        let _ = client.watch(&keys.parts(&job.id), revision + 1)?.next();
    }
}
