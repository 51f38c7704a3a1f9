//! Keys, values and transactions.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    client::{Client, Header, text},
    error::EtcdError,
};

/// Operations in one level of a transaction: etcd's `--max-txn-ops`, less the few operations around them.
const OPS: usize = 100;

mod bytes {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, de::Error};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
        let bytes = STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)?;
        String::from_utf8(bytes).map_err(D::Error::custom)
    }
}

/// A key with its value.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct KeyValue {
    #[serde(with = "bytes")]
    pub(crate) key: String,
    #[serde(with = "bytes")]
    pub(crate) value: String,
    /// The revision of its creation. It distinguishes this decision from older ones.
    #[serde(with = "text")]
    pub(crate) create_revision: i64,
    #[serde(with = "text")]
    pub(crate) mod_revision: i64,
    #[serde(with = "text")]
    pub(crate) lease: i64,
}

impl KeyValue {
    /// The value, if it can be read: a later version may have written it.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, EtcdError> {
        serde_json::from_str(&self.value).map_err(|error| EtcdError::Answer(format!("{}: {error}", self.key)))
    }

    /// The last part of the key.
    pub(crate) fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or_default()
    }
}

/// All keys that begin with a text.
#[derive(Clone, Debug)]
pub(crate) struct Prefix(pub(crate) String);

impl Prefix {
    fn end(&self) -> String {
        let mut bytes = self.0.clone().into_bytes();
        // Prefixes end with a slash, so there is a next byte.
        if let Some(last) = bytes.last_mut() {
            *last += 1;
        }
        String::from_utf8(bytes).unwrap_or_default()
    }

    pub(super) fn range(&self) -> (String, String) {
        (encode(&self.0), encode(&self.end()))
    }
}

pub(super) fn encode(text: &str) -> String {
    STANDARD.encode(text)
}

/// A condition of a transaction.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Compare(Value);

impl Compare {
    /// There is no such key.
    pub(crate) fn absent(key: &str) -> Self {
        Self::created(key, 0)
    }

    /// The key was created at this revision, and has existed since then.
    pub(crate) fn created(key: &str, revision: i64) -> Self {
        Self(json!({ "key": encode(key), "target": "CREATE", "result": "EQUAL", "create_revision": revision }))
    }

    /// The key was last changed at this revision; 0: it is not there.
    pub(crate) fn changed(key: &str, revision: i64) -> Self {
        Self(json!({ "key": encode(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision }))
    }

    /// No key of the prefix but this one.
    pub(crate) fn no_other(prefix: &Prefix, key: &str) -> [Self; 2] {
        let none = |from: String, to: String| {
            Self(json!({
                "key": from, "range_end": to, "target": "CREATE", "result": "EQUAL", "create_revision": 0,
            }))
        };
        let (from, to) = prefix.range();
        [none(from, encode(key)), none(encode(&format!("{key}\0")), to)]
    }
}

/// An operation of a transaction.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Op(Value);

impl Op {
    /// Write a value. If there is a lease, the value is deleted when the lease ends.
    pub(crate) fn put(key: &str, value: &impl Serialize, lease: i64) -> Self {
        let value = serde_json::to_string(value).unwrap_or_default();
        Self(json!({ "request_put": { "key": encode(key), "value": encode(&value), "lease": lease } }))
    }

    pub(crate) fn get(key: &str) -> Self {
        Self(json!({ "request_range": { "key": encode(key) } }))
    }

    pub(crate) fn all(prefix: &Prefix) -> Self {
        let (key, end) = prefix.range();
        Self(json!({ "request_range": { "key": key, "range_end": end } }))
    }

    /// The keys without their values.
    pub(crate) fn keys(prefix: &Prefix) -> Self {
        let (key, end) = prefix.range();
        Self(json!({ "request_range": { "key": key, "range_end": end, "keys_only": true } }))
    }

    pub(crate) fn delete(key: &str) -> Self {
        Self(json!({ "request_delete_range": { "key": encode(key) } }))
    }

    pub(crate) fn delete_all(prefix: &Prefix) -> Self {
        let (key, end) = prefix.range();
        Self(json!({ "request_delete_range": { "key": key, "range_end": end } }))
    }

