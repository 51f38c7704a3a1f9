//! The answers to requests on the agent's socket.

use portkeep::{
    Info,
    persistent::protocol::{Answer, Counters, QuotaUse, Reason, Refused, Request},
};
use portkeep_kernel::{NOBODY, root_elsewhere};
use portkeep_observe::accounts;

use super::{
    agent::Agent,
    connection::{Line, line_of, refusal},
    event_log::What,
    peer::Peer,
    refused::{failed, refused},
    registry::{Registry, Tools},
};

impl Agent<'_> {
    /// Answer the requests of the connections.
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

    /// The line with the list, made once for each change.
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

    /// Report an administrator's action.
    fn report(&mut self, what: What, reservation: Info, by: &Peer) {
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

    /// Carry out a command on the persistent reservations.
    fn command<T>(
        &mut self,
        run: impl FnOnce(&mut Registry, &mut Tools<'_>) -> Result<T, Refused>,
    ) -> Result<T, Refused> {
        let (registry, mut tools) = self.registry();
        let done = run(registry, &mut tools);
        self.unsettle(self.netns, &[]);
        done
    }

    fn answer(&mut self, peer: Peer, request: Request) -> Answer {
        let may = match request {
            Request::Watch | Request::Counters => self.policy.is_watcher(&peer),
            _ => self.policy.is_administrator(&peer),
        };
        if !may {
            let message = "only an administrator may do this: root with its capabilities, or a member of the group that \
                           `administrators` names in portkeep.toml";
            return refusal(Reason::NotAllowed, message);
        }
        let answered = match request {
            Request::Watch => Ok(Answer::Watching),
            Request::Counters => self.counters().map(|counters| Answer::Counters(Box::new(counters))).map_err(failed),
            Request::Reload => self.reload().map(Answer::Reloaded).map_err(failed),
            Request::Create { proposal, kept } => {
                self.command(|registry, tools| registry.create(tools, &proposal, kept, peer.uid)).map(|created| {
                    self.report(What::Granted, created.clone(), &peer);
                    Answer::Created(Box::new(created))
                })
            }
            Request::Delete(which) => self.command(|registry, tools| registry.delete(tools, &which)).map(|deleted| {
                self.report(What::Ended, deleted.clone(), &peer);
                Answer::Deleted(Box::new(deleted))
            }),
            Request::Change { name, change } => self
                .command(|registry, tools| registry.change(tools, &name, &change))
                .map(|changed| Answer::Changed(Box::new(changed))),
            other => Err(refused(Reason::Malformed, format!("{other:?} is not known to this agent"))),
        };
        answered.unwrap_or_else(Answer::Refused)
    }
}
