//! The options of a request.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use portkeep::persistent::{Account, Audience, Name, protocol::Reason};
use portkeep_cli::command::{PortArgs, seconds};
use portkeep_observe::accounts::known_user;
use rustix::process::getuid;

use crate::{
    arbiter::WantedBlock,
    complain,
    config::Config,
    etcd::Client,
    failure::Failure,
    memory::random_id,
    request::{self, HeldJob, JobRequest, News},
    serve,
};

/// The longest name: the name of a reservation has room for it and a revision.
const LONGEST: usize = 32;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Ask {
    /// The hosts, as their daemons are named
    #[arg(long, value_name = "HOST,...", value_delimiter = ',', required = true)]
    hosts: Vec<Name>,
    #[command(flatten)]
    ports: PortArgs,
    /// Name under which others find the ports, at most 32 characters
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
    /// User whose processes can bind the ports [default: the caller]
    #[arg(long, value_name = "NAME", conflicts_with = "unit")]
    user: Option<Account>,
    /// Systemd unit whose processes can, in place of a user
    #[arg(long, value_name = "UNIT")]
    unit: Option<String>,
    /// Seconds to wait for the hosts' answers
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    timeout: Duration,
}

impl Ask {
    /// Get the job, and report its progress on standard error. If the job ends by itself, `over` is called.
    pub(crate) fn acquire(&self, config: &Config, over: impl Fn() + Send + 'static) -> anyhow::Result<HeldJob> {
        let wanted = self.wanted()?;
        let client = Arc::new(Client::new(config)?);
        let name = wanted.name.clone();
        Ok(request::acquire(&client, config, &wanted, move |news| {
            let is_over = matches!(news, News::Over(_));
            report(&name, news);
            if is_over {
                over();
            }
        })?)
    }

    fn wanted(&self) -> anyhow::Result<JobRequest> {
        let uid = getuid().as_raw();
        let caller = known_user(uid).map_or(Account::Id(uid), Account::Name);
        let malformed = |message: String| Failure::new(Reason::Malformed, message);
        let hosts: Vec<String> = self.hosts.iter().map(ToString::to_string).collect();
        if hosts.iter().collect::<BTreeSet<_>>().len() < hosts.len() {
            return Err(malformed(format!("a host is named twice: {}", hosts.join(","))).into());
        }
        let name = match &self.name {
            Some(name) => name.to_string(),
            None => format!("job-{}", random_id()?),
        };
        if name.len() > LONGEST || name.contains('@') {
            let message =
                format!("the name of a job has at most {LONGEST} characters and no @, and {name:?} does not fit");
            return Err(malformed(message).into());
        }
        let audience = match (&self.unit, &self.user) {
            (Some(unit), _) => Audience::unit(unit).map_err(|error| malformed(error.to_string()))?,
            (None, user) => Audience::User(user.clone().unwrap_or_else(|| caller.clone())),
        };
        let (list, transports) = self.ports.ports()?;
        let block = match &list {
            None => WantedBlock::Any { count: self.ports.count(), align: self.ports.align },
            Some(list) => WantedBlock::Exactly(list.as_block().ok_or_else(|| {
                malformed(format!("a job has one block of ports, and {list} are several; request a job for each"))
            })?),
        };
        let here = serve::machine_name();
        Ok(JobRequest {
            name,
            hosts,
            block,
            transports,
            audience,
            by: format!("{caller}@{here}, pid {}", std::process::id()),
            patience: self.timeout,
        })
    }

    /// The name that the caller gave.
    pub(crate) fn label(&self) -> Option<&str> {
        self.name.as_ref().map(Name::as_str)
    }
}

/// Report the progress of the job to the user.
fn report(name: &str, news: News) {
    match news {
        News::CutOff(error) => complain("warning", format_args!("{error}; the hosts keep the ports")),
        News::Back => complain("note", "etcd can be reached again"),
        News::TakenBack(failures) => {
            complain("note", format_args!("etcd can be reached again, and the job {name:?} was taken back"));
            let lost =
                |failure| complain("warning", format_args!("the job {name:?} is no longer reserved on {failure}"));
            failures.iter().for_each(lost);
        }
        News::Over(failure) => complain("warning", format_args!("the job {name:?} is over: {failure}")),
    }
}
