//! For measurements: daemons without kernels, and requests in this process. No command has this.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;
use portkeep::{
    Align, PortRange, Transports,
    persistent::{Account, Audience, protocol::Refused},
};

use crate::{
    config::Config,
    daemon::{Daemon, Input},
    etcd::Client,
    fence::{Fence, Reserved},
    memory::{Memory, random_id},
    record::Job,
    request::{self, Wanted},
};

/// A fence that keeps nobody off: it records. Two jobs that have one port are an error all the same.
#[derive(Debug, Default)]
struct Recorder(BTreeMap<(String, i64), Reserved>);

impl Fence for Recorder {
    fn obstacle(&mut self) -> Option<String> {
        None
    }

    fn reserve(&mut self, job: &Job, revision: i64) -> Result<(), Refused> {
        let Job { name, ports, transports, .. } = job;
        let reserved = Reserved { name: name.clone(), revision, ports: *ports, transports: *transports };
        assert!(
            !self.0.values().any(|other| other.ports.overlaps(*ports)),
            "{reserved:?} has two owners: {:?}",
            self.0
        );
        self.0.insert((name.clone(), revision), reserved);
        Ok(())
    }

    fn reserved(&mut self) -> Result<Vec<Reserved>, String> {
        Ok(self.0.values().cloned().collect())
    }

    fn release(&mut self, reserved: &Reserved) -> Result<(), String> {
        self.0.remove(&(reserved.name.clone(), reserved.revision));
        Ok(())
    }

    fn in_use(&mut self, _: PortRange, _: Transports) -> Result<Option<String>, String> {
        Ok(None)
    }
}

fn config(endpoints: &str, range: PortRange, folder: &Path) -> anyhow::Result<Config> {
    let endpoints: Vec<String> = endpoints.split(',').map(|url| format!("{url:?}")).collect();
    let text = format!("endpoints = [{}]\nrange = \"{range}\"\nrest = 2\nstate_dir = {folder:?}", endpoints.join(", "));
    toml::from_str(&text).context("the configuration of a measurement")
}

/// Daemons in this process, with a fence that only records. Dropped, they end.
#[derive(Debug)]
pub struct Daemons(Vec<(Sender<Input>, JoinHandle<()>)>);

impl Daemons {
    /// Start one for each name, and return when all belong to the fleet.
    ///
    /// # Errors
    ///
    /// If one cannot be started.
    pub fn start(endpoints: &str, range: PortRange, folder: &Path, hosts: &[String]) -> anyhow::Result<Self> {
        let config = config(endpoints, range, folder)?;
        let (joined, all) = mpsc::channel();
        let mut daemons = Vec::new();
        for host in hosts {
            let client = Arc::new(Client::new(&config)?);
            let memory = Memory::open(&config, host)?;
            let (outbox, inbox) = mpsc::channel();
            let mut daemon =
                Daemon::new(client, config.clone(), host.clone(), memory, Recorder::default(), (outbox.clone(), inbox));
            daemon.quiet = true;
            let joined = joined.clone();
            daemon.ready = Box::new(move |_| {
                let _ = joined.send(());
            });
            let thread = thread::spawn(move || daemon.run().expect("a daemon"));
            daemons.push((outbox, thread));
        }
        for _ in hosts {
            all.recv().context("a daemon has ended")?;
        }
        Ok(Self(daemons))
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        for (outbox, _) in &self.0 {
            let _ = outbox.send(Input::Stop);
        }
        for (_, thread) in self.0.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The times of requests.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// How long each waited for its ports, in order.
    pub granted: Vec<Duration>,
    /// Requests to etcd by the requesters, until the ports were granted.
    pub calls: u64,
    /// The reasons of those that were refused.
    pub refused: Vec<String>,
    /// All of it.
    pub elapsed: Duration,
}

/// One job after the other in each of `requesters` threads until `jobs` are done, each of `count` ports on hosts that `choose` names.
///
/// # Errors
///
/// If etcd cannot be reached.
pub fn measure(
    endpoints: &str,
    range: PortRange,
    count: u16,
    jobs: usize,
    requesters: usize,
    choose: impl Fn(usize) -> Vec<String> + Sync,
) -> anyhow::Result<Times> {
    let config = config(endpoints, range, Path::new("/nonexistent"))?;
    let next = Mutex::new(0..jobs);
    let began = Instant::now();
    let one = || -> anyhow::Result<Times> {
        let client = Arc::new(Client::new(&config)?);
        let mut times = Times::default();
        loop {
            let Some(number) = next.lock().unwrap_or_else(PoisonError::into_inner).next() else { return Ok(times) };
            let wanted = Wanted {
                name: format!("job-{}", random_id()?),
                hosts: choose(number),
                count,
                align: Align::ANY,
                at: None,
                transports: Transports::Tcp,
                audience: Audience::User(Account::Id(65534)),
                by: "a measurement".into(),
                patience: Duration::from_secs(60),
            };
            let (calls, began) = (client.calls(), Instant::now());
            match request::acquire(&client, &config, &wanted, |_| {}) {
                Ok(held) => {
                    times.granted.push(began.elapsed());
                    times.calls += client.calls() - calls;
                    held.end()?;
                }
                Err(failure) => times.refused.push(failure.to_string()),
            }
        }
    };
    let mut all = Times::default();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..requesters).map(|_| scope.spawn(one)).collect();
        for thread in threads {
            let times = thread.join().expect("a requester")?;
            all.granted.extend(times.granted);
            all.refused.extend(times.refused);
            all.calls += times.calls;
        }
        anyhow::Ok(())
    })?;
    all.granted.sort_unstable();
    all.elapsed = began.elapsed();
    Ok(all)
}
