//! Using up what there is a limited amount of. Reserved stays reserved whatever is full; what can be used up by whom,
//! at whose expense, is pinned down here.

use std::{fs, path::PathBuf};

use portkeep::control;
use portkeep_core::{
    Errno, PortRange, Transport,
    wire::{self, AcquireRequest, AgentMark},
};
use portkeep_kernel::{Loaded, Settings};
use portkeep_testkit::{
    Sandbox, TestCgroup, World, audit, new_namespace,
    process::{Child, become_user, in_child},
    sockets::{acquire, bind, connect, errno, port, reserve, socket, tcp, token, udp},
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use socket2::{Domain, Socket};

use crate::siege::{NOBODY, absent, owner_binds};

fn one() -> AcquireRequest {
    AcquireRequest { count: 1, ..Default::default() }
}

/// Run `work` in a child below a kernel part of its own.
fn below(sandbox: &Sandbox, work: impl FnOnce(&mut portkeep_testkit::process::Talk)) {
    let mut child = Child::fork(|talk| {
        talk.hear();
        work(talk);
    });
    sandbox.cgroup().enter(child.pid()).unwrap();
    child.talk.say(0);
    child.join();
}

/// All 65,535 entries. Root has no quota, also in a container (unless that has a user namespace); a user comes as far
/// as its quota.
#[test]
fn when_all_entries_are_taken_what_is_reserved_stays_so() {
    let Some(world) = World::enter("bypass::entries") else { return };
    let keeper = tcp();
    let grant = reserve(&keeper, 61000, 1);
    in_child(|| {
        become_user(NOBODY);
        let owners: Vec<Socket> = (0..8).map(|_| udp()).collect();
        owners.iter().for_each(|owner| (0..128).for_each(|_| assert_eq!(reserve(owner, 0, 1).count, 1)));
        assert_eq!(errno(control::acquire(udp(), &one())), Errno::EDQUOT);
    });
    let mut greedy = Child::fork(|talk| {
        rustix::process::setrlimit(
            rustix::process::Resource::Nofile,
            rustix::process::Rlimit { current: Some(4096), maximum: Some(4096) },
        )
        .unwrap();
        let mut owners = Vec::new();
        let mut taken = 0u32;
        let error = 'full: loop {
            new_namespace();
            for _ in 0..2 * 4536 / wire::OWNED {
                let owner = if owners.len() % 2 == 0 { tcp() } else { udp() };
                // Kept, whatever comes: closing it would give its entries back.
                owners.push(owner.try_clone().unwrap());
                for _ in 0..wire::OWNED {
                    match control::acquire(&owner, &one()) {
                        Ok(()) => taken += 1,
                        Err(error) => break 'full error,
                    }
                }
            }
        };
        assert_eq!((errno::<()>(Err(error)), taken), (Errno::ENOMEM, 65534));
        talk.say(0);
        talk.hear();
    });
    greedy.talk.hear();
    assert_eq!(errno(control::acquire(tcp(), &one())), Errno::ENOMEM);
    in_child(|| assert_eq!(errno(bind(&tcp(), 61000)), Errno::EADDRINUSE));
    in_child(|| bind(&tcp(), 20000).unwrap());
    owner_binds(Domain::IPV4, Transport::Tcp, &grant);
    greedy.kill();
    reserve(&tcp(), 0, 1);
    drop(keeper);
    world.assert_empty();
}

/// A reservation that has ended while its ports are still bound counts against its user's quota until they are free:
/// otherwise one user could reserve, bind and release its way through the whole pool.
#[test]
fn lingering_ports_do_not_get_a_user_past_its_quota() {
    let Some(_world) = World::with_outside("bypass::lingering_quota") else { return };
    let mut settings = Settings::default();
    settings.pool = Some(PortRange::inclusive(61000, 61063).unwrap());
    settings.quota = 8;
    let sandbox = Sandbox::beside("linger", &settings);
    below(&sandbox, |_| {
        become_user(NOBODY);
        let owner = tcp();
        let mut bound = Vec::new();
        let mut rounds = 0;
        let refused = loop {
            let grant = match acquire(&owner, &AcquireRequest { count: 8, ..Default::default() }) {
                Ok(grant) => grant,
                Err(error) => break Errno(error.raw_os_error().unwrap()),
            };
            rounds += 1;
            for number in grant.start..grant.start + 8 {
                let socket = tcp();
                bind(&socket, number).unwrap();
                bound.push(socket);
            }
            control::release(&owner, token(&grant)).unwrap();
        };
        assert_eq!((refused, rounds), (Errno::EDQUOT, 1), "its quota is 8 ports, and it has {}", bound.len());
        // Each port that is given up is its own to reserve again.
        bound.truncate(5);
        let grant = reserve(&owner, 0, 3);
        control::release(&owner, token(&grant)).unwrap();
        drop(bound);
        reserve(&owner, 0, 8);
    });
    let maps = sandbox.loaded().maps().unwrap();
    audit::assert_consistent(&maps);
    assert!(maps.quotas().all(|item| item.unwrap().1.used == 0));
}

