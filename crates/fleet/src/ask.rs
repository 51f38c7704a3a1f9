//! The options of a request.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use portkeep::{
    Align, Transports,
    persistent::{Account, Audience, Name, protocol::Reason},
};
use portkeep_cli::command::OfTransport;
use portkeep_observe::accounts::known_user;
use rustix::process::getuid;

use crate::{
    complain,
    config::Config,
    etcd::Client,
    failure::Failure,
    memory::random_id,
    request::{self, Held, News, Wanted},
    serve,
};

/// The longest name: the name of a reservation has room for it and a revision.
const LONGEST: usize = 32;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Ask {
    /// The hosts, as their daemons are named
    #[arg(long, value_name = "HOST,...", value_delimiter = ',', required = true)]
    hosts: Vec<Name>,
    /// How many ports in a row
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    count: u16,
    /// The first port is a multiple of N, a power of two
    #[arg(long, value_name = "N", default_value = "1", value_parser = |text: &str| text.parse::<Align>())]
    align: Align,
    /// Exactly the block from this port on
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    at: Option<u16>,
    #[command(flatten)]
    transports: OfTransport,
    /// The name under which others find the ports; of at most 32 characters
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
    /// The user whose processes can bind the ports on each host; the caller's by default
    #[arg(long, value_name = "NAME", conflicts_with = "unit")]
    user: Option<Account>,
    /// The systemd unit whose processes can, in place of a user
    #[arg(long, value_name = "UNIT")]
    unit: Option<String>,
    /// Seconds to wait for the hosts' answers
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

impl Ask {
    /// Get the job, and report its progress on standard error. If the job ends by itself, `over` is called.
    pub(crate) fn acquire(&self, config: &Config, over: impl Fn() + Send + 'static) -> anyhow::Result<Held> {
        let client = Arc::new(Client::new(config)?);
        Ok(request::acquire(&client, config, &self.wanted()?, move |news| {
            let is_over = matches!(news, News::Over(_));
            report(news);
            if is_over {
                over();
            }
        })?)
    }

    fn wanted(&self) -> anyhow::Result<Wanted> {
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
            return Err(malformed(format!("the name of a job has at most {LONGEST} characters, and no @")).into());
        }
        let audience = match (&self.unit, &self.user) {
            (Some(unit), _) => Audience::unit(unit).map_err(|error| malformed(error.to_string()))?,
            (None, user) => Audience::User(user.clone().unwrap_or_else(|| caller.clone())),
        };
        let here = serve::machine_name();
        Ok(Wanted {
            name,
            hosts,
            count: self.count,
            align: self.align,
            at: self.at,
            transports: self.transports.named().unwrap_or(Transports::Tcp),
            audience,
            by: format!("{caller}@{here}, pid {}", std::process::id()),
            patience: Duration::from_secs(self.timeout),
        })
    }

    /// The name that the caller gave.
    pub(crate) fn label(&self) -> Option<&str> {
        self.name.as_ref().map(Name::as_str)
    }
}

/// Report the progress of the job to the user.
fn report(news: News) {
    match news {
        News::CutOff(error) => complain("warning", format_args!("{error}; the hosts keep the ports")),
        News::Back => complain("note", "etcd can be reached again"),
        News::TakenBack(failures) => {
            complain("note", "etcd can be reached again, and the job was taken back");
            failures.iter().for_each(|failure| complain("warning", format_args!("no longer reserved on {failure}")));
        }
        News::Over(failure) => complain("warning", format_args!("the job is over: {failure}")),
    }
}
