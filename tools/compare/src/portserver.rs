//! The fate of a port server's ports when a client of it is killed, and
//! when it is killed itself. Sockets know nothing of who has which: only its
//! other clients can see it.

use anyhow::{Result, anyhow, ensure};

use super::{
    allocator::{Allocator, Taken},
    crash::Crash,
    job::{PORTS, Way, probe},
    kit::Kit,
    latency::start,
    subject::Subject,
};
use portkeep_testkit::places::{Places, moved};

/// Exactly what one client takes, so that the next one needs the same.
const POOL: &str = "15000-15007";

pub(super) fn observe(kit: &Kit, places: &Places) -> Result<Crash> {
    let server = kit.portserver(POOL)?;
    let (first, ports) = client(kit, places)?;
    let outsider = |way| probe(moved(places.cgroup(false).path(), &kit.job("probe")), way, &ports);
    let (plain, reuse) = (outsider(Way::Plain)?, outsider(Way::Reuse)?);
    let in_time = common(&client(kit, places)?.1, &ports);
    first.kill()?;
    let (second, again) = client(kit, places)?;
    let afterwards = common(&again, &ports);
    ensure!(afterwards == ports.len(), "the server does not give the ports of a dead client to the next");

    drop(server);
    let mut orphan = start(Subject::Portserver, kit, places)?;
    let orphaned = if orphan.get(PORTS)?.is_ok() { "pick on without it" } else { "get no ports" };
    let _successor = kit.portserver(POOL)?;
    let twice = common(&client(kit, places)?.1, &again);
    drop(second);
    Ok(Crash {
        plain,
        reuse,
        after: format!(
            "other clients of the server get {in_time} of the 8 while the process lives, {afterwards} at once after its \
             death; server killed: clients {orphaned}, and its successor gives {twice} of the 8 ports of a living \
             process to another"
        ),
    })
}

fn client(kit: &Kit, places: &Places) -> Result<(Allocator, Vec<u16>)> {
    let mut allocator = start(Subject::Portserver, kit, places)?;
    let Taken { ports, .. } = allocator.get(PORTS)?.map_err(|reason| anyhow!("no ports: {reason}"))?;
    Ok((allocator, ports))
}

fn common(some: &[u16], others: &[u16]) -> usize {
    some.iter().filter(|port| others.contains(port)).count()
}
