//! For the fuzzer: texts that others wrote are read or refused.

use portkeep::Align;
use serde::de::DeserializeOwned;

use crate::{
    config::Config,
    etcd::{Batch, Change, KeyValue, Outcome},
    memory::Facts,
    record::{Block, Job, Member, Part},
    search::next_fit,
};

/// A configuration.
///
/// # Errors
///
/// Its mistake.
pub fn configuration(text: &str) -> Result<(), String> {
    Config::parse(text).map(drop).map_err(|error| error.to_string())
}

/// An answer of etcd or the state file of a host, and the records in it.
pub fn answer(text: &str) {
    let _ = serde_json::from_str::<Facts>(text);
    if let Ok(outcome) = serde_json::from_str::<Outcome>(text) {
        let found: Result<[Vec<KeyValue>; 1], _> = outcome.reads();
        found.iter().flatten().flatten().for_each(record);
    }
    if let Ok(batch) = Batch::read(text) {
        batch.changes.into_iter().filter_map(Change::put).for_each(|found| record(&found));
    }
    record(&KeyValue { key: "/portkeep/part/1/a".into(), value: text.into(), ..KeyValue::default() });
}

fn record(found: &KeyValue) {
    assert!(found.key.ends_with(found.name()) && found.key.contains(Part::id(found)));
    fn read<T: DeserializeOwned>(found: &KeyValue) -> Option<T> {
        found.parse().ok()
    }
    let (_, _): (Option<Part>, Option<Member>) = (read(found), read(found));
    let taken = read::<Job>(found).map(|job| job.ports).or_else(|| Some(read::<Block>(found)?.ports));
    if let Some(taken) = taken {
        let range = Config::parse("").expect("the defaults").range;
        let free = next_fit(range, taken.start(), &[taken], 8, Align::ANY);
        assert!(free.is_none_or(|free| !free.overlaps(taken)), "{free:?} is not free");
    }
}
