//! Exhausting limited resources. Reserved ports stay reserved, even if everything is full. The tests fix which
//! processes can exhaust a resource, and which account is charged.

use std::{fs, path::PathBuf};

use portkeep::control;
use portkeep_core::{
    Errno, PortRange, Transport,
    wire::{self, AcquireRequest, AgentMark},
};
use portkeep_kernel::{Loaded, SPACE_WORDS, Settings};
use portkeep_testkit::{
    Sandbox, TestCgroup, World, audit, new_namespace,
    process::{Child, become_user, in_child},
    sockets::{acquire, bind, connect, errno, port, reserve, socket, tcp, token, udp},
};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities, unshare_unsafe};
use socket2::{Domain, Socket};

use crate::siege::{NOBODY, absent, owner_binds};

const NO_CAPABILITIES: CapabilitySets = CapabilitySets {
    effective: CapabilitySet::empty(),
    permitted: CapabilitySet::empty(),
    inheritable: CapabilitySet::empty(),
};

fn one() -> AcquireRequest {
    AcquireRequest { count: 1, ..Default::default() }
}

/// Run `work` in a child, in the cgroup of an instance of its own.
fn below(sandbox: &Sandbox, work: impl FnOnce(&mut portkeep_testkit::process::Talk)) {
    let mut child = Child::fork(|talk| {
        talk.hear();
        work(talk);
    });
    sandbox.cgroup().enter(child.pid()).unwrap();
    child.talk.say(0);
    child.join();
}