/// A quota belongs to a uid, as the first user namespace counts. Whoever may use several (subordinate uids, see
/// /etc/subuid) has as many quotas.
#[test]
fn every_subordinate_uid_has_a_quota_of_its_own() {
    let Some(_world) = World::with_outside("bypass::subordinate_uids") else { return };
    let mut settings = Settings::default();
    settings.pool = Some(PortRange::inclusive(61000, 61063).unwrap());
    settings.quota = 32;
    let sandbox = Sandbox::beside("subuid", &settings);
    below(&sandbox, |_| {
        let mut inside = Child::fork(|talk| {
            // SAFETY: this child has one thread.
            if let Err(error) = unsafe { unshare_unsafe(UnshareFlags::NEWUSER) } {
                talk.say(1);
                return absent("user namespaces", error);
            }
            talk.say(0);
            talk.hear();
            let holders: Vec<Child> = (0..3)
                .map(|uid| {
                    let mut holder = Child::fork(|talk| {
                        // SAFETY: changes credentials only.
                        assert_eq!(unsafe { libc::setresuid(uid, uid, uid) }, 0);
                        let owner = tcp();
                        let asked = control::acquire(&owner, &AcquireRequest { count: 32, ..Default::default() });
                        talk.say(asked.err().map_or(0, |error| error.raw_os_error().unwrap() as u64));
                        talk.hear();
                    });
                    // The third finds no quota in the way, and no port left.
                    assert_eq!(holder.talk.hear(), if uid < 2 { 0 } else { libc::ENOSPC as u64 });
                    holder
                })
                .collect();
            drop(holders);
        });
        if inside.talk.hear() == 0 {
            // What newuidmap does for a user with subordinate uids.
            fs::write(format!("/proc/{}/uid_map", inside.pid()), "0 100000 65536").unwrap();
            inside.talk.say(0);
        }
        inside.join();
    });
}

/// Words of the port table stay when their ports are free again, until the agent has found their namespace quiet for
/// ten minutes. A user who may make network namespaces (unprivileged user namespaces) can fill the table by making
/// many; then nobody is granted ports in words that are not there yet. What is reserved stays reserved, what
/// nobody reserved stays free to bind, and words once made stay usable.
#[test]
fn many_namespaces_fill_the_port_table_for_everybody() {
    let Some(_world) = World::with_outside("bypass::many_namespaces") else { return };
    let loaded = Loaded::load_cramped(&[("words", 16)]).unwrap();
    let sandbox = Sandbox::beside_with("namespaces", &Settings::default(), loaded);
    below(&sandbox, |_| {
        let owner = tcp();
        let grant = reserve(&owner, 61000, 1);
        in_child(|| {
            become_user(NOBODY);
            // SAFETY: this child has one thread.
            if let Err(error) = unsafe { unshare_unsafe(UnshareFlags::NEWUSER) } {
                return absent("user namespaces", error);
            }
            let mut namespaces = 0;
            while control::acquire(udp(), &one()).is_ok() {
                namespaces += 1;
                // SAFETY: as above.
                unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            }
            assert_eq!(namespaces, 15);
            assert_eq!(errno(control::acquire(udp(), &one())), Errno::ENOMEM);
        });
        in_child(|| {
            assert_eq!(errno(bind(&tcp(), 61000)), Errno::EADDRINUSE);
            bind(&tcp(), 20000).unwrap();
        });
        owner_binds(Domain::IPV4, Transport::Tcp, &grant);
        // Nobody's namespaces any more, and still in the way; but not within a word that is there.
        assert_eq!(errno(control::acquire(&owner, &AcquireRequest { start: 62000, ..one() })), Errno::ENOMEM);
        reserve(&owner, 61010, 5);
    });
    // What the agent does in time.
    let mut maps = sandbox.loaded().maps().unwrap();
    maps.forget_quiet_namespaces(0).unwrap();
    maps.forget_quiet_namespaces(0).unwrap();
    below(&sandbox, |_| assert_eq!(reserve(&tcp(), 62000, 1).start, 62000));
}

/// Connections accepted on a port hold no bind, and SO_REUSEADDR, which the bind hook sets, keeps them out of the way
/// of the next holder. Whoever takes the option off again on a connection it keeps open is in the way, after the
/// reservation has ended: the next holder's bind on that port fails until the connection is closed.
#[test]
fn a_connection_kept_without_so_reuseaddr_keeps_the_port_from_its_next_holder() {
    let Some(world) = World::enter("bypass::kept_connection") else { return };
    for spiteful in [false, true] {
        let mut former = Child::fork(|talk| {
            become_user(NOBODY);
            let owner = tcp();
            reserve(&owner, 61000, 1);
            let listener = tcp();
            bind(&listener, 61000).unwrap();
            listener.listen(1).unwrap();
            let client = tcp();
            connect(&client, "127.0.0.1:61000").unwrap();
            let (kept, _) = listener.accept().unwrap();
            if spiteful {
                kept.set_reuse_address(false).unwrap();
            }
            drop((listener, owner));
            talk.say(0);
            talk.hear();
        });
        former.talk.hear();
        let owner = tcp();
        reserve(&owner, 61000, 1);
        assert_eq!(bind(&tcp(), 61000).is_err(), spiteful);
        former.talk.say(0);
        former.join();
        drop(owner);
        world.assert_empty();
    }
}

