//! The decisions of the fleet. Each is one transaction of etcd; nothing here decides by itself.

use portkeep::{Align, PortRange, persistent::protocol::Reason};

use crate::{
    etcd::{Client, Compare, EtcdError, KeyValue, Op, Outcome},
    failure::Failure,
    record::{Answer, Block, Job, Keys, Part},
    search::next_fit,
};

/// The block that a job asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WantedBlock {
    /// These ports.
    Exactly(PortRange),
    /// Any free block of so many ports.
    Any { count: u16, align: Align },
}

/// The bounds of the search for a block.
#[derive(Debug)]
pub(crate) struct BlockSearch<'a> {
    pub(crate) range: PortRange,
    pub(crate) block: WantedBlock,
    /// Blocks that a host of the job has refused.
    pub(crate) refused: &'a [PortRange],
}

/// The facts that a decision depends on.
#[derive(Debug)]
struct Table {
    cursor: Option<KeyValue>,
    blocks: Vec<Block>,
}

/// If another decision comes in between, the transaction fails and returns the current facts. Then try again, at most
/// this often.
const ATTEMPTS: usize = 200;

fn reads(keys: &Keys, name: &str) -> [Op; 5] {
    [
        Op::get(&keys.cursor()),
        Op::all(&keys.blocks()),
        Op::get(&keys.job(name)),
        Op::keys(&keys.hosts()),
        Op::keys(&keys.known()),
    ]
}

/// Grant the job a block: the whole job on all hosts, or nothing. `job.ports` is set.
///
/// Two round trips, and one more for each decision that comes in between.
pub(crate) fn decide(
    client: &Client,
    keys: &Keys,
    job: &mut Job,
    lease: i64,
    search: &BlockSearch<'_>,
) -> Result<(), Failure> {
    let mut outcome = client.transact(&[], &reads(keys, &job.name), &[])?;
    for _ in 0..ATTEMPTS {
        let Some(table) = examine(outcome, job)? else { return Ok(()) };
        job.ports = choose(client, keys, &table, search, job)?;
        outcome = commit(client, keys, job, lease, &table)?;
        if outcome.succeeded {
            return Ok(());
        }
    }
    Err(Failure::new(Reason::Failed, "too many other requests came in between; try again"))
}

/// Check that all hosts are there and the name is free. `None`: the job is granted already, and the answer of etcd was
/// lost.
fn examine(outcome: Outcome, job: &mut Job) -> Result<Option<Table>, Failure> {
    let [cursor, blocks, found, hosts, known] = outcome.reads()?;
    if let Some(found) = found.first() {
        let Job { id, name, ports, by, hosts, .. } = found.parse()?;
        if id == job.id {
            job.ports = ports;
            return Ok(None);
        }
        let hosts = hosts.join(", ");
        let message = format!("there is a job {name:?}: ports {ports} on {hosts}, of {by}; choose another name");
        return Err(Failure::new(Reason::NameTaken, message));
    }
    for host in &job.hosts {
        if !hosts.iter().any(|key| key.name() == host) {
            let message = match known.iter().any(|key| key.name() == host) {
                true => format!(
                    "{host} cannot be reached: its daemon has stopped, or its network is cut; check \
                     portkeep-fleet.service there"
                ),
                false => not_a_host(host),
            };
            return Err(Failure::new(Reason::NotFound, message).on(host));
        }
    }
    let blocks = blocks.iter().map(KeyValue::parse).collect::<Result<_, _>>()?;
    Ok(Some(Table { cursor: cursor.into_iter().next(), blocks }))
}

fn not_a_host(host: &str) -> String {
    format!("{host} does not belong to the fleet; `portkeep-fleet status` shows the hosts that do")
}

