//! Following the changes of keys: one answer that does not end.

use std::{
    io::{BufRead, BufReader},
    sync::{
        atomic::Ordering,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread,
    time::Instant,
};

use serde::Deserialize;
use serde_json::{Value, json};
use ureq::{Agent, BodyReader};

use super::{
    client::{Client, Header},
    error::EtcdError,
    kv::{KeyValue, Prefix, encode},
    transport::{self, PATIENCE},
};

/// With this revision a watch reports what happens after it is in place. If the watch began at an earlier revision, a
/// decision could arrive up to 100 ms late, because etcd sends changes older than the watch only that often.
pub(crate) const NOW: i64 = 0;

/// A watch. It sends one request, and etcd sends every change.
pub(crate) struct Watch {
    lines: BufReader<BodyReader<'static>>,
    interrupt: Interrupt,
}

/// Ends a watch that waits in another thread.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt {
    agent: Agent,
    /// The endpoint that it came from.
    endpoint: usize,
}

impl Interrupt {
    /// The watch ends with an error.
    pub(crate) fn end(&self) {
        self.agent.clone().shutdown();
    }

    /// The watch ends at a point in time, unless the limit is dropped before.
    pub(crate) fn at(&self, end: Instant) -> Limit {
        let (drop, dropped) = mpsc::channel();
        let watch = self.clone();
        thread::spawn(move || {
            let left = end.saturating_duration_since(Instant::now());
            if dropped.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
                watch.end();
            }
        });
        Limit { _drop: drop }
    }
}

/// Ends a watch at a point in time.
pub(crate) struct Limit {
    _drop: Sender<()>,
}

/// A change of a key.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Put(KeyValue),
    /// Its key, and the revision at which it was deleted.
    Gone(KeyValue),
}

impl Change {
    pub(crate) fn put(self) -> Option<KeyValue> {
        match self {
            Self::Put(found) => Some(found),
            Self::Gone(_) => None,
        }
    }
}

/// The changes of one or several revisions.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// All changes up to this revision are known now.
    pub(crate) revision: i64,
    pub(crate) changes: Vec<Change>,
}

#[derive(Deserialize)]
struct Line {
    result: Option<WatchAnswer>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct WatchAnswer {
    header: Header,
    #[serde(default)]
    canceled: bool,
    #[serde(default)]
    cancel_reason: String,
    #[serde(default)]
    compact_revision: String,
    #[serde(default)]
    events: Vec<WatchEvent>,
}

#[derive(Deserialize)]
struct WatchEvent {
    #[serde(default, rename = "type")]
    kind: String,
    kv: KeyValue,
}

impl Batch {
    /// A line of the answer.
    pub(crate) fn read(line: &str) -> Result<Self, EtcdError> {
        let line: Line = serde_json::from_str(line).map_err(|error| EtcdError::Answer(error.to_string()))?;
        let ended = |reason: String| match transport::about_credentials(&reason) {
            true => EtcdError::Credentials(reason),
            false => EtcdError::Unreachable { reasons: format!("the watch: {reason}") },
        };
        let Some(result) = line.result else { return Err(ended(line.error.unwrap_or_default().to_string())) };
        if result.canceled {
            return Err(ended(match result.compact_revision.as_str() {
                "" | "0" => result.cancel_reason,
                revision => format!("the changes before revision {revision} are compacted"),
            }));
        }
        let change =
            |event: WatchEvent| if event.kind == "DELETE" { Change::Gone(event.kv) } else { Change::Put(event.kv) };
        Ok(Self { revision: result.header.revision, changes: result.events.into_iter().map(change).collect() })
    }
}

impl Client {
    /// Follow the keys of a prefix from a revision on. It returns when the watch is in place.
    pub(crate) fn watch(&self, prefix: &Prefix, from: i64) -> Result<Watch, EtcdError> {
        let (key, range_end) = prefix.range();
        self.watch_range(json!({ "key": key, "range_end": range_end, "start_revision": from }))
    }

    /// Follow one key.
    pub(crate) fn watch_key(&self, key: &str, from: i64) -> Result<Watch, EtcdError> {
        self.watch_range(json!({ "key": encode(key), "start_revision": from }))
    }

    fn watch_range(&self, create: Value) -> Result<Watch, EtcdError> {
        let body = json!({ "create_request": create });
        let mut watch = self.first_answer(|endpoint| {
            // This watch has an HTTP agent of its own, so that it can be ended alone.
            let agent = Agent::new_with_config(self.config.clone());
            let token = self.token(endpoint)?;
            let answer = transport::open(&agent, &format!("{endpoint}/v3/watch"), token, &body)?;
            let lines = BufReader::new(answer.into_body().into_with_config().limit(u64::MAX).reader());
            Ok(Watch { lines, interrupt: Interrupt { agent, endpoint: 0 } })
        })?;
        watch.interrupt.endpoint = self.current.load(Ordering::Relaxed);
        // The first line only reports that the watch is in place.
        let limit = watch.interrupt.at(Instant::now() + PATIENCE);
        watch.next()?;
        drop(limit);
        Ok(watch)
    }

    /// Whether another endpoint has answered since the watch began. Then the endpoint of the watch may hang.
    pub(crate) fn has_left(&self, watch: &Interrupt) -> bool {
        self.current.load(Ordering::Relaxed) != watch.endpoint
    }
}

impl Watch {
    pub(crate) fn interrupt(&self) -> Interrupt {
        self.interrupt.clone()
    }

    /// Wait for the next changes.
    pub(crate) fn next(&mut self) -> Result<Batch, EtcdError> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line);
        if !matches!(read, Ok(1..)) {
            let reason = read.err().map_or_else(|| "it ended".to_owned(), |error| error.to_string());
            return Err(EtcdError::Unreachable { reasons: format!("the watch: {reason}") });
        }
        Batch::read(&line)
    }
}
