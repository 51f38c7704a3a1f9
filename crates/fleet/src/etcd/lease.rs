//! Leases, and the thread that keeps one alive.

use std::{
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::json;

use super::{
    client::{Client, text},
    error::EtcdError,
};

#[derive(Deserialize)]
struct Granted {
    #[serde(rename = "ID", with = "text")]
    id: i64,
}

#[derive(Deserialize)]
struct RenewedLease {
    result: Remaining,
}

#[derive(Deserialize)]
struct Remaining {
    #[serde(rename = "TTL", default)]
    ttl: String,
}

impl Client {
    /// A lease for so many seconds. etcd counts them, on its leader's monotonic clock.
    pub(crate) fn grant(&self, seconds: u32) -> Result<i64, EtcdError> {
        self.call("/v3/lease/grant", &json!({ "TTL": seconds })).map(|granted: Granted| granted.id)
    }

    /// End a lease and delete its keys, in one step.
    pub(crate) fn revoke(&self, lease: i64) -> Result<(), EtcdError> {
        let ended: Result<serde_json::Value, _> = self.call("/v3/lease/revoke", &json!({ "ID": lease }));
        match ended {
            Ok(_) => Ok(()),
            // It has ended before.
            Err(EtcdError::Refused(reason)) if reason.contains("not found") => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Start the time of the lease anew. Returns whether the lease still exists.
    fn keep(&self, lease: i64) -> Result<bool, EtcdError> {
        let renewed: RenewedLease = self.call("/v3/lease/keepalive", &json!({ "ID": lease }))?;
        Ok(!matches!(renewed.result.ttl.as_str(), "" | "0"))
    }
}

/// An event in the life of a lease.
#[derive(Debug)]
pub(crate) enum LeaseNews {
    /// etcd cannot be reached since then. The lease may live on.
    Failing(EtcdError),
    /// It can be reached again, and the lease lives.
    Back,
    /// The lease has ended.
    Ended,
    /// Kept alive once more.
    Kept,
}

/// A lease that a thread keeps alive until this value is dropped. Then the lease ends by itself.
#[derive(Debug)]
pub(crate) struct KeepAlive {
    pub(crate) lease: i64,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl KeepAlive {
    /// Renew it three times within its length. `news` is called in the thread; `Kept` comes each time.
    pub(crate) fn start(
        client: Arc<Client>,
        lease: i64,
        seconds: u32,
        mut news: impl FnMut(LeaseNews) + Send + 'static,
    ) -> Self {
        let (stop, stopped) = mpsc::channel();
        let period = Duration::from_secs(u64::from(seconds)) / 3;
        let thread = thread::spawn(move || {
            let mut failing = false;
            let mut next = Instant::now() + period;
            while stopped.recv_timeout(next.saturating_duration_since(Instant::now())) == Err(RecvTimeoutError::Timeout)
            {
                next = Instant::now() + period;
                match client.keep(lease) {
                    Ok(true) if failing => {
                        failing = false;
                        news(LeaseNews::Back);
                    }
                    Ok(true) => news(LeaseNews::Kept),
                    Ok(false) => return news(LeaseNews::Ended),
                    Err(error) if !failing => {
                        failing = true;
                        news(LeaseNews::Failing(error));
                    }
                    Err(_) => {}
                }
            }
        });
        Self { lease, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for KeepAlive {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
