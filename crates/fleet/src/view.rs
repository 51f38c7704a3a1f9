//! The fleet as people and programs see it.

use std::{
    io::{self, Write},
    time::SystemTime,
};

use portkeep::{PortRange, Time, Transports, persistent::Audience};
use serde::Serialize;

use crate::{
    config::Config,
    etcd::{Client, EtcdError, KeyValue, Op},
    print_json,
    record::{Answer, Block, Job, Keys, Member, Part},
};

/// Where a job, or a host's part of it, is in its life. The words are those of reservations, if they mean the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum JobState {
    /// A host has not answered yet.
    Pending,
    /// The kernel enforces it.
    Active,
    Refused,
    /// The host cannot be reached, or has lost the ports.
    Lost,
    /// The job is over, and the ports are not vacant yet.
    Ended,
    /// Vacant on all hosts; not given to a job yet.
    Resting,
}

impl JobState {
    /// As JSON has it.
    pub(crate) fn word(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// A job.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct JobView {
    pub(crate) name: String,
    pub(crate) ports: PortRange,
    start: u16,
    count: u16,
    pub(crate) transports: Option<Transports>,
    pub(crate) state: JobState,
    pub(crate) audience: Option<Audience>,
    pub(crate) by: Option<String>,
    pub(crate) hosts: Vec<HostPart>,
}

/// A host's part of a job.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct HostPart {
    pub(crate) host: String,
    pub(crate) state: JobState,
    pub(crate) reason: Option<String>,
}

/// A host.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct HostView {
    pub(crate) host: String,
    /// Its daemon runs and reaches etcd.
    pub(crate) up: bool,
    pub(crate) version: Option<String>,
    /// Why it could reserve nothing when its daemon joined.
    pub(crate) reason: Option<String>,
    /// Names of the jobs that it has a part of.
    pub(crate) jobs: Vec<String>,
}

/// The fleet.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FleetView {
    /// The cluster's id.
    pub(crate) cluster: String,
    pub(crate) revision: i64,
    /// When etcd said so, by this host's clock.
    pub(crate) when: Time,
    pub(crate) range: PortRange,
    /// Ports that no job has and that do not rest.
    pub(crate) free: u32,
    pub(crate) hosts: Vec<HostView>,
    pub(crate) jobs: Vec<JobView>,
}

/// Print a job that is alike on all of its hosts: just granted, or released.
pub(crate) fn print(job: &Job, state: JobState, json: bool) -> io::Result<()> {
    if json {
        let part = |host: &String| HostPart { host: host.clone(), state, reason: None };
        return print_json(&of_job(&Block::of(job), Some(job), state, job.hosts.iter().map(part).collect()));
    }
    writeln!(io::stdout(), "{} {} {}", job.ports, job.transports, job.name)?;
    io::stdout().flush()
}

/// `job` is none if it is over.
fn of_job(block: &Block, job: Option<&Job>, state: JobState, hosts: Vec<HostPart>) -> JobView {
    JobView {
        name: block.name.clone(),
        ports: block.ports,
        start: block.ports.start(),
        count: block.ports.count(),
        transports: job.map(|job| job.transports),
        state,
        audience: job.map(|job| job.audience.clone()),
        by: job.map(|job| job.by.clone()),
        hosts,
    }
}

/// Everything, at one revision.
pub(crate) fn fleet(client: &Client, config: &Config) -> Result<FleetView, EtcdError> {
    let keys = Keys(config.prefix.clone());
    let reads =
        [keys.jobs(), keys.blocks(), keys.all_parts(), keys.hosts(), keys.known()].map(|prefix| Op::all(&prefix));
    let (revision, [jobs, blocks, parts, members, known]) = client.read(reads)?;
    let jobs: Vec<Job> = jobs.iter().map(KeyValue::parse).collect::<Result<_, _>>()?;
    let blocks: Vec<Block> = blocks.iter().map(KeyValue::parse).collect::<Result<_, _>>()?;
    let mut of_parts: Vec<(String, String, Part)> = Vec::new();
    for part in &parts {
        of_parts.push((Part::id(part).to_owned(), part.name().to_owned(), part.parse()?));
    }
    let is_up = |host: &str| members.iter().any(|member| member.name() == host);
    let views = blocks.iter().map(|block| of_block(block, &jobs, &of_parts, &is_up)).collect();
    let hosts = known.iter().map(|known| {
        let host = known.name().to_owned();
        let member = members.iter().find(|member| member.name() == host);
        let member = member.map(KeyValue::parse::<Member>).transpose()?;
        let of_host = of_parts.iter().filter(|(_, of, _)| *of == host).map(|(_, _, part)| part.name.clone());
        Ok::<_, EtcdError>(HostView {
            up: member.is_some(),
            version: member.as_ref().map(|member| member.version.clone()),
            reason: member.and_then(|member| member.obstacle),
            jobs: of_host.collect(),
            host,
        })
    });
    let taken: u32 = blocks.iter().map(|block| u32::from(block.ports.count())).sum();
    Ok(FleetView {
        cluster: format!("{:x}", client.cluster()),
        revision,
        when: SystemTime::now().into(),
        range: config.range,
        free: u32::from(config.range.count()).saturating_sub(taken),
        hosts: hosts.collect::<Result<_, _>>()?,
        jobs: views,
    })
}

fn of_block(block: &Block, jobs: &[Job], parts: &[(String, String, Part)], is_up: &impl Fn(&str) -> bool) -> JobView {
    let job = jobs.iter().find(|job| job.id == block.id);
    let mine = parts.iter().filter(|(id, ..)| *id == block.id);
    let hosts: Vec<HostPart> = mine
        .map(|(_, host, part)| {
            let state = match (job, part.answer) {
                _ if !is_up(host) => JobState::Lost,
                (None, _) => JobState::Ended,
                (Some(_), Answer::Asked) => JobState::Pending,
                (Some(_), Answer::Granted) => JobState::Active,
                (Some(_), Answer::Refused) => JobState::Refused,
                (Some(_), Answer::Lost) => JobState::Lost,
            };
            let reason = part.reason.as_ref().map(|reason| reason.message.clone());
            let silent = (state == JobState::Lost && reason.is_none()).then(|| "the host cannot be reached".to_owned());
            HostPart { host: host.clone(), state, reason: reason.or(silent) }
        })
        .collect();
    let has = |state: JobState| hosts.iter().any(|host| host.state == state);
    let state = match job {
        None if block.resting => JobState::Resting,
        None => JobState::Ended,
        Some(_) if has(JobState::Refused) => JobState::Refused,
        Some(_) if has(JobState::Pending) => JobState::Pending,
        Some(_) => JobState::Active,
    };
    of_job(block, job, state, hosts)
}