fn choose(
    client: &Client,
    keys: &Keys,
    table: &Table,
    search: &BlockSearch<'_>,
    job: &Job,
) -> Result<PortRange, Failure> {
    let BlockSearch { range, block, refused } = search;
    let (reason, message) = match *block {
        WantedBlock::Exactly(wanted) if !range.contains(wanted.start()) || !range.contains(wanted.last()) => {
            (Reason::Malformed, format!("ports {wanted} are not within the fleet's range {range}"))
        }
        WantedBlock::Exactly(wanted) => match table.blocks.iter().find(|block| block.ports.overlaps(wanted)) {
            None => return Ok(wanted),
            Some(Block { ports, name, resting: false, .. }) => {
                let (_, [found]) = client.read([Op::get(&keys.job(name))])?;
                let owner = found.first().map(KeyValue::parse::<Job>).transpose()?.filter(|job| job.ports == *ports);
                let whose = owner.map_or_else(
                    || ", which is over; `portkeep-fleet list` shows what its end waits for".to_owned(),
                    |Job { hosts, by, .. }| format!(" on {}, of {by}; choose others", hosts.join(", ")),
                );
                (Reason::InUse, format!("ports {ports} belong to the job {name:?}{whose}"))
            }
            Some(Block { ports, name, resting: true, .. }) => {
                let message = format!(
                    "ports {ports} were those of the job {name:?} a moment ago, and rest; choose others, or try again \
                     later"
                );
                (Reason::InUse, message)
            }
        },
        WantedBlock::Any { count, align } => {
            let cursor = table.cursor.as_ref().and_then(|cursor| cursor.value.parse().ok()).unwrap_or(range.start());
            let taken: Vec<_> = table.blocks.iter().map(|block| block.ports).chain(refused.iter().copied()).collect();
            if let Some(found) = next_fit(*range, cursor, &taken, count, align) {
                return Ok(found);
            }
            let hosts = job.hosts.join(", ");
            let message = format!(
                "the fleet's range {range} has no {count} free ports in a row for {hosts}; `portkeep-fleet list` shows \
                 the jobs that have them"
            );
            (Reason::NoRoom, message)
        }
    };
    Err(Failure::new(reason, message))
}

fn commit(client: &Client, keys: &Keys, job: &Job, lease: i64, table: &Table) -> Result<Outcome, EtcdError> {
    let seen = table.cursor.as_ref().map_or(0, |cursor| cursor.mod_revision);
    let conditions = [Compare::changed(&keys.cursor(), seen), Compare::absent(&keys.job(&job.name))];
    let mut then = vec![Op::put(&keys.cursor(), &u32::from(job.ports.last()).saturating_add(1), 0)];
    then.extend(grant(keys, job, lease));
    client.transact(&conditions, &then, &reads(keys, &job.name))
}

/// The writes that grant a job its block, on all of its hosts.
fn grant(keys: &Keys, job: &Job, lease: i64) -> Vec<Op> {
    let asked = Part::of(job, Answer::Asked, None);
    let of_hosts = job.hosts.iter().flat_map(|host| {
        [Op::put(&keys.live(host, &job.id), job, lease), Op::put(&keys.part(&job.id, host), &asked, 0)]
    });
    let mut writes =
        vec![Op::put(&keys.block(job.ports.start()), &Block::of(job), 0), Op::put(&keys.job(&job.name), job, lease)];
    writes.extend(Op::many(of_hosts.collect()));
    writes
}

/// Take a job back whose lease has ended while etcd could not be reached, if its block is still its own.
pub(crate) fn take_back(client: &Client, keys: &Keys, job: &Job, lease: i64) -> Result<(), Failure> {
    let (of_block, of_job) = (keys.block(job.ports.start()), keys.job(&job.name));
    let lost = |why: &str| Failure::new(Reason::NotFound, format!("ports {} {why}", job.ports));
    for _ in 0..ATTEMPTS {
        let (_, [blocks, jobs]) = client.read([Op::get(&of_block), Op::get(&of_job)])?;
        let Some(found) = blocks.first() else { return Err(lost("are free again")) };
        let block: Block = found.parse()?;
        if block.id != job.id {
            return Err(lost(&format!("belong to the job {:?} now", block.name)));
        }
        if block.released {
            return Err(lost("were released"));
        }
        // An earlier attempt, with another lease, may have succeeded, and its answer was lost.
        if let Some(other) = jobs.first().map(KeyValue::parse::<Job>).transpose()?.filter(|other| other.id != job.id) {
            return Err(lost(&format!("are lost: {} has a job of the name {:?} now", other.by, other.name)));
        }
        let seen = jobs.first().map_or(0, |found| found.mod_revision);
        let conditions = [Compare::changed(&of_block, found.mod_revision), Compare::changed(&of_job, seen)];
        if client.transact(&conditions, &grant(keys, job, lease), &[])?.succeeded {
            return Ok(());
        }
    }
    Err(lost("changed too often"))
}

