//! The answers to requests on the agent's socket.

use portkeep::{
    Info,
    persistent::protocol::{Answer, Counters, EventKind, QuotaUse, Reason, Request},
};
use portkeep_kernel::{NOBODY, root_elsewhere};
use portkeep_observe::accounts;

use super::{
    agent::Agent,
    connection::{Line, line_of, refusal},
    peer::Peer,
};

impl Agent<'_> {
    /// Answer those who are connected.
    pub(super) fn serve(&mut self) {
        for (number, peer, request) in self.server.hear(self.policy.owners()) {
            if self.server.is_deserted(number) {
                tracing::debug!(process = peer.pid, uid = peer.uid, "the client of a request has gone; it is dropped");
            } else if request == Request::List {
                let list = self.list();
                self.server.say_line(number, list);
            } else {
                let answer = self.answer(peer, request);
                self.server.answer(number, &answer);
            }
        }
        self.server.say();
    }

    /// The list as it is sent, made once for each change.
    fn list(&mut self) -> Line {
        let version = self.registry.version();
        match &self.listed {
            Some((of, line)) if *of == version => line.clone(),
            _ => {
                let line = line_of(&Answer::List(self.registry.list()));
                self.listed = Some((version, line.clone()));
                line
            }
        }
    }

    /// Report what an administrator did.
    fn report(&mut self, what: EventKind, reservation: Info, by: &Peer) {
        let event = self.event_log.administered(what, reservation, self.netns, by);
        self.server.publish(&event);
    }

    fn counters(&self) -> anyhow::Result<Counters> {
        let maps = &self.programs.maps;
        let (counters, config) = (maps.counters()?, maps.config()?);
        let mut quotas = Vec::new();
        for item in maps.quotas() {
            let (account, quota) = item?;
            if account == NOBODY || quota.used == 0 && quota.pending == 0 {
                continue;
            }
            let uid = u32::try_from(account).ok();
            let default = match uid {
                Some(0) => u32::MAX,
                Some(_) => config.quota,
                None => config.quota_elsewhere,
            };
            let limit = if quota.limit == 0 { default } else { quota.limit };
            quotas.push(QuotaUse {
                account: match uid {
                    Some(uid) => format!("user {}", accounts::user_name(uid)),
                    None => format!("root of the network namespace {}", account & !root_elsewhere(0)),
                },
                uid,
                used: quota.used,
                limit: Some(limit).filter(|limit| *limit != u32::MAX),
                pending: quota.pending,
            });
        }
        quotas.sort_by(|one: &QuotaUse, other| one.account.cmp(&other.account));
        Ok(Counters {
            since: self.started,
            reservations: counters.reservations,
            ports: counters.ports,
            refused: counters.refused,
            pending: quotas.iter().map(|quota| quota.pending).sum(),
            latency: self.latency.clone(),
            quotas,
        })
    }

    fn answer(&mut self, peer: Peer, request: Request) -> Answer {
        if matches!(request, Request::Watch | Request::Counters) && self.policy.is_watcher(&peer) {
            return match request {
                Request::Watch => Answer::Watching,
                _ => match self.counters() {
                    Ok(counters) => Answer::Counters(Box::new(counters)),
                    Err(error) => refusal(Reason::Failed, format!("{error:#}")),
                },
            };
        }
        if !self.policy.is_administrator(&peer) {
            let message = "only an administrator may do this: root with its capabilities, or a member of the group that \
                           `administrators` names in portkeep.toml";
            return refusal(Reason::NotAllowed, message);
        }
        let netns = self.netns;
        match request {
            Request::Reload => match self.reload() {
                Ok(reloaded) => Answer::Reloaded(reloaded),
                Err(error) => refusal(Reason::Failed, format!("{error:#}")),
            },
            Request::Create { proposal, kept } => {
                let (registry, mut tools) = self.registry();
                let created = registry.create(&mut tools, &proposal, kept, peer.uid);
                self.unsettle(netns, &[]);
                match created {
                    Ok(created) => {
                        self.report(EventKind::Granted, created.clone(), &peer);
                        Answer::Created(Box::new(created))
                    }
                    Err(refused) => Answer::Refused(refused),
                }
            }
            Request::Delete(which) => {
                let (registry, mut tools) = self.registry();
                let deleted = registry.delete(&mut tools, &which);
                self.unsettle(netns, &[]);
                match deleted {
                    Ok(deleted) => {
                        self.report(EventKind::Ended, deleted.clone(), &peer);
                        Answer::Deleted(Box::new(deleted))
                    }
                    Err(refused) => Answer::Refused(refused),
                }
            }
            Request::Change { name, change } => {
                let (registry, mut tools) = self.registry();
                let changed = registry.change(&mut tools, &name, &change);
                self.unsettle(netns, &[]);
                match changed {
                    Ok(changed) => Answer::Changed(Box::new(changed)),
                    Err(refused) => Answer::Refused(refused),
                }
            }
            other => refusal(Reason::Malformed, format!("{other:?} is not known to this agent")),
        }
    }
}
