//! Sockets that keep a declared block from coming into force.

use std::collections::BTreeMap;

use portkeep::{
    BoundSocket, PortRange,
    persistent::{Audience, Declaration},
};
use portkeep_core::{PortSet, Transport};
use portkeep_kernel::Config;
use portkeep_observe::usage::{self, Usage};

use super::{item::Obstacle, tools::resolve};
use crate::{
    audience_check::AudienceCheck,
    vacancy::{Listed, Look, Prober},
};

/// Why a declaration would not come into force now: its user or group does not exist, or a socket of the calling
/// thread's network namespace has one of its ports. This only reads, so it may miss sockets that the kernel does not
/// list. Without the configuration of the BPF programs it is not known which sockets `around` lets stay: then none is
/// reported.
///
/// # Errors
///
/// If the sockets cannot be listed.
pub fn obstacle_to(declaration: &Declaration, config: Option<&Config>) -> Result<Option<String>, String> {
    let audience = match resolve(&declaration.audience) {
        Ok(audience) => audience,
        Err(why) => return Ok(Some(why)),
    };
    let check = match config {
        Some(config) => AudienceCheck::new(config),
        None if declaration.around => return Ok(None),
        None => AudienceCheck::default(),
    };
    let prober = Prober::listing_only();
    let sockets = Sockets::look(&prober, check, PortRange::ALL)?;
    Ok(sockets.obstacle(declaration, &audience).map(|obstacle| obstacle.refusal()))
}

/// Sockets in the namespace, looked at once for each transport.
pub(super) struct Sockets<'a> {
    looks: [Look<'a>; 2],
    /// The ports of each transport that have to be checked, in this order.
    candidates: BTreeMap<Listed, [PortSet; 2]>,
    check: AudienceCheck,
}

impl<'a> Sockets<'a> {
    /// Look for sockets on these ports. They are candidates; [`Sockets::obstacle`] checks each of them.
    pub(super) fn look(prober: &'a Prober, check: AudienceCheck, ports: PortRange) -> Result<Self, String> {
        let looks = Transport::ALL.map(|transport| prober.look(transport, ports));
        let mut candidates: BTreeMap<Listed, [PortSet; 2]> = BTreeMap::new();
        for (index, look) in looks.iter().enumerate() {
            for (listed, port) in look.candidates().map_err(|error| format!("cannot look for sockets: {error}"))? {
                let port = PortRange::single(port).expect("a candidate is not 0");
                candidates.entry(listed).or_default()[index].insert(port);
            }
        }
        Ok(Self { looks, candidates, check })
    }

    /// Why the block cannot be reserved, if a socket that may not stay has one of its ports.
    pub(super) fn obstacle(&self, declaration: &Declaration, audience: &Audience<u32>) -> Option<Obstacle> {
        self.candidates.values().find_map(|candidates| self.obstacle_among(candidates, declaration, audience))
    }

    fn obstacle_among(
        &self,
        candidates: &[PortSet; 2],
        declaration: &Declaration,
        audience: &Audience<u32>,
    ) -> Option<Obstacle> {
        declaration.transports.iter().find_map(|transport| {
            let (look, candidates) = (&self.looks[transport as usize], &candidates[transport as usize]);
            declaration.ports.iter().filter(|port| candidates.contains(*port)).find_map(|port| {
                if look.vacant(port).unwrap_or(false) {
                    return None;
                }
                let in_audience = self.check.all_of(transport, port, audience);
                if declaration.around && in_audience {
                    return None;
                }
                let sockets = sockets_on(transport, port);
                // A socket that was closed in between is no obstacle.
                if sockets.is_empty() && look.vacant(port).unwrap_or(false) {
                    return None;
                }
                let mut why = usage::sentence(transport, port, &sockets);
                // A connection has its port by chance.
                let serves = sockets.first().is_some_and(|s| matches!(s.state.as_deref(), Some("listening" | "bound")));
                if serves && !in_audience && *audience != Audience::Administrators {
                    why += &format!("; the reservation is for {}, and this process is not", declaration.audience);
                }
                Some(Obstacle { why, sockets, in_audience })
            })
        })
    }
}

/// The sockets that keep a port from being reserved: the first few.
fn sockets_on(transport: Transport, port: u16) -> Vec<BoundSocket> {
    const NAMED: usize = 8;
    let block = PortRange::single(port).expect("a bound port is not 0");
    let usage = Usage::of(&[(block, transport.into())]).unwrap_or_default();
    usage.port(transport, port).sockets().take(NAMED).cloned().collect()
}
