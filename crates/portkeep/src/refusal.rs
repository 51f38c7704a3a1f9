//! The reason why the BPF programs or the agent refused a request.

use std::{io, os::fd::AsFd};

use portkeep_core::{Errno, Scope};

use crate::{AcquireError, Request, query};

impl Request {
    /// The meaning of the error number of an ACQUIRE of this request on `owner`.
    pub(crate) fn refusal(&self, source: io::Error, owner: impl AsFd) -> AcquireError {
        match source.raw_os_error().map(Errno) {
            Some(Errno::EADDRINUSE) => match self.block() {
                Ok(ports) => {
                    let transports = self.transports();
                    AcquireError::InUse { ports, transports, by: query::conflict(owner, ports, transports) }
                }
                Err(_) => AcquireError::NoRoom { count: self.count },
            },
            Some(Errno::EINVAL) if matches!(self.scope, Scope::Cgroup(_)) => AcquireError::ForeignCgroup,
            Some(Errno::ENOSPC) => AcquireError::NoRoom { count: self.count },
            Some(Errno::EDQUOT) => AcquireError::OverQuota,
            Some(Errno::EEXIST) => AcquireError::SecondRange,
            Some(Errno::EACCES) => AcquireError::Privileged,
            Some(Errno::ENETDOWN) if query::version().is_ok_and(|version| version.agent) => AcquireError::AgentFailed,
            Some(Errno::ENETDOWN) => AcquireError::AgentAbsent,
            Some(Errno::ECANCELED) => AcquireError::Cancelled,
            Some(Errno::EOPNOTSUPP) => AcquireError::WrongSocket,
            Some(Errno::ENOPROTOOPT) => AcquireError::KernelAbsent,
            _ => AcquireError::AcquireCall { source },
        }
    }
}
