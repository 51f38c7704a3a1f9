//! Why etcd did not carry out a request.

use portkeep::persistent::protocol::Reason;

/// Why a request to etcd failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EtcdError {
    /// No endpoint answered, or the cluster has lost its majority.
    #[error("etcd cannot be reached ({reasons})")]
    Unreachable { reasons: String },
    /// Not this user, or not this password, or not allowed.
    #[error("etcd does not accept the user: {0}; check `user` and `password_file` in fleet.toml")]
    Credentials(String),
    /// The token has ended.
    #[error("etcd does not accept the token that it gave for the user; try again")]
    Token,
    /// Another cluster than the one that this host belongs to.
    #[error(
        "this etcd is another cluster: {found:x}, and the fleet's is {expected:x}. Check `endpoints` in fleet.toml; if \
         the fleet has moved to a new cluster, remove the state file of each host"
    )]
    OtherCluster { expected: u64, found: u64 },
    /// It was restored from a backup, or lost what it had acknowledged.
    #[error(
        "this etcd is older than what this host has seen (it is at revision {found}, and lacks what was at {seen}): it \
         was restored from a backup. Nothing is changed here. If the backup is what counts, remove the state file \
         {file} and restart the daemon"
    )]
    Older { seen: i64, found: i64, file: String },
    /// It understood the request and did not carry it out.
    #[error("etcd refused: {0}")]
    Refused(String),
    /// Not an answer of etcd.
    #[error(
        "the answer of etcd is not understood: {0}; check `endpoints` in fleet.toml, and that all hosts have the same \
         version of portkeep-fleet"
    )]
    Answer(String),
}

impl EtcdError {
    /// The reason, as JSON has it.
    pub(crate) const fn reason(&self) -> Reason {
        match self {
            Self::Credentials(_) | Self::Token => Reason::NotAllowed,
            Self::Unreachable { .. }
            | Self::OtherCluster { .. }
            | Self::Older { .. }
            | Self::Refused(_)
            | Self::Answer(_) => Reason::Failed,
        }
    }
}
