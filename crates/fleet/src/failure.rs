//! Why a request was not carried out: a reason for programs, a sentence for people, and the host it is about.

use std::fmt;

use portkeep::persistent::protocol::Reason;

use crate::etcd::EtcdError;

/// Nothing is reserved.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    pub(crate) message: String,
    pub(crate) host: Option<String>,
    /// etcd cannot be reached: the same request may succeed later.
    pub(crate) cut_off: bool,
}

impl Failure {
    pub(crate) fn new(reason: Reason, message: impl fmt::Display) -> Self {
        Self { reason, message: message.to_string(), host: None, cut_off: false }
    }

    /// There is no job of this name.
    pub(crate) fn no_job(name: &str) -> Self {
        Self::new(Reason::NotFound, format!("there is no job {name:?}; `portkeep-fleet list` shows the jobs"))
    }

    /// It is about this host.
    pub(crate) fn on(mut self, host: &str) -> Self {
        self.host = Some(host.to_owned());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<EtcdError> for Failure {
    fn from(error: EtcdError) -> Self {
        let cut_off = matches!(error, EtcdError::Unreachable { .. });
        Self { cut_off, ..Self::new(error.reason(), error) }
    }
}
