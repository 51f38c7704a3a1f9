//! Pool ports that were in use when the BPF programs came up.
//!
//! The BPF programs count sockets that are bound later, and wildcard requests skip their ports (N2). The programs do
//! not know earlier sockets. So the ports of those are set aside, and given back when they are vacant.

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, Instant},
};

use anyhow::Context;
use portkeep_core::{PortRange, Transport};
use portkeep_kernel::{Admin, Config, Instance, Maps, WordKey};

use super::{
    namespaces::{self, Namespace},
    programs,
};
use crate::vacancy::Prober;

/// The result for pool ports in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAside {
    /// Ports set aside now.
    pub set_aside: usize,
    /// Ports set aside earlier that are vacant again.
    pub given_back: usize,
}

/// Find pool ports that have been in use since before `up` and set them aside, and give back those that are vacant
/// again, in every namespace that can be seen. For `portkeep up`, after the programs are attached.
pub fn set_aside_used_pool_ports(instance: &Instance) -> anyhow::Result<SetAside> {
    let (maps, admin, config) = (instance.maps()?, instance.admin()?, instance.config());
    let prober = programs::prober(config)?;
    let round = Round { admin: &admin, prober: &prober };
    let mut given_back = 0;
    for (netns, ports) in all(&maps)? {
        given_back += round.give_back(netns, ports)?;
    }
    Ok(SetAside { set_aside: round.set_aside(config)?, given_back })
}

/// One round through the namespaces.
pub(super) struct Round<'a> {
    pub(super) admin: &'a Admin,
    pub(super) prober: &'a Prober,
}

impl Round<'_> {
    fn set_aside(&self, config: &Config) -> anyhow::Result<usize> {
        let mut total = 0;
        for namespace in namespaces::visible() {
            total += self.set_aside_in(&namespace.context("looking for network namespaces")?, config);
        }
        Ok(total)
    }

    /// If a namespace cannot be checked, the others are still checked.
    pub(super) fn set_aside_in(&self, namespace: &Namespace, config: &Config) -> usize {
        let Some(pool) = programs::pool(config) else { return 0 };
        self.try_set_aside(namespace, pool).unwrap_or_else(|error| {
            tracing::warn!(netns = namespace.cookie, %error, "cannot look for pool ports in use");
            0
        })
    }

    fn try_set_aside(&self, namespace: &Namespace, pool: PortRange) -> io::Result<usize> {
        namespace.within(|| {
            let mut count = 0;
            for transport in Transport::ALL {
                let look = self.prober.look(transport, pool);
                for (_, port) in look.candidates()? {
                    // Set the port aside first and check it then: otherwise a wildcard request could get it in between.
                    // Reserved ports are refused here: their sockets are counted.
                    if self.admin.set_aside(namespace.cookie, transport, port).is_err() {
                        continue;
                    }
                    if look.vacant(port).unwrap_or(false) {
                        let _ = self.admin.give_back(namespace.cookie, transport, port);
                    } else {
                        count += 1;
                        tracing::debug!(netns = namespace.cookie, %transport, port, "in use, set aside");
                    }
                }
            }
            Ok(count)
        })
    }

    /// Give back vacant ports. If a namespace cannot be found any more, it has no sockets on them.
    fn give_back(&self, netns: u64, ports: Vec<(Transport, u16)>) -> anyhow::Result<usize> {
        let vacant = match namespaces::find(netns)? {
            None => ports,
            Some(namespace) => namespace.within(|| {
                let looks = Transport::ALL.map(|transport| self.prober.look(transport, PortRange::ALL));
                let look = |transport| &looks[usize::from(transport == Transport::Udp)];
                Ok(ports.into_iter().filter(|(t, port)| look(*t).vacant(*port).unwrap_or(false)).collect())
            })?,
        };
        let given_back = vacant.into_iter().filter(|(t, port)| self.admin.give_back(netns, *t, *port).is_ok());
        Ok(given_back.count())
    }
}

/// The ports that are set aside, by namespace.
fn all(maps: &Maps) -> anyhow::Result<BTreeMap<u64, Vec<(Transport, u16)>>> {
    let mut aside: BTreeMap<u64, Vec<(Transport, u16)>> = BTreeMap::new();
    for item in maps.words() {
        let (key, word) = item?;
        if word.aside != 0 {
            aside.entry(key.netns).or_default().extend(ports_of(&key, word.aside));
        }
    }
    Ok(aside)
}

/// Reading the port table may use one part in this many of the time.
const SHARE: u32 = 50;

/// Namespaces with ports that are set aside and may be vacant again. They are checked a slice at a time.
#[derive(Debug, Default)]
pub(super) struct GiveBack {
    rest: BTreeMap<u64, Vec<(Transport, u16)>>,
    /// When the port table was last read, and how long this took.
    looked: Option<(Instant, Duration)>,
}

impl GiveBack {
    pub(super) fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    /// Start a new round, unless the last one still runs or it is too early to read the port table again.
    pub(super) fn begin(&mut self, maps: &Maps) -> anyhow::Result<()> {
        let too_soon = self.looked.is_some_and(|(when, took)| when.elapsed() < took * SHARE);
        if self.is_over() && !too_soon {
            let begin = Instant::now();
            self.rest = all(maps)?;
            self.looked = Some((Instant::now(), begin.elapsed()));
        }
        Ok(())
    }

    pub(super) fn go_on(&mut self, admin: &Admin, prober: &Prober, slice: Duration) -> anyhow::Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < slice
            && let Some((netns, ports)) = self.rest.pop_first()
        {
            let given_back = Round { admin, prober }.give_back(netns, ports)?;
            if given_back > 0 {
                tracing::info!(netns, ports = given_back, "vacant again, given back to the pool");
            }
        }
        Ok(())
    }
}

fn ports_of(key: &WordKey, bits: u64) -> impl Iterator<Item = (Transport, u16)> {
    let transport = Transport::ALL.into_iter().find(|transport| u16::from(transport.bit()) == key.transport);
    let base = u32::from(key.word) * 64;
    (0..64u32).filter(move |bit| bits & 1 << bit != 0).filter_map(move |bit| Some((transport?, (base + bit) as u16)))
}
