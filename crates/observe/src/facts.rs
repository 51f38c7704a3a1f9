//! Facts that apply to a port besides its sockets: sysctls and NAT rules.

use portkeep_core::{PortRange, PortSet, Transport};
use serde::Serialize;

use crate::{
    nat::{self, Redirect},
    sysctl,
};

/// The settings and rules of a network namespace.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// `ip_local_port_range`, if it can be read.
    pub ephemeral: Option<PortRange>,
    /// The ports in `ip_local_reserved_ports`.
    pub excluded: PortSet,
    /// Ports below this one are privileged.
    pub unprivileged_start: u32,
    /// NAT rules; `None` if they cannot be seen.
    pub redirects: Option<Vec<Redirect>>,
}

/// The facts that apply to one port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PortFacts {
    /// It is in `ip_local_port_range`: the kernel may choose it for a connection.
    pub ephemeral: bool,
    /// It is in `ip_local_reserved_ports`: the kernel never chooses it.
    pub excluded: bool,
    /// Binding it requires CAP_NET_BIND_SERVICE.
    pub privileged: bool,
    /// NAT rules that redirect it; `None` if they cannot be seen.
    pub redirects: Option<Vec<String>>,
}

impl Facts {
    /// The facts of the calling thread's network namespace. Settings that cannot be read are omitted.
    pub fn here() -> Self {
        Self::with(nat::Reading::start())
    }

    /// The same with NAT rules that are already being read.
    pub fn with(rules: nat::Reading) -> Self {
        Self {
            ephemeral: sysctl::local_port_range().ok().flatten(),
            excluded: sysctl::reserved().unwrap_or_default(),
            unprivileged_start: sysctl::unprivileged_port_start().unwrap_or(0),
            redirects: rules.finish(),
        }
    }

    /// The facts that apply to a port (host byte order).
    pub fn of(&self, transport: Transport, port: u16) -> PortFacts {
        let redirects = self.redirects.as_ref().map(|all| {
            let mut rules: Vec<String> =
                all.iter().filter(|each| each.has(transport, port)).map(|each| each.rule.clone()).collect();
            rules.dedup();
            rules
        });
        PortFacts {
            ephemeral: self.ephemeral.is_some_and(|range| range.contains(port)),
            excluded: self.excluded.contains(port),
            privileged: u32::from(port) < self.unprivileged_start,
            redirects,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_what_applies_to_it() {
        let redirect = Redirect {
            transport: Some(Transport::Tcp),
            ports: PortRange::single(80).unwrap(),
            rule: "iptables PREROUTING: REDIRECT to 8080".into(),
        };
        let facts = Facts {
            ephemeral: PortRange::inclusive(32768, 60999).ok(),
            excluded: "40000-40009".parse().unwrap(),
            unprivileged_start: 1024,
            redirects: Some(vec![redirect]),
        };
        let web = facts.of(Transport::Tcp, 80);
        assert!(web.privileged && !web.ephemeral && !web.excluded && web.redirects.unwrap().len() == 1);
        assert_eq!(facts.of(Transport::Udp, 80).redirects, Some(vec![]));
        let drawn = facts.of(Transport::Udp, 40000);
        assert!(!drawn.privileged && drawn.ephemeral && drawn.excluded);
    }
}