/// All 65,535 entries: root at home has no quota; a user stops at its own quota.
#[test]
fn reserved_ports_stay_reserved_when_all_entries_are_in_use() {
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
                // Kept until the end of the test: closing it would free its entries.
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

/// A reservation that has ended while its ports are still bound costs no quota: its sockets keep the ports, as sockets
/// keep those that nobody has reserved (N1).
#[test]
fn lingering_ports_cost_what_any_bound_port_costs() {
    let Some(_world) = World::with_outside("bypass::lingering_quota") else { return };
    let mut settings = Settings::default();
    settings.pool = Some(PortRange::inclusive(61000, 61063).unwrap());
    settings.quota = 8;
    let sandbox = Sandbox::beside("linger", &settings);
    below(&sandbox, |_| {
        become_user(NOBODY);
        let owner = tcp();
        let mut bound = Vec::new();
        for _ in 0..8 {
            let grant = acquire(&owner, &AcquireRequest { count: 8, ..Default::default() }).unwrap();
            for number in grant.start..grant.start + 8 {
                let socket = tcp();
                bind(&socket, number).unwrap();
                bound.push(socket);
            }
            control::release(&owner, token(&grant)).unwrap();
        }
        assert_eq!(errno(control::acquire(&owner, &one())), Errno::ENOSPC, "all 64 ports are in use");
        // Once they are closed, the ports can be reserved again.
        bound.truncate(56);
        reserve(&owner, 0, 8);
    });
    let maps = sandbox.loaded().maps().unwrap();
    audit::assert_consistent(&maps);
    assert!(maps.quotas().all(|item| item.unwrap().1.used == 0));
}

/// The account is that of the process. A socket of the host does not make root of a container the root of the host.
/// Without the capability a process has no right to the host's privileged ports.
#[test]
fn a_containers_root_with_a_socket_of_the_hosts_is_charged_as_a_containers() {
    let Some(world) = World::with_outside("bypass::handed_socket") else { return };
    let mut settings = Settings::default();
    settings.home = Some(world.netns());
    settings.quota_elsewhere = 4;
    let sandbox = Sandbox::beside("handed", &settings);
    below(&sandbox, |_| {
        let of_the_host = tcp();
        acquire(&of_the_host, &AcquireRequest { count: 5, ..Default::default() }).unwrap();
        in_child(|| {
            new_namespace();
            let count = |count| AcquireRequest { count, ..Default::default() };
            assert_eq!(errno(control::acquire(&of_the_host, &count(5))), Errno::EDQUOT);
            acquire(&of_the_host, &count(4)).unwrap();
            set_capabilities(None, NO_CAPABILITIES).unwrap();
            assert_eq!(errno(control::acquire(&of_the_host, &AcquireRequest { start: 80, ..one() })), Errno::EDQUOT);
        });
        in_child(|| {
            set_capabilities(None, NO_CAPABILITIES).unwrap();
            assert_eq!(errno(control::acquire(&of_the_host, &AcquireRequest { start: 80, ..one() })), Errno::EACCES);
        });
        // A process with the right passes this check. The request then requires the agent, and none runs.
        assert_eq!(errno(control::acquire(&of_the_host, &AcquireRequest { start: 80, ..one() })), Errno::ENETDOWN);
        in_child(|| {
            become_user(NOBODY);
            assert_eq!(errno(control::acquire(udp(), &AcquireRequest { start: 80, ..one() })), Errno::EACCES);
        });
    });
}

/// A user with several uids (subordinate ones, see /etc/subuid) has one quota for all of them.
#[test]
fn subordinate_uids_share_their_users_quota() {
    let Some(_world) = World::with_outside("bypass::subordinate_uids") else { return };
    let mut settings = Settings::default();
    settings.pool = Some(PortRange::inclusive(61000, 61063).unwrap());
    settings.quota = 32;
    let sandbox = Sandbox::beside("subuid", &settings);
    let mut maps = sandbox.loaded().maps().unwrap();
    maps.set_accounts(&[(100_000..=165_535, NOBODY)]).unwrap();
    below(&sandbox, |_| {
        let mut inside = Child::fork(|talk| {
            // SAFETY: this child has one thread.
            if let Err(error) = unsafe { unshare_unsafe(UnshareFlags::NEWUSER) } {
                talk.say(1);
                return absent("user namespaces", error);
            }
            talk.say(0);
            talk.hear();
            let mut holders = Vec::new();
            for (uid, count, outcome) in [(0, 20, 0), (1, 12, 0), (1, 1, libc::EDQUOT), (65_535, 1, libc::EDQUOT)] {
                let mut holder = Child::fork(|talk| {
                    // SAFETY: changes credentials only.
                    assert_eq!(unsafe { libc::setresuid(uid, uid, uid) }, 0);
                    let owner = tcp();
                    let asked = control::acquire(&owner, &AcquireRequest { count, ..Default::default() });
                    talk.say(asked.err().map_or(0, |error| error.raw_os_error().unwrap() as u64));
                    talk.hear();
                });
                assert_eq!(holder.talk.hear(), outcome as u64, "uid {uid} asks for {count}");
                holders.push(holder);
            }
            talk.say(0);
            talk.hear();
        });
        if inside.talk.hear() != 0 {
            return inside.join();
        }
        // The same as newuidmap for a user with subordinate uids.
        fs::write(format!("/proc/{}/uid_map", inside.pid()), "0 100000 65536").unwrap();
        inside.talk.say(0);
        inside.talk.hear();
        // The user has no quota left either. The uid directly after the range is another user.
        for (uid, outcome) in [(NOBODY, Some(libc::EDQUOT)), (99_999, None), (165_536, None)] {
            in_child(|| {
                become_user(uid);
                let asked = control::acquire(tcp(), &one());
                assert_eq!(asked.err().and_then(|error| error.raw_os_error()), outcome, "uid {uid}");
            });
        }
        inside.talk.say(0);
        inside.join();
    });
    assert!(maps.quotas().all(|item| item.unwrap().1.used == 0));
    // Subordinate uids can be given to another user; a reservation stays charged to the first one.
    below(&sandbox, |_| {
        let mut holder = Child::fork(|talk| {
            become_user(100_000);
            let owner = tcp();
            reserve(&owner, 0, 32);
            talk.say(0);
            talk.hear();
        });
        holder.talk.hear();
        maps.set_accounts(&[]).unwrap();
        in_child(|| {
            become_user(100_000);
            reserve(&tcp(), 0, 32);
        });
        holder.talk.say(0);
        holder.join();
    });
    audit::assert_consistent(&maps);
    assert!(maps.quotas().all(|item| item.unwrap().1.used == 0));
}

/// Root has no quota. But root of a container may not exhaust the resources of the whole machine: in each other network
/// namespace it has a quota.
#[test]
fn root_of_another_namespace_has_a_quota_there() {
    let Some(world) = World::with_outside("bypass::root_elsewhere") else { return };
    let mut settings = Settings::default();
    settings.home = Some(world.netns());
    settings.quota_elsewhere = 32;
    settings.quota = 8;
    let sandbox = Sandbox::beside("elsewhere", &settings);
    below(&sandbox, |_| {
        reserve(&tcp(), 0, 1000);
        in_child(|| {
            let mut owners = Vec::new();
            for _ in 0..2 {
                let here = new_namespace();
                assert_ne!(here, world.netns());
                owners.push((tcp(), udp()));
                let (first, second) = owners.last().unwrap();
                reserve(first, 0, 20);
                assert_eq!(errno(control::acquire(second, &AcquireRequest { count: 13, ..one() })), Errno::EDQUOT);
                reserve(second, 0, 12);
                in_child(|| {
                    become_user(NOBODY);
                    reserve(&tcp(), 0, 8);
                });
            }
        });
    });
    let mut maps = sandbox.loaded().maps().unwrap();
    audit::assert_consistent(&maps);
    assert!(maps.quotas().all(|item| item.unwrap().1.used == 0));
    // Namespaces end, and their accounts are removed.
    let admin = sandbox.loaded().admin().unwrap();
    maps.forget_quiet_namespaces(&admin, 0).unwrap();
    audit::assert_consistent(&maps);
    let left: Vec<u64> = maps.quotas().map(|item| item.unwrap().0).filter(|account| *account >= 1 << 63).collect();
    assert!(left.is_empty(), "{left:x?}");
}

/// When ports become free again, their words of the port table stay until the agent has found their namespace quiet for
/// ten minutes. A user who may make network namespaces (unprivileged user namespaces) can make many. The user's words
/// are limited to its share of the table, so it does not hinder others.
#[test]
fn many_namespaces_use_up_their_users_share_of_the_port_table() {
    let Some(_world) = World::with_outside("bypass::many_namespaces") else { return };
    let mut settings = Settings::default();
    settings.share = 5 * (SPACE_WORDS + 1);
    let sandbox = Sandbox::beside("namespaces", &settings);
    let mut maps = sandbox.loaded().maps().unwrap();
    let make_namespaces = || {
        become_user(NOBODY);
        // SAFETY: this child has one thread.
        if let Err(error) = unsafe { unshare_unsafe(UnshareFlags::NEWUSER) } {
            return absent("user namespaces", error);
        }
        for _ in 0..5 {
            // SAFETY: as above.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            reserve(&udp(), 0, 1);
        }
        // The last namespace has a word already, so ports of that word can be reserved.
        reserve(&udp(), 61000, 1);
        assert_eq!(errno(control::acquire(udp(), &AcquireRequest { start: 62000, ..one() })), Errno::EDQUOT);
        // SAFETY: as above.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        assert_eq!(errno(control::acquire(udp(), &one())), Errno::EDQUOT);
    };
    below(&sandbox, |_| {
        in_child(make_namespaces);
        in_child(|| {
            become_user(NOBODY - 1);
            reserve(&tcp(), 62000, 1);
        });
        (0..8).for_each(|_| {
            in_child(|| {
                new_namespace();
                reserve(&tcp(), 0, 1);
            });
        });
    });
    audit::assert_consistent(&maps);
    // The agent does this later.
    let admin = sandbox.loaded().admin().unwrap();
    maps.forget_quiet_namespaces(&admin, 0).unwrap();
    maps.forget_quiet_namespaces(&admin, 0).unwrap();
    assert!(maps.quotas().all(|item| item.unwrap().1.words == 0));
    below(&sandbox, |_| in_child(make_namespaces));
    audit::assert_consistent(&maps);
}

/// Root's network namespaces are different: together they can fill the table. Reserved ports stay reserved, other ports
/// stay free to bind, and existing words stay usable.
#[test]
fn a_full_port_table_changes_nothing_for_what_is_in_it() {
    let Some(_world) = World::with_outside("bypass::full_table") else { return };
    let loaded = Loaded::load_cramped(&[("words", 16)]).unwrap();
    let sandbox = Sandbox::beside_with("full", &Settings::default(), loaded);
    below(&sandbox, |_| {
        let owner = tcp();
        let grant = reserve(&owner, 61000, 1);
        in_child(|| {
            let mut namespaces = 0;
            while control::acquire(udp(), &one()).is_ok() {
                namespaces += 1;
                new_namespace();
            }
            assert_eq!(namespaces, 15);
            assert_eq!(errno(control::acquire(udp(), &one())), Errno::ENOMEM);
            become_user(NOBODY);
            assert_eq!(errno(control::acquire(udp(), &one())), Errno::ENOMEM);
        });
        in_child(|| {
            assert_eq!(errno(bind(&tcp(), 61000)), Errno::EADDRINUSE);
            bind(&tcp(), 20000).unwrap();
        });
        owner_binds(Domain::IPV4, Transport::Tcp, &grant);
        // The namespaces have ended but still count; existing words stay usable.
        assert_eq!(errno(control::acquire(&owner, &AcquireRequest { start: 62000, ..one() })), Errno::ENOMEM);
        reserve(&owner, 61010, 5);
    });
    let mut maps = sandbox.loaded().maps().unwrap();
    audit::assert_consistent(&maps);
    let admin = sandbox.loaded().admin().unwrap();
    maps.forget_quiet_namespaces(&admin, 0).unwrap();
    maps.forget_quiet_namespaces(&admin, 0).unwrap();
    below(&sandbox, |_| assert_eq!(reserve(&tcp(), 62000, 1).start, 62000));
}

/// Connections accepted on a port are not binds. The bind hook sets SO_REUSEADDR, so they do not block the next holder.
/// No process can clear the option, neither on the connection nor on its listener.
#[test]
fn a_connection_that_stays_behind_cannot_keep_the_port_from_its_next_holder() {
    let Some(world) = World::enter("bypass::kept_connection") else { return };
    for (domain, address) in [(Domain::IPV4, "127.0.0.1:61000"), (Domain::IPV6, "[::1]:61000")] {
        for spiteful in ["no", "connection", "listener", "bound"] {
            let mut former = Child::fork(|talk| {
                become_user(NOBODY);
                let owner = tcp();
                reserve(&owner, 61000, 1);
                let listener = socket(domain, Transport::Tcp);
                bind(&listener, 61000).unwrap();
                if spiteful == "bound" {
                    listener.set_reuse_address(false).unwrap();
                }
                listener.listen(1).unwrap();
                if spiteful == "listener" {
                    listener.set_reuse_address(false).unwrap();
                }
                let client = socket(domain, Transport::Tcp);
                connect(&client, address).unwrap();
                let (kept, _) = listener.accept().unwrap();
                if spiteful == "connection" {
                    kept.set_reuse_address(false).unwrap();
                    drop((listener, owner));
                    // Once the reservation has ended, this is an ordinary socket.
                    kept.set_reuse_address(false).unwrap();
                } else {
                    drop((listener, owner));
                }
                assert!(kept.reuse_address().unwrap());
                talk.say(0);
                talk.hear();
            });
            former.talk.hear();
            let owner = tcp();
            reserve(&owner, 61000, 1);
            bind(&socket(domain, Transport::Tcp), 61000).unwrap();
            former.talk.say(0);
            former.join();
            drop(owner);
            world.assert_empty();
        }
    }
    // On other ports every process may change the option, and also before the socket has a port.
    in_child(|| {
        let other = tcp();
        other.set_reuse_address(true).unwrap();
        other.set_reuse_address(false).unwrap();
        assert!(!other.reuse_address().unwrap());
        bind(&other, 20000).unwrap();
        other.set_reuse_address(true).unwrap();
        other.set_reuse_address(false).unwrap();
        assert!(!other.reuse_address().unwrap());
    });
}

/// A full event ring loses events and counts them. No call waits or fails because of it.
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
        // Twice as many events as the ring has room for, from one process: all are counted and few are reported, so
        // events of others still have room.
        for _ in 0..6000 {
            assert_eq!(errno(bind(&thief, grant.start)), Errno::EADDRINUSE);
        }
    });
    let flooded = counters();
    assert_eq!((flooded.refused - before.refused, flooded.lost), (6000, before.lost));
    in_child(|| {
        become_user(NOBODY);
        // Grants and ends are reported one by one, and fill the ring.
        let owner = tcp();
        for _ in 0..3000 {
            control::release(&owner, token(&reserve(&owner, 0, 1))).unwrap();
        }
    });
    assert!(counters().lost > flooded.lost);
    // Grants and ends also succeed while their events are lost.
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

/// The maps' memory is charged to the process that brought Portkeep up. If its cgroup is at the limit, nothing more is
/// granted, and reserved ports stay reserved.
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
        // Only the maps stay charged there: a process in a cgroup without memory would be killed.
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
