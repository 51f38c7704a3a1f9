//! Sockets that keep a declared block from coming into force.

use portkeep::{
    BoundSocket, PortRange,
    persistent::{Audience, Declaration},
};
use portkeep_core::{PortSet, Transport};
use portkeep_observe::usage::{self, Usage};

use super::item::Obstacle;
use crate::{
    audience_check::AudienceCheck,
    vacancy::{Look, Prober},
};

/// Sockets in the namespace, looked at once for each transport.
pub(super) struct Sockets<'a> {
    looks: [Look<'a>; 2],
    bound: [PortSet; 2],
    check: AudienceCheck,
}

impl<'a> Sockets<'a> {
    /// Look for sockets on these ports. They are candidates; [`Sockets::obstacle`] checks each of them.
    pub(super) fn look(prober: &'a Prober, check: AudienceCheck, ports: PortRange) -> Result<Self, String> {
        let looks = Transport::ALL.map(|transport| prober.look(transport));
        let mut bound = [PortSet::default(), PortSet::default()];
        for (look, bound) in looks.iter().zip(&mut bound) {
            let candidates = look.candidates(ports).map_err(|error| format!("cannot look for sockets: {error}"))?;
            for port in candidates {
                bound.insert(PortRange::single(port).expect("a bound port is not 0"));
            }
        }
        Ok(Self { looks, bound, check })
    }

    /// Why the block cannot be reserved, if a socket that may not stay has one of its ports.
    pub(super) fn obstacle(&self, declaration: &Declaration, audience: &Audience<u32>) -> Option<Obstacle> {
        declaration.transports.iter().find_map(|transport| {
            let (look, bound) = (&self.looks[transport as usize], &self.bound[transport as usize]);
            declaration.ports.iter().filter(|port| bound.contains(*port)).find_map(|port| {
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
