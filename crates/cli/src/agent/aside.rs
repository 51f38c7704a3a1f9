//! Pool ports that were in use when the kernel part came up.
//!
//! The pool is vacant by construction: nobody without a reservation can bind its
//! ports, so wildcard requests need not look. Sockets that were there before are
//! the exception. Their ports are set aside, and given back when they are vacant.

use std::{collections::BTreeMap, io};

use anyhow::Context;
use portkeep_core::{PortRange, Transport};
use portkeep_kernel::{Admin, Config, Instance, Maps, WordKey};

use super::{
    kernel_part,
    namespaces::{self, Namespace},
};
use crate::vacancy::Prober;

/// What became of pool ports in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Aside {
    /// Ports set aside now.
    pub set_aside: usize,
    /// Ports set aside earlier that are vacant again.
    pub given_back: usize,
}

/// Find pool ports that have been in use since before `up` and set them aside,
/// and give back those that are vacant again. In every namespace that can be
/// seen. For `portkeep up`, after the programs are attached.
pub fn set_aside_used_pool_ports(instance: &Instance) -> anyhow::Result<Aside> {
    let (maps, admin, config) = (instance.maps()?, instance.admin()?, instance.config());
    let prober = kernel_part::prober(config)?;
    let round = Round { maps: &maps, admin: &admin, prober: &prober };
    let given_back = round.give_back()?;
    Ok(Aside { set_aside: round.set_aside(config)?, given_back })
}

/// One round through the namespaces.
pub(super) struct Round<'a> {
    pub(super) maps: &'a Maps,
    pub(super) admin: &'a Admin,
    pub(super) prober: &'a Prober,
}

impl Round<'_> {
    /// A namespace that cannot be looked at does not keep the others from being looked at.
    pub(super) fn set_aside(&self, config: &Config) -> anyhow::Result<usize> {
        let Some(pool) = kernel_part::pool(config) else { return Ok(0) };
        let mut total = 0;
        for namespace in namespaces::visible() {
            let namespace = namespace.context("looking for network namespaces")?;
            match self.set_aside_in(&namespace, pool) {
                Ok(count) => total += count,
                Err(error) => tracing::warn!(
                    netns = namespace.cookie,
                    %error,
                    "cannot look for pool ports in use"
                ),
            }
        }
        Ok(total)
    }

    fn set_aside_in(&self, namespace: &Namespace, pool: PortRange) -> io::Result<usize> {
        namespace.within(|| {
            let mut count = 0;
            for transport in Transport::ALL {
                let look = self.prober.look(transport);
                for port in look.candidates(pool)? {
                    // Taken first and looked at then: otherwise the probe could be in the way of a reservation that is
                    // made at this moment. What is reserved is refused here, and its sockets are not our business.
                    if self.admin.set_aside(namespace.cookie, transport, port).is_err() {
                        continue;
                    }
                    if look.vacant(port).unwrap_or(false) {
                        let _ = self.admin.give_back(namespace.cookie, transport, port);
                    } else {
                        count += 1;
                        tracing::info!(netns = namespace.cookie, %transport, port, "in use since before up, set aside");
                    }
                }
            }
            Ok(count)
        })
    }

    /// Give back what is vacant again. A namespace that cannot be found any more has no sockets that could be in the way.
    pub(super) fn give_back(&self) -> anyhow::Result<usize> {
        let mut aside: BTreeMap<u64, Vec<(Transport, u16)>> = BTreeMap::new();
        for item in self.maps.words() {
            let (key, word) = item?;
            if word.aside != 0 {
                aside.entry(key.netns).or_default().extend(ports_of(&key, word.aside));
            }
        }
        let mut given_back = 0;
        for (netns, ports) in aside {
            let vacant = match namespaces::find(netns)? {
                None => ports,
                Some(namespace) => namespace.within(|| {
                    let looks = Transport::ALL.map(|transport| self.prober.look(transport));
                    let look = |transport| &looks[usize::from(transport == Transport::Udp)];
                    Ok(ports.into_iter().filter(|(t, port)| look(*t).vacant(*port).unwrap_or(false)).collect())
                })?,
            };
            for (transport, port) in vacant {
                if self.admin.give_back(netns, transport, port).is_ok() {
                    given_back += 1;
                    tracing::info!(netns, %transport, port, "vacant again, given back to the pool");
                }
            }
        }
        Ok(given_back)
    }
}

fn ports_of(key: &WordKey, bits: u64) -> impl Iterator<Item = (Transport, u16)> {
    let transport = Transport::ALL.into_iter().find(|transport| u16::from(transport.bit()) == key.transport);
    let base = u32::from(key.word) * 64;
    (0..64u32).filter(move |bit| bits & 1 << bit != 0).filter_map(move |bit| Some((transport?, (base + bit) as u16)))
}