    /// A transaction within another.
    pub(crate) fn nested(conditions: &[Compare], then: &[Self], otherwise: &[Self]) -> Self {
        Self(json!({ "request_txn": { "compare": conditions, "success": then, "failure": otherwise } }))
    }

    /// Any number of operations as a few, because a level of a transaction is limited.
    pub(crate) fn many(ops: Vec<Self>) -> impl Iterator<Item = Self> {
        let chunks: Vec<Self> = ops.chunks(OPS).map(|chunk| Self::nested(&[], chunk, &[])).collect();
        chunks.into_iter()
    }
}

/// The result of a transaction.
#[derive(Debug, Deserialize)]
pub(crate) struct Outcome {
    header: Header,
    /// Its conditions held.
    #[serde(default)]
    pub(crate) succeeded: bool,
    #[serde(default)]
    responses: Vec<Response>,
}

#[derive(Debug, Default, Deserialize)]
struct Response {
    response_range: Option<Found>,
    response_txn: Option<Inner>,
}

#[derive(Debug, Deserialize)]
struct Inner {
    #[serde(default)]
    succeeded: bool,
}

#[derive(Debug, Default, Deserialize)]
struct Found {
    #[serde(default)]
    kvs: Vec<KeyValue>,
}

impl Outcome {
    /// The revision of the transaction.
    pub(crate) fn revision(&self) -> i64 {
        self.header.revision
    }

    /// Whether the conditions of the transaction within it held.
    pub(crate) fn inner_succeeded(&self) -> bool {
        self.responses.iter().filter_map(|response| response.response_txn.as_ref()).any(|inner| inner.succeeded)
    }

    /// The keys that each read found, in the order of the reads.
    pub(crate) fn reads<const N: usize>(self) -> Result<[Vec<KeyValue>; N], EtcdError> {
        let found: Vec<_> =
            self.responses.into_iter().filter_map(|response| Some(response.response_range?.kvs)).collect();
        found.try_into().map_err(|_| EtcdError::Answer("a transaction without its reads".into()))
    }
}

impl Client {
    /// All or nothing: `then` if the conditions hold, `otherwise` if not.
    pub(crate) fn transact(&self, conditions: &[Compare], then: &[Op], otherwise: &[Op]) -> Result<Outcome, EtcdError> {
        let body = json!({ "compare": conditions, "success": then, "failure": otherwise });
        self.call("/v3/kv/txn", &body)
    }

    /// Do all of these reads at one revision.
    pub(crate) fn read<const N: usize>(&self, reads: [Op; N]) -> Result<(i64, [Vec<KeyValue>; N]), EtcdError> {
        let outcome = self.transact(&[], &reads, &[])?;
        Ok((outcome.revision(), outcome.reads()?))
    }

    /// Whether a key was changed at this revision. `None`: etcd has forgotten this old revision.
    pub(crate) fn was_changed(&self, key: &str, revision: i64) -> Result<Option<bool>, EtcdError> {
        let then = Op(json!({ "request_range": { "key": encode(key), "revision": revision } }));
        match self.read([then]) {
            Ok((_, [found])) => Ok(Some(found.first().is_some_and(|found| found.mod_revision == revision))),
            Err(EtcdError::Refused(reason)) if reason.contains("future revision") => Ok(Some(false)),
            Err(EtcdError::Refused(reason)) if reason.contains("compacted") => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_behind_its_last_key() {
        assert_eq!(Prefix("/a/".into()).end(), "/a0");
    }

    #[test]
    fn numbers_and_texts_are_read_as_etcd_writes_them() {
        let text = r#"{"header":{"cluster_id":"14841639068965178418","member_id":"1","revision":"7","raft_term":"2"},
            "succeeded":true,"responses":[{"response_range":{"header":{"revision":"7"},
            "kvs":[{"key":"L2Ev","create_revision":"3","mod_revision":"4","version":"1","value":"MQ==","lease":"9"}]}},
            {"response_put":{"header":{"revision":"7"}}}]}"#;
        let outcome: Outcome = serde_json::from_str(text).unwrap();
        assert_eq!((outcome.succeeded, outcome.revision()), (true, 7));
        let [found] = outcome.reads().unwrap();
        assert_eq!((found[0].key.as_str(), found[0].create_revision, found[0].lease), ("/a/", 3, 9));
        assert_eq!(found[0].parse::<u32>().unwrap(), 1);
    }
}
