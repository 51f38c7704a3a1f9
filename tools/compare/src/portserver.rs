//! The ports of a port server when a client of it is killed, when it is killed itself, and when a client asks for all
//! ports. Sockets do not show which client has which port of portpicker's own server: only its other clients can see
//! it.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};

use super::{
    allocator::{Allocator, Taken},
    crash::{AT_ONCE, Crash},
    job::{Exhausted, PORTS, Way, probe},
    kit::Kit,
    latency::start,
    subject::Subject,
};
use portkeep_testkit::places::{Places, moved};

/// Exactly what one client takes, so that the next one of portpicker's server needs the same.
const POOL: &str = "15000-15007";

/// How long a server may need to notice that a client has ended.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) fn observe(subject: Subject, kit: &Kit, places: &Places) -> Result<Crash> {
    let cgroup = places.cgroup(subject.enforced());
    let outsider = |way, ports: &[u16]| probe(moved(cgroup.path(), &kit.outsider(subject, "probe")), way, ports);
    let client = || client(subject, kit, places);

    let server = kit.server(subject, POOL)?;
    let (first, ports) = client()?;
    let (plain, reuse) = (outsider(Way::Plain, &ports)?, outsider(Way::Reuse, &ports)?);
    let in_time = common(&client()?.1, &ports);
    first.kill()?;
    let after_death = if subject == Subject::PortkeepServer {
        let begun = Instant::now();
        while outsider(Way::Plain, &ports)? < ports.len() {
            ensure!(begun.elapsed() < PATIENCE, "the ports of a dead client are not free");
            thread::sleep(Duration::from_millis(5));
        }
        AT_ONCE.to_owned()
    } else {
        let afterwards = common(&client()?.1, &ports);
        ensure!(afterwards == ports.len(), "the server does not give the ports of a dead client to the next");
        format!("{afterwards} at once")
    };

    let (second, ports) = client()?;
    drop(server);
    let mut orphan = start(subject, kit, places)?;
    let orphaned = if orphan.get(PORTS)?.is_ok() { "pick on without it" } else { "get no ports" };
    let unguarded = outsider(Way::Plain, &ports)?;
    let _successor = kit.server(subject, POOL)?;
    let twice = common(&client()?.1, &ports);
    drop((second, orphan));

    let exhaust = |command| Exhausted::by(moved(cgroup.path(), &command), kit.portserver_address());
    let mut others = kit.job("exhaust");
    others.arg("--as-nobody");
    let greedy = exhaust(others)?;
    let left = exhaust(kit.job("exhaust"))?.given;
    Ok(Crash {
        plain,
        reuse,
        after: format!(
            "other clients get {in_time} of the 8 while the process lives; after its death: {after_death}; server killed: \
             clients {orphaned}, outsiders get {unguarded} of the 8 ports of a living process, and a new server gives \
             {twice} of them to another; one user takes {} ports and no more, and {left} are left for another user",
            greedy.given
        ),
    })
}

fn client(subject: Subject, kit: &Kit, places: &Places) -> Result<(Allocator, Vec<u16>)> {
    let mut allocator = start(subject, kit, places)?;
    let Taken { ports, .. } = allocator.get(PORTS)?.map_err(|reason| anyhow!("no ports: {reason}"))?;
    Ok((allocator, ports))
}

fn common(some: &[u16], others: &[u16]) -> usize {
    some.iter().filter(|port| others.contains(port)).count()
}
