//! Which reservations and events a command shows.

use anyhow::Context;
use portkeep::{
    Info, PortRange, Process, Transports,
    persistent::{
        Account, Audience,
        protocol::{Event, Reason},
    },
};
use portkeep_kernel::netns;
use portkeep_observe::{accounts, namespaces};

use crate::{args::asked::Asked, exit::refused};

/// Options that select. Several select what all of them do.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Filter {
    /// With one of these ports: 80,443, 8000-8100/tcp, http, or a name
    #[arg(value_name = "PORTS[/TRANSPORT]")]
    ports: Vec<Asked>,
    /// With this label or name
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
    /// Of this user, by name or number
    #[arg(long, value_name = "USER")]
    uid: Option<Account>,
    /// Of this systemd unit
    #[arg(long, value_name = "UNIT")]
    unit: Option<String>,
    /// In this network namespace: `this`, a name of `ip netns`, net:[NUMBER] as lsns has it, or a cookie
    #[arg(long, value_name = "NETNS")]
    netns: Option<String>,
}

/// A [`Filter`] with everything looked up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    ports: Vec<(PortRange, Transports)>,
    label: Option<String>,
    uid: Option<u32>,
    unit: Option<String>,
    netns: Option<u64>,
}

impl Filter {
    /// Look up what it names; `known` reservations may be named in place of ports.
    pub(crate) fn resolve(&self, known: &[Info]) -> anyhow::Result<Selection> {
        let known: Vec<&Info> = known.iter().collect();
        let mut ports = Vec::new();
        for asked in &self.ports {
            let blocks = asked.blocks(&known);
            if blocks.is_empty() {
                let why =
                    format!("{asked} is neither a port, nor a service of /etc/services, nor the name of a reservation");
                return Err(refused(Reason::Malformed, why));
            }
            ports.extend(blocks);
        }
        let uid = match &self.uid {
            Some(account) => Some(accounts::uid(account).map_err(|why| refused(Reason::Malformed, why))?),
            None => None,
        };
        let netns = match &self.netns {
            Some(name) => Some(cookie(name)?),
            None => None,
        };
        Ok(Selection { ports, label: self.label.clone(), uid, unit: self.unit.clone(), netns })
    }
}

/// The cookie of a namespace by any of its names.
fn cookie(name: &str) -> anyhow::Result<u64> {
    if name == "this" {
        return netns::current_cookie().context("finding out which network namespace this is");
    }
    let found = namespaces::visible().flatten().find(|namespace| namespace.name() == name);
    match (found, name.parse()) {
        (Some(namespace), _) => Ok(namespace.cookie),
        (None, Ok(cookie)) => Ok(cookie),
        (None, Err(_)) => {
            let why = format!("there is no network namespace {name} that can be seen from here");
            Err(refused(Reason::Malformed, why))
        }
    }
}

impl Selection {
    /// Whether a reservation is selected.
    pub(crate) fn has(&self, info: &Info) -> bool {
        let overlaps = |(ports, transports): &(PortRange, Transports)| {
            info.ports.overlaps(&(*ports).into()) && transports.iter().any(|each| info.transports.contains(each))
        };
        (self.ports.is_empty() || self.ports.iter().any(overlaps))
            && self.label.as_ref().is_none_or(|label| info.name.as_ref() == Some(label))
            && self.uid.is_none_or(|uid| is_of_user(info, uid))
            && self.unit.as_ref().is_none_or(|unit| is_of_unit(info.owner.as_ref(), Some(info), unit))
            && self.netns.is_none_or(|netns| info.netns == Some(netns))
    }

    /// Whether an event is selected: by the process that did it, or by the reservation that it is about. `label` is the
    /// name of that reservation, if only its name is known.
    pub(crate) fn has_event(&self, event: &Event, label: Option<&str>) -> bool {
        let overlaps = |(ports, transports): &(PortRange, Transports)| {
            event.ports.overlaps(&(*ports).into()) && transports.iter().any(|each| event.transports.contains(each))
        };
        let (process, reservation) = (event.process.as_ref(), event.reservation.as_ref());
        let name = label.or_else(|| reservation?.name.as_deref());
        (self.ports.is_empty() || self.ports.iter().any(overlaps))
            && self.label.as_deref().is_none_or(|wanted| name == Some(wanted))
            && self.uid.is_none_or(|uid| {
                process.is_some_and(|process| process.uid == Some(uid))
                    || reservation.is_some_and(|info| is_of_user(info, uid))
            })
            && self.unit.as_ref().is_none_or(|unit| is_of_unit(process, reservation, unit))
            && self.netns.is_none_or(|netns| event.netns == netns)
    }
}

fn is_of_user(info: &Info, uid: u32) -> bool {
    let is_it = |one: &Audience| matches!(one, Audience::User(account) if accounts::uid(account) == Ok(uid));
    info.named().any(is_it) || info.owner.as_ref().is_some_and(|owner| owner.uid == Some(uid))
}

/// Whether the process or the reservation is of this unit. `nginx` means `nginx.service`.
fn is_of_unit(process: Option<&Process>, reservation: Option<&Info>, unit: &str) -> bool {
    let named = |name: &str| name == unit || name.strip_suffix(".service") == Some(unit);
    process.and_then(|process| process.unit.as_deref()).is_some_and(named)
        || reservation.is_some_and(|info| info.named().any(|one| matches!(one, Audience::Unit(name) if named(name))))
}
