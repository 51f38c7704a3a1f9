//! A connection to an etcd cluster, with failover between endpoints.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use ureq::Agent;

use super::{
    error::EtcdError,
    transport::{self, Attempt},
};
use crate::config::{Config, EtcdUser};

/// The time that members need to elect a leader, with the defaults of etcd.
const ELECTION: Duration = Duration::from_secs(2);

/// 64-bit numbers. The JSON of gRPC writes them as text.
pub(super) mod text {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize, Deserializer, de::Error};

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, T: FromStr>(deserializer: D) -> Result<T, D::Error>
    where
        T::Err: Display,
    {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A connection to an etcd cluster.
#[derive(Debug)]
pub(crate) struct Client {
    endpoints: Vec<String>,
    /// The endpoint that answered last.
    pub(super) current: AtomicUsize,
    account: Option<EtcdUser>,
    token: Mutex<Option<String>>,
    /// The cluster that this must be; 0: any.
    cluster: AtomicU64,
    agent: Agent,
    pub(super) config: ureq::config::Config,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Header {
    #[serde(with = "text")]
    cluster_id: u64,
    #[serde(default, with = "text")]
    pub(crate) revision: i64,
}

#[derive(Deserialize)]
struct OnlyHeader {
    header: Option<Header>,
}

#[derive(Deserialize)]
struct Token {
    token: String,
}

impl Client {
    pub(crate) fn new(config: &Config) -> anyhow::Result<Self> {
        let settings = transport::settings(config)?;
        let cluster = config.cluster.as_ref().map(|id| {
            u64::from_str_radix(id, 16)
                .with_context(|| format!("`cluster` in fleet.toml is not a hexadecimal number: {id:?}"))
        });
        Ok(Self {
            endpoints: config.endpoints.iter().map(|endpoint| endpoint.trim_end_matches('/').to_owned()).collect(),
            current: AtomicUsize::new(0),
            account: config.account()?,
            token: Mutex::default(),
            cluster: AtomicU64::new(cluster.transpose()?.unwrap_or(0)),
            agent: Agent::new_with_config(settings.clone()),
            config: settings,
        })
    }

    /// The cluster that answered; 0 before the first answer.
    pub(crate) fn cluster(&self) -> u64 {
        self.cluster.load(Ordering::Relaxed)
    }

    /// One request to the first endpoint that answers.
    pub(crate) fn call<Answer: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<Answer, EtcdError> {
        let answer = self.first_answer(|endpoint| self.ask(endpoint, path, body))?;
        serde_json::from_slice(&answer).map_err(|error| EtcdError::Answer(error.to_string()))
    }

    /// The answer of the first endpoint that gives one. During an election all are asked once more.
    pub(super) fn first_answer<T>(&self, ask: impl Fn(&str) -> Result<T, Attempt>) -> Result<T, EtcdError> {
        match self.one_round(&ask) {
            Err(EtcdError::Unreachable { reasons }) if reasons.contains("no leader") => {
                thread::sleep(ELECTION);
                self.one_round(&ask)
            }
            answer => answer,
        }
    }

    /// Each endpoint until one answers, beginning with the one that answered last.
    fn one_round<T>(&self, ask: impl Fn(&str) -> Result<T, Attempt>) -> Result<T, EtcdError> {
        let first = self.current.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for turn in 0..self.endpoints.len() {
            let index = (first + turn) % self.endpoints.len();
            match ask(&self.endpoints[index]) {
                Ok(answer) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(Attempt::Next(reason)) => failures.push(format!("{}: {reason}", self.endpoints[index])),
                Err(Attempt::Stop(error)) => return Err(error),
            }
        }
        Err(EtcdError::Unreachable { reasons: failures.join("; ") })
    }

    fn ask(&self, endpoint: &str, path: &str, body: &Value) -> Result<Vec<u8>, Attempt> {
        let post = || transport::post(&self.agent, &format!("{endpoint}{path}"), self.token(endpoint)?, body);
        let answer = match post() {
            // A token ends if it is not used for some minutes, and with the member that gave it.
            Err(Attempt::Stop(EtcdError::Token)) if self.account.is_some() => {
                *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
                post()
            }
            answer => answer,
        }?;
        self.check(&answer)?;
        Ok(answer)
    }

    /// Check that the right cluster has answered.
    fn check(&self, answer: &[u8]) -> Result<(), Attempt> {
        let Ok(OnlyHeader { header: Some(header) }) = serde_json::from_slice(answer) else { return Ok(()) };
        match self.cluster.compare_exchange(0, header.cluster_id, Ordering::Relaxed, Ordering::Relaxed) {
            Err(expected) if expected != header.cluster_id => {
                Err(Attempt::Stop(EtcdError::OtherCluster { expected, found: header.cluster_id }))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    pub(super) fn token(&self, endpoint: &str) -> Result<Option<String>, Attempt> {
        let Some(account) = &self.account else { return Ok(None) };
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if token.is_none() {
            let body = json!({ "name": account.user, "password": account.password });
            let answer = transport::post(&self.agent, &format!("{endpoint}/v3/auth/authenticate"), None, &body)?;
            let answer: Token =
                serde_json::from_slice(&answer).map_err(|error| Attempt::Stop(EtcdError::Answer(error.to_string())))?;
            *token = Some(answer.token);
        }
        Ok(token.clone())
    }
}
