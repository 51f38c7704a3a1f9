//! Events, as the agent reports them: to the pages that are open, and counted for the metrics.
//!
//! A thread waits for the agent's next event; that costs nothing. Where there is no agent, or it does not let this user follow
//! events, the thread tries again only when a page or Prometheus asks.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use portkeep::persistent::{
    Connection, PersistentError,
    protocol::{Event, EventKind},
};
use serde::Serialize;
use tokio::sync::broadcast;

use crate::data::PATIENCE;

/// How many events a page may be behind.
const BEHIND: usize = 1024;
/// Time between two attempts while pages are open.
const AGAIN: Duration = Duration::from_secs(2);
/// Units that are counted one by one: users can make any number of them.
const UNITS: usize = 256;
const OTHER_UNITS: &str = "other";

/// A message to a page: its kind, and JSON.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) kind: &'static str,
    pub(crate) json: Arc<str>,
}

impl Message {
    fn new(kind: &'static str, value: &impl Serialize) -> Self {
        Self { kind, json: serde_json::to_string(value).unwrap_or_default().into() }
    }
}

/// Whether events come.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Following {
    pub(crate) following: bool,
    /// Why not.
    pub(crate) reason: Option<String>,
}

/// How many events there were since this server started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) granted: u64,
    pub(crate) denied: u64,
    pub(crate) ended: u64,
    pub(crate) exhausted: u64,
    /// Refused binds, by the unit of the process; empty if it is not known.
    pub(crate) refused: BTreeMap<String, u64>,
}

impl Tally {
    fn add(&mut self, event: &Event) {
        let number = 1 + u64::from(event.unreported);
        match event.what {
            EventKind::Granted => self.granted += number,
            EventKind::Denied => self.denied += number,
            EventKind::Ended => self.ended += number,
            EventKind::Exhausted => self.exhausted += number,
            EventKind::Refused => {
                let unit = event.process.as_ref().and_then(|process| process.unit.clone()).unwrap_or_default();
                let known = self.refused.contains_key(&unit) || self.refused.len() < UNITS;
                *self.refused.entry(if known { unit } else { OTHER_UNITS.into() }).or_default() += number;
            }
            // A kind that a newer agent reports.
            _ => {}
        }
    }
}

#[derive(Debug)]
struct Known {
    following: Following,
    tally: Tally,
    /// Someone asked since the last attempt.
    asked: bool,
}

/// The thread and what it knows.
#[derive(Debug)]
pub(crate) struct Feed {
    pages: broadcast::Sender<Message>,
    known: Mutex<Known>,
    ask: Condvar,
}

impl Feed {
    /// Begin to follow.
    pub(crate) fn start() -> Arc<Self> {
        let following = Following { following: false, reason: Some("not tried yet".into()) };
        let known = Known { following, tally: Tally::default(), asked: true };
        let feed =
            Arc::new(Self { pages: broadcast::Sender::new(BEHIND), known: Mutex::new(known), ask: Condvar::new() });
        let follower = feed.clone();
        thread::spawn(move || follower.follow());
        feed
    }

    /// Try to follow events now, if that has failed before: a page or Prometheus asks.
    pub(crate) fn look(&self) {
        let mut known = self.known();
        known.asked |= !known.following.following;
        self.ask.notify_all();
    }

    pub(crate) fn tally(&self) -> Tally {
        self.known().tally.clone()
    }

    pub(crate) fn following(&self) -> Following {
        self.known().following.clone()
    }

    /// The messages for a page from now on; the first one says whether events come.
    pub(crate) fn messages(&self) -> (Message, broadcast::Receiver<Message>) {
        self.look();
        let known = self.known();
        (Message::new("following", &known.following), self.pages.subscribe())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&self) {
        loop {
            self.wait_until_asked();
            let reason = match Connection::open_within(PATIENCE).and_then(Connection::watch) {
                Ok(events) => {
                    self.now(None);
                    // An event that this version cannot read does not end the stream.
                    events.flatten().for_each(|event| self.publish(&event));
                    "the agent has ended".to_owned()
                }
                Err(PersistentError::NotAllowed(_)) => {
                    "the agent lets only administrators and members of the group portkeep-watch (`watchers` in \
                     portkeep.toml) follow events"
                        .to_owned()
                }
                Err(error) => error.to_string(),
            };
            self.now(Some(reason));
        }
    }

    fn wait_until_asked(&self) {
        let mut known = self.known();
        while !known.asked {
            if self.pages.receiver_count() > 0 {
                let (woken, waited) = self.ask.wait_timeout(known, AGAIN).unwrap_or_else(PoisonError::into_inner);
                known = woken;
                if waited.timed_out() {
                    break;
                }
            } else {
                known = self.ask.wait(known).unwrap_or_else(PoisonError::into_inner);
            }
        }
        known.asked = false;
    }

    /// Note whether events come. If that has changed, report it to the pages.
    fn now(&self, reason: Option<String>) {
        let mut known = self.known();
        let following = Following { following: reason.is_none(), reason };
        let message = Message::new("following", &following);
        let changed = known.following.following != following.following || known.following.reason != following.reason;
        known.following = following;
        known.asked = false;
        if changed {
            // If no page is open, this fails, and that is no error.
            let _ = self.pages.send(message);
        }
    }

    fn publish(&self, event: &Event) {
        self.known().tally.add(event);
        if self.pages.receiver_count() > 0 {
            let _ = self.pages.send(Message::new("event", event));
        }
    }
}