/// A full event ring loses events and counts them; no call waits for it or fails by it.
#[test]
fn a_full_event_ring_loses_events_and_nothing_else() {
    let Some(world) = World::enter("bypass::ring") else { return };
    let secret = world.maps().config().unwrap().secret;
    let reader = udp();
    control::agent_mark(&reader, &AgentMark { secret, role: wire::AGENT_READER, zero: 0 }).unwrap();
    let counters = || world.maps().counters().unwrap();
    let before = counters();
    let owner = tcp();
    let grant = reserve(&owner, 0, 1);
    in_child(|| {
        become_user(NOBODY);
        let thief = tcp();
        // Twice what the ring holds, from one process: all are counted, few are told, so none can crowd others out.
        for _ in 0..6000 {
            assert_eq!(errno(bind(&thief, grant.start)), Errno::EADDRINUSE);
        }
    });
    let flooded = counters();
    assert_eq!((flooded.refused - before.refused, flooded.lost), (6000, before.lost));
    in_child(|| {
        become_user(NOBODY);
        // Grants and ends are told one by one, and fill it.
        let owner = tcp();
        for _ in 0..3000 {
            control::release(&owner, token(&reserve(&owner, 0, 1))).unwrap();
        }
    });
    assert!(counters().lost > flooded.lost);
    // Grants and ends go on unheard, too.
    control::release(&owner, token(&reserve(&owner, 0, 4))).unwrap();
    owner_binds(Domain::IPV4, Transport::Tcp, &grant);
    drop((reader, owner));
    world.assert_empty();
    let mut events = world.sandbox().loaded().events().unwrap();
    while events.next_event().is_some() {}
}

/// A cgroup whose memory is limited, for kernel memory too: version 2 where the controller is on, else version 1.
fn memory_cgroup() -> Result<(PathBuf, &'static str, &'static str), String> {
    let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
    let own = own.lines().find_map(|line| line.split_once(":memory:").map(|(_, path)| path.to_owned()));
    let own = own.ok_or("no memory controller of version 1")?;
    let folder = PathBuf::from(format!("/sys/fs/cgroup/memory{own}/portkeep-test-memory-{}", std::process::id()));
    fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok((folder, "memory.limit_in_bytes", "memory.usage_in_bytes"))
}

/// The maps' memory is charged to whoever brought Portkeep up. Where that is at its limit, no more is granted; what is
/// reserved stays so.
#[test]
fn without_memory_nothing_more_is_granted_and_nothing_is_lost() {
    let Some(_world) = World::with_outside("bypass::memory") else { return };
    let (folder, limit, usage) = match memory_cgroup() {
        Ok(found) => found,
        Err(why) => return absent("a memory limit", why),
    };
    let cgroup = TestCgroup::new("memory").unwrap();
    let mut poor = Child::fork(|talk| {
        let enter = |folder: &std::path::Path| {
            fs::write(folder.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        };
        enter(&folder);
        let mut loaded = Loaded::load().unwrap();
        let mut settings = Settings::default();
        settings.pool = Some(PortRange::inclusive(1024, 65535).unwrap());
        loaded.attach(&settings, cgroup.path(), cgroup.path()).unwrap();
        // Only the maps stay behind: a process that is short of memory itself would be killed.
        enter(folder.parent().unwrap());
        let used: u64 = fs::read_to_string(folder.join(usage)).unwrap().trim().parse().unwrap();
        fs::write(folder.join(limit), (used + (128 << 10)).to_string()).unwrap();
        enter(cgroup.path());

        let owner = tcp();
        let mut granted = Vec::new();
        let error = loop {
            if granted.len() == 100 {
                talk.say(0);
                return absent("a memory limit", "it does not hold for the maps of this kernel");
            }
            let spare = udp();
            let owner = if granted.is_empty() { &owner } else { &spare };
            match acquire(owner, &AcquireRequest { count: 640, ..Default::default() }) {
                Ok(grant) => granted.push((grant, spare)),
                Err(error) => break error,
            }
        };
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEM), "{} granted", granted.len());
        let first = granted[0].0.start;
        in_child(|| {
            become_user(NOBODY);
            for (grant, _) in &granted {
                let transport = if grant.start == first { Transport::Tcp } else { Transport::Udp };
                assert_eq!(errno(bind(&socket(Domain::IPV4, transport), grant.start)), Errno::EADDRINUSE);
            }
        });
        let rightful = tcp();
        bind(&rightful, first).unwrap();
        assert_eq!(port(&rightful), first);
        audit::assert_consistent(&loaded.maps().unwrap());
        talk.say(0);
    });
    poor.talk.try_hear();
    poor.join();
    let _ = fs::remove_dir(folder);
}