/// End a job for its owner. Its ports are free when all hosts report that they are vacant.
pub(crate) fn release(client: &Client, keys: &Keys, name: &str) -> Result<Job, Failure> {
    let of_job = keys.job(name);
    for _ in 0..ATTEMPTS {
        let (_, [found]) = client.read([Op::get(&of_job)])?;
        let Some(found) = found.first() else {
            return Err(Failure::no_job(name));
        };
        let job: Job = found.parse()?;
        let released = Op::put(&keys.block(job.ports.start()), &Block { released: true, ..Block::of(&job) }, 0);
        // When the lease ends, etcd deletes every key of the job. A job that was taken back in between has another
        // lease.
        if client.transact(&[Compare::changed(&of_job, found.mod_revision)], &[released], &[])?.succeeded {
            client.revoke(found.lease)?;
            return Ok(job);
        }
    }
    Err(Failure::new(Reason::Failed, format!("the job {name:?} changes all the time; try again")))
}

/// Take a host out of the fleet for good: its parts of jobs count as vacant. Returns them.
pub(crate) fn forget(client: &Client, keys: &Keys, host: &str, rest: u32) -> Result<Vec<Part>, Failure> {
    for _ in 0..ATTEMPTS {
        let reads = [
            Op::get(&keys.known_host(host)),
            Op::get(&keys.host(host)),
            Op::get(&keys.cursor()),
            Op::keys(&keys.all_parts()),
        ];
        let (_, [known, member, cursor, parts]) = client.read(reads)?;
        let parts: Vec<_> = parts.iter().filter(|part| part.name() == host).collect();
        if known.is_empty() && parts.is_empty() {
            return Err(Failure::new(Reason::NotFound, not_a_host(host)));
        }
        if !member.is_empty() {
            let message =
                format!("the daemon of {host} runs; stop it, and wait until `portkeep-fleet status` shows it as lost");
            return Err(Failure::new(Reason::InUse, message));
        }
        let (seen, cursor) = match cursor.first() {
            Some(found) => (found.mod_revision, found.parse()?),
            None => (0, 0u32),
        };
        // A decision that has already read the host would give it a part. The changed cursor makes that decision read
        // again.
        let conditions = [Compare::absent(&keys.host(host)), Compare::changed(&keys.cursor(), seen)];
        let then = [
            Op::delete_all(&keys.live_of(host)),
            Op::delete(&keys.known_host(host)),
            Op::put(&keys.cursor(), &cursor, 0),
        ];
        if !client.transact(&conditions, &then, &[])?.succeeded {
            continue;
        }
        let mut vacant = Vec::new();
        for part in parts {
            let (_, [found]) = client.read([Op::get(&part.key)])?;
            let Some(found) = found.first() else { continue };
            let part: Part = found.parse()?;
            done(client, keys, Part::id(found), host, part.ports, rest)?;
            vacant.push(part);
        }
        return Ok(vacant);
    }
    Err(Failure::new(Reason::Failed, "too many requests came in between; try again"))
}

/// A host is done with a job: nothing is reserved there, and its ports are vacant. The last host lets the block rest.
/// Returns false if the job has come back.
pub(crate) fn done(
    client: &Client,
    keys: &Keys,
    id: &str,
    host: &str,
    ports: PortRange,
    rest: u32,
) -> Result<bool, EtcdError> {
    let part = keys.part(id, host);
    let over = [Compare::absent(&keys.live(host, id))];
    let last = Compare::no_other(&keys.parts(id), &part);
    // All hosts but the last need one step only. The last one requires a lease, at whose end the block no longer rests.
    let step = Op::nested(&last, &[], &[Op::delete(&part)]);
    let outcome = client.transact(&over, &[step], &[])?;
    if !outcome.succeeded || !outcome.inner_succeeded() {
        return Ok(outcome.succeeded);
    }
    let key = keys.block(ports.start());
    let (_, [found]) = client.read([Op::get(&key)])?;
    let block = found.first().map(|found| Ok::<_, EtcdError>((found, found.parse::<Block>()?))).transpose()?;
    let Some((found, block)) = block.filter(|(_, block)| block.id == id && !block.resting) else {
        // This step was done before, and its answer was lost.
        return client.transact(&over, &[Op::delete(&part)], &[]).map(|outcome| outcome.succeeded);
    };
    let lease = client.grant(rest)?;
    let conditions = [&over[..], &last, &[Compare::changed(&key, found.mod_revision)]].concat();
    let resting = Block { resting: true, ..block };
    let outcome = client.transact(&conditions, &[Op::delete(&part), Op::put(&key, &resting, lease)], &[])?;
    Ok(outcome.succeeded)
}
